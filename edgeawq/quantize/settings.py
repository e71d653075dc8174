"""What a quantization run is asked to do, checked before anything heavy starts."""

from __future__ import annotations

from dataclasses import dataclass

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.tensor_shapes import list_linear_shapes
from edgeawq.errors import QuantizationError, UsageError
from edgeawq.quantize.calibration import MIN_TOKENS

METHODS = ("awq", "rtn")
BITS = (4,)
HEAD_BITS = (4, 8, 16)  # 16: left in float
SMALLEST_GROUP = 32
MIN_SEQLEN = 16
PACKED_OUTPUTS = 8  # AutoAWQ packs eight outputs into a word


@dataclass(frozen=True)
class QuantizeSettings:
    """Options of `edgeawq quantize`; raises UsageError for values that make no sense."""

    method: str = "awq"
    bits: int = 4
    group_size: int = 128  # as asked for; `choose_group_size` says what the model allows
    head_bits: int = 8
    calibration_tokens: int = 4096  # on SmolLM2 8192 were no better, and cost a third more time
    seqlen: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"the method {self.method!r} is not known", remedy=f"choose one of {', '.join(METHODS)}")
        if self.bits not in BITS:
            raise UsageError(
                f"{self.bits} bits per weight are not supported", remedy=f"choose {' or '.join(map(str, BITS))} bits"
            )
        if self.head_bits not in HEAD_BITS:
            raise UsageError(
                f"{self.head_bits} bits for embedding and head are not supported",
                remedy="choose 4, 8, or 16 to leave them in float",
            )
        if self.group_size < SMALLEST_GROUP:
            raise UsageError(
                f"a group size of {self.group_size} is too small; the smallest is {SMALLEST_GROUP}",
                remedy="choose 32, 64 or 128",
            )
        if self.seqlen < MIN_SEQLEN:
            raise UsageError(
                f"sequences of {self.seqlen} tokens are too short; the shortest is {MIN_SEQLEN}",
                remedy="choose 512, or the length that the model will be used with",
            )
        if self.calibration_tokens < MIN_TOKENS:
            raise UsageError(
                f"{self.calibration_tokens:,} calibration tokens are too few; at least {MIN_TOKENS} are needed",
                remedy="give --calib-tokens 4096, which is what quality figures are measured with",
            )
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"the seed {self.seed} is not between 0 and {(1 << 32) - 1}")


def choose_group_size(config: ModelConfig, wanted: int) -> int:
    """The largest power of two ≤ wanted that divides the width of every linear layer: the format has only one.

    Raises QuantizationError where that is below SMALLEST_GROUP, or where the format cannot hold a layer.
    """
    shapes = list_linear_shapes(config)
    widths = {in_features for _, in_features in shapes.values()}
    size = 1 << (wanted.bit_length() - 1)
    while any(width % size for width in widths):
        size //= 2
    if size < SMALLEST_GROUP:
        worst = min(widths, key=lambda width: width & -width)
        raise QuantizationError(
            f"the width {worst} of a layer is divisible by groups of {worst & -worst} at most; "
            f"the smallest group is {SMALLEST_GROUP}",
            remedy="this model cannot be quantized in groups; choose another one",
        )
    for module, (out_features, _) in shapes.items():
        if out_features % PACKED_OUTPUTS:
            raise QuantizationError(
                f"{module} has {out_features} outputs; AutoAWQ's format needs a multiple of {PACKED_OUTPUTS}",
                remedy="this model cannot be stored in that format; choose another one",
            )
    return size


def explain_group_size(config: ModelConfig, wanted: int, chosen: int) -> str | None:
    """A sentence for the user where another group size than the one asked for is used."""
    if chosen == wanted:
        return None
    widths = {in_features for _, in_features in list_linear_shapes(config).values()}
    blocking = sorted(width for width in widths if width % wanted)
    reason = f"{wanted} does not divide {blocking[0]}" if blocking else f"{wanted} is not a power of two"
    return f"group size {chosen} instead of {wanted}: {reason}"

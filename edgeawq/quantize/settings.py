"""What a quantization run is asked to do, checked before anything heavy starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgeawq.checkpoints.awq_folder import PER_CHANNEL
from edgeawq.checkpoints.config import ModelConfig
from edgeawq.checkpoints.tensor_shapes import list_linear_shapes
from edgeawq.errors import QuantizationError, UsageError
from edgeawq.quantize.calibration import MIN_TOKENS
from edgeawq.quantize.grid import GridFormat
from edgeawq.quantize.methods import METHODS
from edgeawq.quantize.mixed import CRITERIA

BITS = (2, 3, 4, 8)
HEAD_BITS = (4, 8, 16)  # 16: left in float
SMALLEST_GROUP = 32
MIN_SEQLEN = 16
# AutoAWQ packs eight outputs into a word; GPTQ's format takes runs of 32 outputs.
GEMM_OUTPUTS, GPTQ_OUTPUTS = 8, 32
MAX_ROUNDING_STEPS = 100_000
DEFAULT_KEEP_PERCENT = 1.0


@dataclass(frozen=True)
class QuantizeSettings:
    """Options of `edgeawq quantize`; raises UsageError for values that make no sense."""

    method: str = "awq"
    bits: int = 4
    group_size: int = 128  # as asked for; `choose_group_size` says what the model allows; -1: one group a row
    head_bits: int = 8
    calibration_tokens: int = 4096  # on SmolLM2 8192 were no better, and cost a third more time
    seqlen: int = 512
    seed: int = 0
    is_symmetric: bool = False
    act_order: bool | None = None  # None: as the method is best
    bits_for: tuple[tuple[str, int], ...] = ()  # (pattern of module names, bits), the last that matches counts
    rounding_steps: int = 100
    target_bpw: float | None = None  # average bits a weight, scales included: bits by layer from measured sensitivity
    keep_percent: float | None = None  # of a layer's input channels that stay in float16 [1 for mixed, else none]
    keep_by: str | None = None  # how they are chosen, one of CRITERIA ["activation" for mixed]

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"the method {self.method!r} is not known", remedy=f"choose one of {', '.join(METHODS)}")
        self._check_grid()
        if self.act_order is not None and not METHODS[self.method].rounds_by_columns:
            raise UsageError(
                f"--act-order has no meaning with --method {self.method}", remedy="it is the order of GPTQ's columns"
            )
        self._check_kept()
        if self.target_bpw is not None and not METHODS[self.method].searches_ranges:
            raise UsageError(
                f"--target-bpw has no meaning with --method {self.method}",
                remedy="it needs a method that weighs its errors by activations, such as awq",
            )
        if not 1 <= self.rounding_steps <= MAX_ROUNDING_STEPS:
            raise UsageError(
                f"{self.rounding_steps} rounding steps are not between 1 and {MAX_ROUNDING_STEPS:,}",
                remedy="100 are usual; fewer are faster",
            )
        if self.head_bits not in HEAD_BITS:
            raise UsageError(
                f"{self.head_bits} bits for embedding and head are not supported",
                remedy="choose 4, 8, or 16 to leave them in float",
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

    @property
    def kept_share(self) -> float:
        """The share of input channels that stay in float16."""
        if not METHODS[self.method].keeps_channels:
            return 0.0
        return DEFAULT_KEEP_PERCENT / 100 if self.keep_percent is None else self.keep_percent / 100

    @property
    def criterion(self) -> str:
        """How these channels are chosen."""
        return self.keep_by or CRITERIA[0]

    def _check_kept(self) -> None:
        if not METHODS[self.method].keeps_channels:
            for option, value in (("--keep-percent", self.keep_percent), ("--keep-by", self.keep_by)):
                if value is not None:
                    raise UsageError(
                        f"{option} has no meaning with --method {self.method}", remedy="it belongs to --method mixed"
                    )
        elif not 0.0 <= self.kept_share <= 1.0:
            raise UsageError(
                f"{self.keep_percent} % of the channels make no sense", remedy="give a percent from 0 to 100, such as 1"
            )
        elif self.criterion not in CRITERIA:
            raise UsageError(
                f"channels cannot be chosen by {self.keep_by!r}", remedy=f"choose one of {', '.join(CRITERIA)}"
            )

    def _check_grid(self) -> None:
        for bits in (self.bits, *(bits for _, bits in self.bits_for)):
            if bits not in BITS:
                raise UsageError(
                    f"{bits} bits per weight are not supported", remedy=f"choose {', '.join(map(str, BITS))} bits"
                )
        if self.group_size < SMALLEST_GROUP and self.group_size != PER_CHANNEL:
            raise UsageError(
                f"a group size of {self.group_size} is too small; the smallest is {SMALLEST_GROUP}",
                remedy="choose 32, 64, 128, or `channel` for one group a row",
            )
        for pattern, _ in self.bits_for:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(
                    f"the pattern {pattern!r} is not a regular expression: {error}",
                    remedy="a part of the layers' names does, such as down_proj",
                ) from error


def choose_layer_bits(config: ModelConfig, settings: QuantizeSettings) -> dict[str, int]:
    """Bits of every linear layer of the body, by module such as "model.layers.0.mlp.down_proj".

    Raises UsageError for a pattern that no layer's name holds.
    """
    chosen = dict.fromkeys(list_linear_shapes(config), settings.bits)
    for pattern, bits in settings.bits_for:
        found = [module for module in chosen if re.search(pattern, module)]
        if not found:
            raise UsageError(f"no layer's name holds {pattern!r}", remedy=f"names look like {next(iter(chosen))}")
        chosen |= dict.fromkeys(found, bits)
    return chosen


def choose_group_size(config: ModelConfig, wanted: int, outputs: int = GEMM_OUTPUTS) -> int:
    """The largest power of two ≤ wanted that divides the width of every linear layer: the formats have only one.

    -1 (one group a row) is always possible. Raises QuantizationError where the size is below SMALLEST_GROUP, or where
    the outputs of a layer are no multiple of `outputs`, as the format needs.
    """
    shapes = list_linear_shapes(config)
    widths = {in_features for _, in_features in shapes.values()}
    size = SMALLEST_GROUP if wanted == PER_CHANNEL else 1 << (wanted.bit_length() - 1)
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
        if out_features % outputs:
            raise QuantizationError(
                f"{module} has {out_features} outputs; the checkpoint's format needs a multiple of {outputs}",
                remedy="this model cannot be stored in that format; choose another one",
            )
    return wanted if wanted == PER_CHANNEL else size


def choose_head_group_size(config: ModelConfig, body: int) -> int:
    """The group size of embedding and head: the body's, or the largest usual one where the body has none."""
    if body != PER_CHANNEL:
        return body
    return next(size for size in (128, 64, 32) if config.hidden_size % size == 0)


def choose_forms(
    layer: int, layer_bits: Mapping[str, int], config: ModelConfig, settings: QuantizeSettings, group_size: int
) -> dict[str, GridFormat]:
    """The grid of every linear layer of a block, by module inside the block."""
    prefix = f"model.layers.{layer}."
    return {
        module.removeprefix(prefix): GridFormat(
            layer_bits[module], in_features if group_size == PER_CHANNEL else group_size, settings.is_symmetric
        )
        for module, (_, in_features) in list_linear_shapes(config).items()
        if module.startswith(prefix)
    }


def explain_group_size(config: ModelConfig, wanted: int, chosen: int) -> str | None:
    """A sentence for the user where another group size than the one asked for is used."""
    if chosen == wanted:
        return None
    widths = {in_features for _, in_features in list_linear_shapes(config).values()}
    blocking = sorted(width for width in widths if width % wanted)
    reason = f"{wanted} does not divide {blocking[0]}" if blocking else f"{wanted} is not a power of two"
    return f"group size {chosen} instead of {wanted}: {reason}"

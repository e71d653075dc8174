"""The plan: every quantization of a model on a device, what fits, how fast, and which ones are worth a look."""

from __future__ import annotations

from dataclasses import dataclass, replace

from device_profiles.roofline import gaussian_rounding_error
from edgeawq.errors import UsageError
from edgeawq.planning.calibration import Calibration, predict_calibrated
from edgeawq.planning.device import PlanDevice
from edgeawq.planning.predict import Speed, decode_work, predict_decode, predict_first_token, prefill_work
from edgeawq.planning.shape import ModelShape
from edgeawq.planning.sizes import (
    Scheme,
    buffer_bytes,
    count_weights,
    file_bytes,
    float16_bytes,
    kv_cache_bytes,
    layout_of,
    list_schemes,
    list_tensors,
)
from packager.manifest import BITS as BUNDLE_BITS
from packager.pack import count_bytes_per_token

# Resident memory of the runtime without the model: Python, numpy, llvmlite, tokenizers.
# On x86-64 they took 118 MB with a vocabulary of 49,000 tokens; larger ones take more.
RUNTIME_BYTES = 160 << 20
KERNEL_BYTES = 250_000  # the native object of a bundle
QUANTIZER_BITS = (2, 3, 4, 8)  # what `edgeawq quantize` writes today
KV_BITS = (16, 8)
COMFORTABLE = 0.1  # of the memory, left free


@dataclass(frozen=True)
class Workload:
    """What the model is planned for. context_length None: the model's own, at most 4096."""

    context_length: int | None = None
    prompt_tokens: int = 512
    kv_bits: int = 16

    def __post_init__(self) -> None:
        if self.kv_bits not in KV_BITS:
            raise UsageError(f"a KV cache of {self.kv_bits} bits is not possible", remedy="use 16 or 8")
        if self.prompt_tokens < 1 or (self.context_length is not None and self.context_length < 1):
            raise UsageError("context and prompt must have at least one token")


@dataclass(frozen=True)
class Choice:
    """One quantization on one device. Bytes as packed and as taken in memory; None = not known."""

    scheme: Scheme
    can_build: bool  # quantize and pack can make it today
    weights_bytes: int
    bits_per_weight: float
    bytes_per_token: int  # weights and cache read for a token at the prompt's end
    kv_bytes: int
    buffers_bytes: int
    memory_bytes: int  # all of it, with runtime and system
    headroom_bytes: int  # negative: does not fit
    download_bytes: int  # of the bundle, as a push sends it
    rounding_error: float  # expected for normally distributed weights, all matrices
    decode: Speed
    first_token: Speed
    is_calibrated: bool = False  # decode is expected from the measured cost of each operation
    is_pareto: bool = False
    is_pick: bool = False

    @property
    def fits(self) -> bool:
        """Whether weights, cache, runtime and system have room."""
        return self.headroom_bytes >= 0

    @property
    def decode_tokens_per_s(self) -> float | None:
        """The speed to reckon with: the expected one, else the ceiling."""
        seconds = self.decode.expected_s or self.decode.ceiling_s
        return None if seconds is None else 1 / seconds


@dataclass(frozen=True)
class Plan:
    """All choices for one model on one device, the largest first."""

    shape: ModelShape
    device: PlanDevice
    workload: Workload
    context_length: int
    float16_bytes: int
    choices: tuple[Choice, ...]
    calibration: Calibration | None = None

    @property
    def pick(self) -> Choice | None:
        """The choice to begin with; None where nothing that can be built fits."""
        return next((choice for choice in self.choices if choice.is_pick), None)


def make_plan(
    shape: ModelShape, device: PlanDevice, workload: Workload, calibration: Calibration | None = None
) -> Plan:
    """Reckon every quantization of a model on a device.

    Raises UsageError for a context beyond the model's, or a model whose widths no kernel takes.
    """
    config = shape.config
    limit = config.max_position_embeddings
    context = workload.context_length or min(limit, 4096)
    if context > limit:
        raise UsageError(
            f"{shape.name} has a context of {limit:,} tokens, not {context:,}", remedy=f"give --context {limit} or less"
        )
    if workload.prompt_tokens > context:
        workload = replace(workload, prompt_tokens=context)
    schemes = _list_schemes(shape)
    if not schemes:
        raise UsageError(
            f"{shape.name}: no group size divides its widths ({config.hidden_size}, {config.intermediate_size})",
            remedy="choose a model whose widths are multiples of 32",
        )
    choices = [_make_choice(shape, device, workload, context, scheme, calibration) for scheme in schemes]
    choices.sort(key=lambda choice: (-choice.weights_bytes, choice.rounding_error))
    return Plan(shape, device, workload, context, float16_bytes(config), mark_choices(choices), calibration)


def mark_choices(choices: list[Choice]) -> tuple[Choice, ...]:
    """Mark the choices that no other one beats in speed and rounding error at once, and the one to begin with.

    Only what fits is compared. The pick is the most exact 4-bit choice in groups of 64 or more that can be built and
    leaves memory free; where none does, whatever can be built and fits with the least error.
    """
    fitting = [choice for choice in choices if choice.fits]

    def is_beaten(choice: Choice) -> bool:
        return any(
            (other.bytes_per_token, other.rounding_error) != (choice.bytes_per_token, choice.rounding_error)
            and other.bytes_per_token <= choice.bytes_per_token
            and other.rounding_error <= choice.rounding_error
            for other in fitting
        )

    buildable = [choice for choice in fitting if choice.can_build]
    roomy = [c for c in buildable if c.headroom_bytes >= COMFORTABLE * (c.memory_bytes + c.headroom_bytes)]
    usual = [c for c in roomy if c.scheme.bits == 4 and c.scheme.head_bits == 8]
    usual.sort(key=lambda c: (-c.scheme.group_size, c.rounding_error))  # what quantize takes when nothing is said
    pool = usual or sorted(roomy or buildable, key=lambda c: c.rounding_error)
    pick = pool[0] if pool else None
    return tuple(
        replace(choice, is_pareto=choice.fits and not is_beaten(choice), is_pick=choice is pick) for choice in choices
    )


def _list_schemes(shape: ModelShape) -> list[Scheme]:
    """All schemes; for a checkpoint that is quantized already only its own, with the heads that pack can make."""
    found = list_schemes(shape.config)
    own = shape.quantization
    if own is None:
        return found
    mine = [s for s in found if s.bits == own.bits and s.group_size == own.group_size]
    return mine or [Scheme(own.bits, own.group_size, head) for head in (8, 4)]


def _make_choice(
    shape: ModelShape,
    device: PlanDevice,
    workload: Workload,
    context: int,
    scheme: Scheme,
    calibration: Calibration | None,
) -> Choice:
    config = shape.config
    tensors = list_tensors(config, layout_of(device.isa), scheme)
    weights = file_bytes(tensors)
    linears = [tensor for tensor in tensors if tensor.kind == "linear"]
    n_weights = sum(tensor.out_features * tensor.in_features for tensor in linears)
    kv = kv_cache_bytes(config, context, workload.kv_bits)
    buffers = buffer_bytes(config, context, device.cores)
    memory = weights + kv + buffers + RUNTIME_BYTES + int(device.system_memory.value)
    work = decode_work(config, tensors, workload.prompt_tokens, workload.kv_bits)
    decode = predict_decode(device, scheme, work)
    read = count_bytes_per_token(tensors, config.tie_word_embeddings)
    is_calibrated = calibration is not None and calibration.applies_to(read)
    if calibration is not None and is_calibrated:
        decode = predict_calibrated(calibration, config, read, workload.prompt_tokens, decode)
    prompt = prefill_work(config, tensors, workload.prompt_tokens, workload.kv_bits)
    return Choice(
        scheme=scheme,
        can_build=scheme.bits in BUNDLE_BITS and (scheme.bits in QUANTIZER_BITS or shape.quantization is not None),
        weights_bytes=weights,
        bits_per_weight=8 * sum(tensor.nbytes for tensor in linears) / n_weights,
        bytes_per_token=work.bytes,
        kv_bytes=kv,
        buffers_bytes=buffers,
        memory_bytes=memory,
        headroom_bytes=int(device.memory.value) - memory,
        download_bytes=weights + KERNEL_BYTES + (shape.tokenizer_bytes or 0),
        rounding_error=_error(shape, scheme),
        decode=decode,
        first_token=predict_first_token(device, scheme, prompt),
        is_calibrated=is_calibrated,
    )


def _error(shape: ModelShape, scheme: Scheme) -> float:
    """The expected relative error over all weights, root mean square."""
    body, heads = count_weights(shape.config)
    squares = body * gaussian_rounding_error(scheme.bits, scheme.group_size) ** 2
    squares += heads * gaussian_rounding_error(scheme.head_bits, scheme.group_size) ** 2
    return float((squares / (body + heads)) ** 0.5)

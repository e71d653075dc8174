"""What one measured model says about others on the same device: rates and fixed costs, taken from its operations."""

from __future__ import annotations

from dataclasses import dataclass

from edgeawq.checkpoints.config import ModelConfig
from edgeawq.planning.device import Figure, PlanDevice, with_measured
from edgeawq.planning.predict import Speed, Work
from edgeawq.planning.staircase import Staircase, fit_staircase
from edgeawq.profiling.schema import ModelProfile, PhasePoint, Profile
from edgeawq.profiling.verdict_parts import DISTURBING, count_threads, find_operation, find_phase

LARGER = 1.5  # times the measured model, beyond which a rate that came from a cache says nothing
LINEARS = ("qkv", "o", "gate_up", "down", "head")


@dataclass(frozen=True)
class Calibration:
    """Costs of a decode step. Rates in bytes per second; per_*: seconds for each of them."""

    weights_bytes_per_s: float
    weights_bytes: int  # of the model that was measured
    is_from_cache: bool  # its matrices were read faster than DRAM gives, and how a cache helps was not measured
    per_attended_s: float  # one multiply-add of scores or values
    per_feature_s: float  # norms and quantizing, for one layer's feature of the residual stream
    per_layer_s: float  # waiting at the barriers
    per_token_s: float  # sampling and Python
    source: str
    staircase: Staircase | None = None  # of the memory, where the measured model is larger than the caches

    def applies_to(self, weights_bytes: int) -> bool:
        """Whether the rate says something of a model that reads so much: a cache does not grow with the model."""
        return not self.is_from_cache or weights_bytes <= LARGER * self.weights_bytes

    def weights_s(self, weights_bytes: int) -> float:
        """Seconds to go through the matrices of a model once: as fast as the measured one's, or as memory allows."""
        seconds = weights_bytes / self.weights_bytes_per_s
        # Of a smaller set memory would give more; whether the kernels could take more was not measured.
        if self.staircase is None or weights_bytes <= self.weights_bytes:
            return seconds
        return max(seconds, self.staircase.seconds(weights_bytes))


def calibrate(profile: Profile) -> Calibration | None:
    """The costs of `profile`'s decode step nearest to an empty context; None without a measured model."""
    model = profile.model
    phase = None if model is None else find_phase(model, "decode")
    if model is None or phase is None:
        return None
    n_layers = _count_layers(phase)
    hidden = _count_hidden(model, phase)
    if not n_layers or not hidden:
        return None
    seconds: dict[str, float] = {operation.kind: operation.seconds.median for operation in phase.operations}
    # Tracing costs a little; its share is taken off every operation alike.
    scale = phase.untraced_seconds_per_step.median / phase.seconds_per_step.median
    linear_s = scale * sum(seconds.get(kind, 0.0) for kind in LINEARS)
    linear_bytes = sum(operation.bytes for operation in phase.operations if operation.kind in LINEARS)
    attended = sum(operation.operations for operation in phase.operations if operation.kind == "attention")
    if linear_s <= 0 or linear_bytes <= 0:
        return None
    rows = sum(seconds.get(kind, 0.0) for kind in ("norm", "quantize", "merge", "embedding"))
    staircase = fit_staircase(profile, model.threads)
    if staircase is not None and linear_bytes < staircase.smallest_bytes:
        staircase = None
    return Calibration(
        weights_bytes_per_s=linear_bytes / linear_s,
        weights_bytes=linear_bytes,
        is_from_cache=staircase is None and _is_above_dram(profile, linear_bytes / linear_s),
        per_attended_s=scale * seconds.get("attention", 0.0) / attended if attended else 0.0,
        per_feature_s=scale * rows / (n_layers * hidden),
        per_layer_s=scale * seconds.get("barrier", 0.0) / n_layers,
        per_token_s=scale * (seconds.get("sampling", 0.0) + seconds.get("python", 0.0)),
        source=f"measured with {model.name} {_describe_time(profile)}",
        staircase=staircase,
    )


def predict_calibrated(
    calibration: Calibration, config: ModelConfig, weights_bytes: int, position: int, ceiling: Speed
) -> Speed:
    """Seconds of a token of another model on the calibrated device; never below the ceiling."""
    attended = 4 * config.n_layers * config.n_heads * config.head_dim * position
    expected = (
        calibration.weights_s(weights_bytes)
        + attended * calibration.per_attended_s
        + config.n_layers * (config.hidden_size * calibration.per_feature_s + calibration.per_layer_s)
        + calibration.per_token_s
    )
    return Speed(ceiling.ceiling_s, max(expected, ceiling.ceiling_s or 0.0), ceiling.bound)


def apply_measured(device: PlanDevice, profile: Profile) -> PlanDevice:
    """`device` with the roofs and efficiencies that were measured on it; unchanged where there is no DRAM roof."""
    roof = profile.roof("memory", "DRAM")
    if device.processor != "cpu" or roof is None or not roof.bytes_per_second:
        return device
    when = _describe_time(profile)
    bandwidth = Figure(roof.bytes_per_second, f"measured with {count_threads(roof.threads)} {when}", "measured")
    peak_roof = profile.roof("compute", "int8_nibbles") or profile.roof("compute", "int8_bytes")
    peak = None
    if peak_roof is not None and peak_roof.ops_per_second:
        peak = Figure(peak_roof.ops_per_second, f"measured ({peak_roof.name}) {when}", "measured")
    decode = prefill = None
    if profile.model is not None:
        source = f"measured with {profile.model.name} {when}"
        decode = _efficiency(find_phase(profile.model, "decode"), "bytes", bandwidth.value, source)
        prefill = _efficiency(find_phase(profile.model, "prefill"), "operations", peak.value if peak else None, source)
    return with_measured(device, bandwidth=bandwidth, decode=decode, peak=peak, prefill=prefill)


def _is_above_dram(profile: Profile, bytes_per_s: float) -> bool:
    roof = profile.roof("memory", "DRAM")
    return roof is not None and roof.bytes_per_second is not None and bytes_per_s > roof.bytes_per_second


def _describe_time(profile: Profile) -> str:
    """Where and when it was measured, and what disturbed it."""
    disturbed = list(dict.fromkeys(note.kind for note in profile.notes if note.kind in DISTURBING))
    suffix = f", disturbed: {', '.join(disturbed)}" if disturbed else ""
    return f"on {profile.device.name}, {profile.created}{suffix}"


def _efficiency(phase: PhasePoint | None, amount: str, roof: float | None, source: str) -> Figure | None:
    """The part of the roof that a phase reached; None where it is above it: the model lay in the caches."""
    if phase is None or roof is None or phase.untraced_seconds_per_step.median <= 0:
        return None
    work = Work(phase.bytes_per_step, phase.operations_per_step)
    reached = getattr(work, amount) / phase.untraced_seconds_per_step.median / roof
    return Figure(reached, source, "measured") if 0 < reached <= 1 else None


def _count_layers(phase: PhasePoint) -> int:
    operation = find_operation(phase, "down")
    return 0 if operation is None else round(operation.calls)


def _count_hidden(model: ModelProfile, phase: PhasePoint) -> int:
    """The width of the residual stream, from o's outputs: its operations are 2 × layers × hidden × attention width."""
    o = next((linear for linear in model.linears if linear.kind == "o"), None)
    layers = _count_layers(phase)
    # o is square in most models; where it is not, this is the mean of both widths, close enough for norms.
    return 0 if o is None or not layers else round((o.weights / layers) ** 0.5)

"""A device as the planner sees it: one roof, and how much of it a language model reaches, each with its source."""

from __future__ import annotations

from dataclasses import dataclass, replace

from device_profiles.classes import find_class_figure
from device_profiles.profile import DeviceProfile, InnerLoop
from edgeawq.errors import UsageError

PROCESSORS = ("cpu", "gpu")
DEFAULT_SYSTEM_BYTES = 512 << 20


@dataclass(frozen=True)
class Figure:
    """A number with its source. kind: "measured", "published", "derived", "class", "theory", "assumed"."""

    value: float
    source: str
    kind: str


@dataclass(frozen=True)
class PlanDevice:
    """What a plan needs of a device; None = not known. Rates are per second, efficiencies parts of 1."""

    name: str
    title: str
    processor: str  # "cpu" or "gpu"
    isa: str
    cores: int
    clock_hz: float | None
    memory: Figure
    system_memory: Figure
    bandwidth: Figure | None
    peak_ops: Figure | None  # int8 on a CPU, float16 on a GPU
    decode_efficiency: Figure | None
    prefill_efficiency: Figure | None
    loops: tuple[InnerLoop, ...] = ()


def describe_device(profile: DeviceProfile, processor: str = "", memory_bytes: int | None = None) -> PlanDevice:
    """The roof of a device profile; processor "" takes the GPU where the profile has one.

    memory_bytes: of a board that is sold with other amounts than the profile's.
    """
    has_gpu = profile.gpu_peak_fp16_flop_per_s is not None
    processor = processor or ("gpu" if has_gpu else "cpu")
    if processor not in PROCESSORS or (processor == "gpu" and not has_gpu):
        raise UsageError(
            f"the profile {profile.name} knows no processor {processor!r}",
            remedy="leave --processor out" if processor in PROCESSORS else "use cpu or gpu",
        )
    is_gpu = processor == "gpu"
    system = profile.system_memory_bytes
    return PlanDevice(
        name=profile.name,
        title=profile.title,
        processor=processor,
        isa=profile.target.isa,
        cores=profile.cores,
        clock_hz=profile.clock_hz,
        memory=_figure(profile, "memory_bytes", "derived")
        if memory_bytes is None
        else Figure(memory_bytes, "--memory", "assumed"),
        system_memory=_figure(profile, "system_memory_bytes", "assumed")
        if system is not None
        else Figure(DEFAULT_SYSTEM_BYTES, "assumption: a system without a desktop", "assumed"),
        bandwidth=_find_bandwidth(profile, has_gpu and not is_gpu),
        peak_ops=_find(profile, "gpu_peak_fp16_flop_per_s" if is_gpu else "peak_int8_op_per_s"),
        decode_efficiency=_find_efficiency(profile, processor, "decode_efficiency"),
        prefill_efficiency=_find_efficiency(profile, processor, "prefill_efficiency"),
        loops=() if is_gpu else profile.loops,
    )


def with_measured(
    device: PlanDevice, *, bandwidth: Figure, decode: Figure | None, peak: Figure | None, prefill: Figure | None
) -> PlanDevice:
    """The same device with what was measured on it in place of the profile's figures."""
    return replace(
        device,
        bandwidth=bandwidth,
        decode_efficiency=decode or device.decode_efficiency,
        peak_ops=peak or device.peak_ops,
        prefill_efficiency=prefill if peak else device.prefill_efficiency,
    )


def _find(profile: DeviceProfile, name: str) -> Figure | None:
    return None if getattr(profile, name) is None else _figure(profile, name, "")


def _figure(profile: DeviceProfile, name: str, kind: str) -> Figure:
    source = profile.sources.get(name, "")
    return Figure(getattr(profile, name), source, kind or _guess_kind(source))


def _guess_kind(source: str) -> str:
    """Sources of a profile begin with what they are (docs/contributing-device.md)."""
    for kind in ("measured", "derived", "assum"):
        if source.startswith(kind):
            return "assumed" if kind == "assum" else kind
    return "published"


def _find_bandwidth(profile: DeviceProfile, is_beside_gpu: bool) -> Figure | None:
    """The bandwidth of the processor. Beside a GPU the profile's figure is the GPU's: the cores' is derived."""
    if is_beside_gpu:
        one = profile.bandwidth_one_core_bytes_per_s
        shared = profile.bandwidth_bytes_per_s
        if one is None or shared is None:
            return None
        origin = profile.sources["bandwidth_one_core_bytes_per_s"]
        source = f"derived: at most {profile.cores} × {one / 1e9:.3g} GB/s of one core ({origin})"
        return Figure(min(profile.cores * one, shared), source, "derived")
    if profile.bandwidth_bytes_per_s is None:
        return None
    kind = "published" if profile.bandwidth_measured_bytes_per_s else "theory"
    return Figure(profile.bandwidth_bytes_per_s, profile.bandwidth_source, kind)


def _find_efficiency(profile: DeviceProfile, processor: str, name: str) -> Figure | None:
    own = _find(profile, name if processor == "cpu" else f"gpu_{name}")
    if own is not None:
        return own
    figure = find_class_figure(processor, name)
    return None if figure is None else Figure(figure.value, f"of its class ({processor}), {figure.source}", "class")

"""What `edgeawq profile` writes: one device, measured at one time, with or without a model.

Units are in the names: seconds, bytes, bytes_per_second, ops_per_second (a multiply-add counts as two), hertz, watts.
None stands for "not known"; what was asked for and could not be measured is listed in `unavailable` with the reason.
The document is described in docs/design/0005-roofline.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from edgeawq.errors import ProfileError
from edgeawq.profiling.json_values import REMEDY, Range, from_json, parse_text, to_json

FORMAT = "edgeawq-profile"
FORMAT_VERSION = 1

Threads = Annotated[int, Range(1, 4096)]
MemoryKind = Literal["read", "copy", "triad"]
ComputeKind = Literal["fp32", "fp16", "int8_nibbles", "int8_bytes"]
PhaseKind = Literal["prefill", "decode"]
OperationKind = Literal[
    "embedding",  # the token's row
    "norm",  # RMSNorm and quantization of the activation row
    "qkv",
    "attention",  # rotary embedding, writing the cache, scores, softmax, values
    "merge",  # the chunks' attention folded, and quantized
    "o",
    "gate_up",  # with SiLU and the product
    "quantize",  # the activation row of `down`
    "down",
    "head",
    "barrier",  # waiting for the other threads
    "sampling",
    "python",  # everything else between two tokens
]
NoteKind = Literal[
    "emulated",  # another computer interprets the device's instructions: no figure is the device's
    "throttled",  # the system says that it lowers the clock, or the clock fell while the chip was hot
    "low_voltage",  # the power supply is too weak
    "hot",  # near the temperature at which it throttles
    "clock",  # the clock was not steady, or the governor is not for speed
    "busy",  # other programs ran
    "stolen",  # a virtual machine's host took time away
    "swap",  # memory was swapped
    "unsteady",  # repetitions of one measurement differ widely
    "cache",  # the page cache could not be emptied: a storage figure is not of the storage
]


@dataclass(frozen=True)
class Measurement:
    """Repetitions of one measurement: median, quartiles and extremes. Warm-up runs are not among them."""

    median: float
    minimum: float
    lower_quartile: float
    upper_quartile: float
    maximum: float
    repetitions: Annotated[int, Range(1, 1e9)]

    def __post_init__(self) -> None:
        if not self.minimum <= self.lower_quartile <= self.median <= self.upper_quartile <= self.maximum:
            raise ValueError("minimum, quartiles, median and maximum are not in ascending order")

    @property
    def spread(self) -> float:
        """The middle half's width as a share of the median; 0 for a median of 0."""
        return (self.upper_quartile - self.lower_quartile) / self.median if self.median else 0.0


@dataclass(frozen=True)
class CacheFacts:
    """One cache of the CPU. shared_by: how many CPUs one instance serves."""

    level: Annotated[int, Range(1, 9)]
    bytes: int
    shared_by: Annotated[int, Range(1, 4096)]


@dataclass(frozen=True)
class DeviceFacts:
    """The machine that was measured."""

    name: str  # as in the inventory; "host" for the machine itself
    model: str  # the board or the CPU, for people
    machine: str  # "aarch64", "x86_64"
    isa: str  # the instruction set of the kernels that were measured
    cpus: Annotated[int, Range(1, 4096)]  # that the process may use
    memory_bytes: int
    page_bytes: Annotated[int, Range(1, 1 << 30)]
    caches: tuple[CacheFacts, ...]  # data and unified caches, level 1 first; empty where the system does not tell
    max_clock_hertz: float | None  # as the system states it
    governor: str | None  # of the CPU's clock
    kernel: str  # `uname -r`
    virtual_machine: bool


@dataclass(frozen=True)
class Sample:
    """The machine's state at one moment. Shares are of all CPUs since the sample before."""

    seconds: float  # since the start
    stage: str  # what was being measured
    clock_hertz: float | None  # the lowest of the CPUs, as the system states it
    temperature_celsius: Annotated[float | None, Range(-100, 1000)]  # the hottest sensor of the CPU
    load_average: float | None  # over a minute
    other_busy_share: Annotated[float | None, Range(0, 1)]  # CPU time that other programs took
    stolen_share: Annotated[float | None, Range(0, 1)]


@dataclass(frozen=True)
class Note:
    """Something that a reader of the figures must know. stage: which of them it touches, "" for all."""

    kind: NoteKind
    stage: str
    seconds: float  # since the start
    text: str  # for people, with the evidence in it


@dataclass(frozen=True)
class Unavailable:
    """What this device does not tell, and why."""

    what: str  # "energy", "storage", "probes", "fp16", "temperature", "clock", …
    reason: str


@dataclass(frozen=True)
class BandwidthPoint:
    """Memory traffic of a loop over `bytes` of memory in all, split among `threads`.

    read counts the bytes loaded; copy those loaded and stored; triad (a = b + s · c) two loads and a store.
    level: the smallest memory that holds a thread's share: "L1", "L2", "L3", …, "DRAM".
    """

    kind: MemoryKind
    threads: Threads
    bytes: int
    level: str
    bytes_per_second: Measurement


@dataclass(frozen=True)
class ComputePoint:
    """The peak of one kind of arithmetic in registers. fp32, fp16: multiply-adds; int8_*: as the kernels multiply."""

    kind: ComputeKind
    isa: str
    threads: Threads
    ops_per_second: Measurement
    ops_per_cycle: float | None  # of one thread: the highest rate over the highest clock with as many threads


@dataclass(frozen=True)
class ClockPoint:
    """The clock under load: a chain of additions, each of which waits for the one before (one cycle)."""

    threads: Threads
    hertz: Measurement  # of the slowest thread


@dataclass(frozen=True)
class BarrierPoint:
    """One meeting of all threads at the runtime's own barrier."""

    threads: Threads
    seconds: Measurement


@dataclass(frozen=True)
class PagePoint:
    """First touch of memory: "zeroed" pages from the system, or pages of a "mapped" file in the page cache."""

    kind: Literal["zeroed", "mapped"]
    bytes: int
    seconds_per_page: Measurement
    bytes_per_second: Measurement


@dataclass(frozen=True)
class StoragePoint:
    """Reading a file in order. cache_bypassed: False when the page cache may have served it (see the notes)."""

    method: Literal["direct", "fadvise", "cached"]  # O_DIRECT; POSIX_FADV_DONTNEED before each; neither
    cache_bypassed: bool
    bytes: int
    block_bytes: int
    bytes_per_second: Measurement


@dataclass(frozen=True)
class EnergyPoint:
    """Energy taken while a stage ran. tokens: processed in it, 0 for a stage without a model."""

    source: str  # the sensor: "rapl package-0", "ina3221 VDD_IN", …
    scope: Literal["board", "cpu"]
    stage: str  # "idle", "decode", "prefill"
    joules: float
    seconds: float
    tokens: int
    watts: float
    tokens_per_joule: float | None


@dataclass(frozen=True)
class Roof:
    """One limit of the roofline, at the number of threads that reaches the most.

    kind "memory": bytes_per_second, name "L1" … "DRAM"; kind "compute": ops_per_second, name as in ComputePoint.kind.
    """

    kind: Literal["memory", "compute"]
    name: str
    threads: Threads
    bytes_per_second: float | None
    ops_per_second: float | None


@dataclass(frozen=True)
class OperationPoint:
    """One kind of operation in a step, all calls of it together. seconds: per step, mean of the threads.

    bytes and operations are the kernels' own estimates per step; 0 where there is none (barrier, python). A roof is
    named where the operation has bytes; share_of_roof is the achieved rate over the attainable one.
    """

    kind: OperationKind
    calls: float  # per step
    seconds: Measurement
    share_of_step: Annotated[float, Range(0, 1)]
    bytes: int
    operations: int
    bytes_per_second: float | None
    ops_per_second: float | None
    ops_per_byte: float | None
    memory_roof: str | None  # names of Roofs
    compute_roof: str | None
    bound_by: Literal["memory", "compute"] | None
    share_of_roof: Annotated[float | None, Range(0, 1000)]


@dataclass(frozen=True)
class PhasePoint:
    """Prefill or decode at one place of the context. A step of decode is one token, of prefill `tokens_per_step`."""

    phase: PhaseKind
    threads: Threads
    tokens_per_step: Annotated[int, Range(1, 1 << 20)]
    context_tokens: int  # in the KV cache, at the middle of the measurement
    seconds_per_step: Measurement  # with tracing
    untraced_seconds_per_step: Measurement
    tracing_share: Annotated[float, Range(-1, 10)]  # what tracing adds
    tokens_per_second: Measurement  # without tracing
    bytes_per_step: int
    operations_per_step: int
    operations: tuple[OperationPoint, ...]


@dataclass(frozen=True)
class SpeedPoint:
    """Tokens per second of decode with so much in the context and so many threads."""

    context_tokens: int
    threads: Threads
    tokens_per_second: Measurement


@dataclass(frozen=True)
class FirstTokenPoint:
    """From a prompt of so many tokens to the first token of the answer, the model being loaded."""

    prompt_tokens: Annotated[int, Range(1, 1 << 30)]
    seconds: Measurement


@dataclass(frozen=True)
class ColdStart:
    """A new process up to its first token. cache_bypassed: the weights were not in the page cache.

    Parts are of the median run; what is left of `seconds` is the interpreter's own start.
    """

    cache_bypassed: bool
    seconds: Measurement
    import_seconds: float
    open_seconds: float  # manifest, kernels, tokenizer, memory
    first_token_seconds: float  # one token of prompt
    bytes_read: int  # of the weights


@dataclass(frozen=True)
class LinearFacts:
    """One kind of matrix: how it is stored and how much a token reads of it."""

    kind: Literal["embedding", "qkv", "o", "gate_up", "down", "head"]
    bits: Annotated[int, Range(1, 64)]
    group_size: int
    weights: int  # in all layers
    bytes: int  # of them, with scales and zero points


@dataclass(frozen=True)
class ModelProfile:
    """A model of a bundle, measured on the device."""

    name: str
    bundle: str  # the release's name, or the folder's
    profile: str  # the device profile that it was packed for
    isa: str
    activations: Literal["int8", "float"]
    kv_bits: Annotated[int, Range(1, 64)]
    threads: Threads  # of the phases
    context_length: Annotated[int, Range(1, 1 << 30)]
    weights_bytes: int  # of the file
    memory_bytes: int  # buffers and KV cache, without the mapped weights
    kv_bytes_per_token: int
    linears: tuple[LinearFacts, ...]
    phases: tuple[PhasePoint, ...]
    decode_by_context: tuple[SpeedPoint, ...]
    decode_by_threads: tuple[SpeedPoint, ...]
    first_token: tuple[FirstTokenPoint, ...]
    cold_start: tuple[ColdStart, ...]  # with and without the page cache


@dataclass(frozen=True)
class Profile:
    """The document. complete: False when it was interrupted; what is there is sound."""

    format: Literal["edgeawq-profile"]
    format_version: int
    tool_version: str
    created: str  # "2026-01-31T12:00:00Z"
    seconds: float  # that measuring took
    complete: bool
    device: DeviceFacts
    samples: tuple[Sample, ...]
    notes: tuple[Note, ...]
    unavailable: tuple[Unavailable, ...]
    clock: tuple[ClockPoint, ...]
    memory: tuple[BandwidthPoint, ...]
    compute: tuple[ComputePoint, ...]
    barrier: tuple[BarrierPoint, ...]
    pages: tuple[PagePoint, ...]
    storage: tuple[StoragePoint, ...]
    energy: tuple[EnergyPoint, ...]
    roofs: tuple[Roof, ...]
    model: ModelProfile | None

    def roof(self, kind: str, name: str) -> Roof | None:
        """The roof of that kind and name, or None."""
        return next((roof for roof in self.roofs if (roof.kind, roof.name) == (kind, name)), None)


def dump_profile(profile: Profile) -> bytes:
    """The document's JSON; `parse_profile` reads it back to an equal value."""
    return (json.dumps(to_json(profile), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8")


def parse_profile(data: bytes, where: str = "the file") -> Profile:
    """Read and check a measured profile; ProfileError for another format or version, or any value out of bounds."""
    document: Any = parse_text(data, where)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ProfileError(f"{where} is not a measured profile: its format is not {FORMAT!r}", remedy=REMEDY)
    version = document.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ProfileError(
            f"{where} has format version {ascii(version)[:20]}, this program reads {FORMAT_VERSION}",
            remedy="measure again with `edgeawq profile`, or use the version of edgeawq that wrote it",
        )
    return from_json(Profile, document, "")

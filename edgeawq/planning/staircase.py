"""How the rate of reading the same bytes again and again falls with their number, beyond the last cache.

A cache keeps a part of what is read each time, and that part does not grow with the whole. So the time of a pass is a
straight line over its bytes: bytes ÷ rate of memory − what the cache saves.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import combinations

from edgeawq.profiling.schema import Profile

MIN_POINTS = 3  # sizes beyond the caches, for a line


@dataclass(frozen=True)
class Staircase:
    """The line of the sizes beyond the caches. smallest_bytes: where it begins; saved_s: of each pass, by the cache."""

    bytes_per_s: float  # of a set so large that the cache saves nothing
    saved_s: float
    smallest_bytes: int

    def seconds(self, n_bytes: int) -> float:
        """Of reading a set of `n_bytes` once more; n_bytes is at least `smallest_bytes`."""
        return n_bytes / self.bytes_per_s - self.saved_s


def fit_staircase(profile: Profile, threads: int) -> Staircase | None:
    """The line through the reads of `threads` threads from DRAM; None with too few sizes or without a slope.

    The slope is the median of those of all pairs of sizes (Theil and Sen): one disturbed size does not bend it.
    """
    points = sorted(
        (point.bytes, point.bytes / point.bytes_per_second.median)
        for point in profile.memory
        if (point.kind, point.threads, point.level) == ("read", threads, "DRAM") and point.bytes_per_second.median > 0
    )
    if len({n_bytes for n_bytes, _ in points}) < MIN_POINTS:
        return None
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]]
    slope = statistics.median(slopes)
    if slope <= 0:
        return None
    saved = statistics.median(slope * n_bytes - seconds for n_bytes, seconds in points)
    # A cache saves time and never all of it: any other line is noise, and says nothing of larger sets.
    smallest = points[0][0]
    if saved <= 0 or slope - saved / smallest <= 0:
        return None
    return Staircase(1 / slope, saved, smallest)

"""A new process up to its first token: `python -m edgeawq.profiling.measure.cold_start BUNDLE THREADS`."""

from __future__ import annotations

import time

_STARTED = time.perf_counter()

import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from edgeawq.errors import ProfileError  # noqa: E402

TIMEOUT_S = 600.0


def main(arguments: list[str]) -> int:
    """Print how long importing, opening and the first token took, as JSON."""
    from edgeawq.runtime.engine import open_engine

    imported = time.perf_counter()
    with open_engine(Path(arguments[0]), n_threads=int(arguments[1]), context_length=64) as engine:
        opened = time.perf_counter()
        engine.decoder.forward([1])
        first = time.perf_counter()
    parts = {"import": imported - _STARTED, "open": opened - imported, "first_token": first - opened}
    print(json.dumps(parts))
    return 0


def run_cold_start(bundle: Path, n_threads: int) -> tuple[float, dict[str, float]]:
    """(seconds of the whole process, its parts). ProfileError when it fails."""
    command = [sys.executable, "-m", "edgeawq.profiling.measure.cold_start", str(bundle), str(n_threads)]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProfileError(f"a new process gave no token within {TIMEOUT_S:.0f} s", remedy="close programs") from None
    seconds = time.perf_counter() - start
    try:
        parts = json.loads(done.stdout)
        return seconds, {key: float(parts[key]) for key in ("import", "open", "first_token")}
    except (ValueError, KeyError, TypeError):
        tail = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        raise ProfileError(
            f"a new process failed to start the model: {tail}", remedy="`edgeawq run` says more"
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

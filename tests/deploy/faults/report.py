"""Prints the table of docs/reliability.md from the books of one or two runs: the default one, and one with all cases.

python -m tests.deploy.faults.report DEFAULT.json [ALL.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def make_table(runs: list[dict[str, Any]]) -> str:
    """Return the table; a kind that a run has no cases of is shown as "–"."""
    kinds = sorted({kind for run in runs for kind in run})
    lines = ["| kind of fault | " + " | ".join(["cases", "all cases"][: len(runs)]) + " | what was checked |"]
    lines.append("|---|" + "---:|" * len(runs) + "---|")
    for kind in kinds:
        checked = next(run[kind]["checked"] for run in runs if kind in run)
        counts = " | ".join(str(run[kind]["cases"]) if kind in run else "–" for run in runs)
        lines.append(f"| {kind} | {counts} | {checked} |")
    totals = " | ".join(str(sum(entry["cases"] for entry in run.values())) for run in runs)
    return "\n".join([*lines, f"| **together** | {totals} | |"])


def main() -> None:
    """Read the files named on the command line."""
    sys.stdout.write(make_table([json.loads(Path(name).read_text()) for name in sys.argv[1:]]) + "\n")


if __name__ == "__main__":
    main()

"""What is copied to a device is enough to measure it, and asks for nothing that only a host has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from packager.site_files import copy_own_packages

PROGRAM = """
import sys
from edgeawq.cli.profile import command
from edgeawq.cli.bench import command as bench
import edgeawq, edgeawq.profiling.measure.wire, edgeawq.profiling.measure.bench, edgeawq.profiling.measure.cold_start
host = {"numba", "rich", "torch", "paramiko", "cryptography", "edgeawq.deploy", "cpu_kernels.build"} & set(sys.modules)
print(edgeawq.__file__, sorted(host))
"""


def test_the_device_s_part_measures_by_itself(tmp_path: Path) -> None:
    copy_own_packages(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "edgeawq" / "__init__.py"), "[]"]
    assert not (tmp_path / "edgeawq" / "profiling" / "report_text.py").exists()

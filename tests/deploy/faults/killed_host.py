"""A push in a process of its own that ends itself with SIGKILL at a chosen remote operation.

Argument: JSON with root, bundle, site, channels, target (-1: it lives) and moment, and perhaps break_lock.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

from edgeawq.deploy.inventory import Device
from edgeawq.deploy.push import PushOptions, push
from edgeawq.deploy.upload import UploadOptions
from tests.deploy.faults.events import EventTransport


def main() -> None:
    request = json.loads(sys.argv[1])
    device = Device(name="localhost", transport="local", root=request["root"], python=sys.executable)
    options = PushOptions(
        health_timeout_s=60,
        break_lock=bool(request.get("break_lock")),
        upload=UploadOptions(channels=request["channels"]),
    )
    transport = EventTransport(
        request["target"], request["moment"], lambda transport, process: os.kill(os.getpid(), signal.SIGKILL)
    )
    report = push(transport, device, Path(request["bundle"]), options, site=lambda *_: Path(request["site"]))
    print(json.dumps({"events": transport.events, "report": dataclasses.asdict(report)}))


if __name__ == "__main__":
    main()

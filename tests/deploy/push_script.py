"""A push in a process of its own that ends itself with SIGKILL at a chosen moment.

Arguments: JSON with device (fields of Device), bundle, site, and kill: "stage:TEXT", "bytes:N" or "".
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from edgeawq.deploy.connect import connect
from edgeawq.deploy.inventory import Device
from edgeawq.deploy.push import SilentListener, push


class KillingListener(SilentListener):
    def __init__(self, kill: str) -> None:
        self.kind, _, self.value = kill.partition(":")
        self.sent = 0

    def stage(self, text: str) -> None:
        if self.kind == "stage" and text.startswith(self.value):
            os.kill(os.getpid(), signal.SIGKILL)

    def upload_advanced(self, count: int) -> None:
        self.sent += count
        if self.kind == "bytes" and self.sent >= int(self.value):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    request = json.loads(sys.argv[1])
    device = Device(**request["device"])
    with connect(device) as transport:
        report = push(
            transport,
            device,
            Path(request["bundle"]),
            listener=KillingListener(request["kill"]),
            site=lambda python, machine, tell: Path(request["site"]),
        )
    print(json.dumps(report.to_json()))


if __name__ == "__main__":
    main()

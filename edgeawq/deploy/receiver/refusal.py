"""What ends a request, or the session."""

from __future__ import annotations

import errno
from typing import Any


class Refusal(Exception):
    """A request that is not carried out; the host makes an error message of it."""

    def __init__(self, code: str, what: str, **details: Any) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.details = details


class HostGone(Exception):
    """The host has closed the connection or has been silent for too long."""


def explain_os_error(error: OSError, root: str) -> dict[str, Any]:
    """Return the part of an answer that names the kind of failure."""
    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"code": "no-space", "what": f"the device's disk is full ({root}): {what}"}
    if error.errno == errno.EROFS:
        return {"code": "read-only", "what": f"the device's file system is read-only: {what}"}
    if error.errno in (errno.EACCES, errno.EPERM):
        return {"code": "permission", "what": f"the device's user may not write: {what}"}
    return {"code": "os-error", "what": what}

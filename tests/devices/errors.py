"""What can go wrong with an emulated device."""

from __future__ import annotations

from edgeawq.errors import EdgeawqError


class EmulationError(EdgeawqError):
    """This machine cannot emulate a device, or the device did not start."""

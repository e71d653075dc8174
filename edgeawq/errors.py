"""The one exception tree of edgeawq.

EdgeawqError
├── UsageError                 an argument or option makes no sense                   (exit code 2)
├── MissingExtraError          an optional package is not installed
├── CheckpointError            a model folder or file cannot be used
│   ├── UnsupportedModelError  a model family or format that is not known
│   └── UnsafeFileError        a file that could run code when it is loaded
├── QuantizationError          the quantizer cannot go on
├── ProfileError               a device profile is unknown or wrong
├── KernelError                no native code for this CPU, or it does not load
├── BundleError                a bundle is damaged, incomplete or of an unknown format
├── SiteError                  the device's Python packages cannot be assembled
├── GenerationError            text generation cannot go on
│   └── ContextFullError       the context window is full
└── DeployError                a device cannot be reached or changed                  (exit code 3)
    ├── UnreachableError       no connection                                          (exit code 4)
    ├── HostKeyError           the host key is unknown or differs                     (exit code 5)
    ├── AuthenticationError    the device refuses the login                           (exit code 5)
    ├── DeviceLockedError      someone else is changing the device at this moment
    ├── DeviceUnfitError       Python, architecture, memory or free space do not fit
    ├── TransferError          the upload failed or what arrived is not what was sent
    ├── HealthCheckError       the new release does not answer; the old one stays
    └── UntrustedReleaseError  the device trusts no signature of the release, or it is too old
"""

from __future__ import annotations


class EdgeawqError(Exception):
    """A failure that a user can act on: what happened, with value and limit, and what to do about it."""

    exit_code = 1

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


class UsageError(EdgeawqError):
    """An argument or option makes no sense."""

    exit_code = 2


class MissingExtraError(EdgeawqError):
    """An optional package is not installed; the remedy is the exact pip command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this command needs the Python package {package!r}, which is not installed",
            remedy=f"pip install 'edgeawq[{extra}]'",
        )


class CheckpointError(EdgeawqError):
    """A model folder or file cannot be used."""


class UnsupportedModelError(CheckpointError):
    """A model family or format that is not known."""


class UnsafeFileError(CheckpointError):
    """A file that could run code when it is loaded."""


class QuantizationError(EdgeawqError):
    """The quantizer cannot go on."""


class ProfileError(EdgeawqError):
    """A device profile is unknown or wrong."""


class KernelError(EdgeawqError):
    """No native code for this CPU, or it does not load."""


class BundleError(EdgeawqError):
    """A bundle is damaged, incomplete or of an unknown format."""


class SiteError(EdgeawqError):
    """The device's Python packages cannot be assembled."""


class GenerationError(EdgeawqError):
    """Text generation cannot go on."""


class ContextFullError(GenerationError):
    """The context window is full."""


class DeployError(EdgeawqError):
    """A device cannot be reached or changed."""

    exit_code = 3


class UnreachableError(DeployError):
    """No connection to the device."""

    exit_code = 4


class HostKeyError(DeployError):
    """The device's host key is unknown or is not the one on record."""

    exit_code = 5


class AuthenticationError(DeployError):
    """The device refuses the login."""

    exit_code = 5


class DeviceLockedError(DeployError):
    """Someone else is changing the device at this moment."""


class DeviceUnfitError(DeployError):
    """Python, architecture, memory or free space of the device do not fit."""


class TransferError(DeployError):
    """The upload failed, or what arrived is not what was sent."""


class HealthCheckError(DeployError):
    """The new release does not answer as it should; the old one stays."""


class UntrustedReleaseError(DeployError):
    """A device refuses a release: no valid signature by a key it trusts, too old, or past its date."""

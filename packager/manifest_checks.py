"""What the parts of a manifest say of each other: files, kernels, and the places and shapes of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from packager.manifest import ALIGNMENT, MANIFEST_NAME, ROLES, Manifest, expected_tensors
from packager.strict_fields import refuse


def check_manifest(manifest: Manifest) -> None:
    """Raise BundleError where the manifest contradicts itself or the format."""
    _check_files(manifest)
    _check_kernels(manifest)
    _check_placement(manifest)
    _check_shapes(manifest)


def _check_files(manifest: Manifest) -> None:
    # Case is folded because some file systems do, and one file would then overwrite the other.
    _check_unique((entry.path.casefold() for entry in manifest.files), "file")
    for role, (least, most, _) in ROLES.items():
        count = sum(entry.role == role for entry in manifest.files)
        if not least <= count <= most:
            raise refuse(f"the manifest lists {count} files of role {role!r}, not {least} to {most}")
    folders: set[str] = set()
    for entry in manifest.files:
        parts = entry.path.casefold().split("/")
        folders.update("/".join(parts[:count]) for count in range(1, len(parts)))
    for entry in manifest.files:
        if entry.path.casefold() in folders or entry.path.casefold() == MANIFEST_NAME:
            raise refuse(f"the path {entry.path!r} in the manifest collides with another name")


def _check_kernels(manifest: Manifest) -> None:
    files = sorted(entry.path for entry in manifest.files if entry.role == "kernels")
    if sorted(kernel.file for kernel in manifest.kernels) != files:
        raise refuse("the manifest's kernels are not exactly its files of role 'kernels'")
    isas = [kernel.isa for kernel in manifest.kernels]
    _check_unique(isas, "kernel for the instruction set")
    if sorted(isas) != sorted(manifest.device.isas):
        raise refuse("the manifest's kernels are not for exactly the device's instruction sets")
    needed = {tensor.bits for tensor in manifest.tensors if tensor.kind == "linear"}
    for kernel in manifest.kernels:
        if not needed <= set(kernel.bits):
            raise refuse(f"{kernel.file} takes weights of {kernel.bits} bits, the tensors have {sorted(needed)}")


def _check_placement(manifest: Manifest) -> None:
    _check_unique((tensor.name for tensor in manifest.tensors), "tensor")
    weights = manifest.file("weights")
    limit = 0 if weights is None else weights.size
    end = 0
    for tensor in sorted(manifest.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset % ALIGNMENT:
            raise refuse(f"tensor {tensor.name!r} starts at {tensor.offset}, no multiple of {ALIGNMENT}")
        if tensor.offset < end:
            raise refuse(f"tensor {tensor.name!r} at {tensor.offset} overlaps the one before, which ends at {end}")
        end = tensor.offset + tensor.nbytes
        if end > limit:
            raise refuse(f"tensor {tensor.name!r} ends at {end}, beyond the {limit} bytes of the weights")


def _check_shapes(manifest: Manifest) -> None:
    given = {tensor.name: tensor for tensor in manifest.tensors}
    for name, kind, out_features, in_features, required in expected_tensors(manifest.model):
        tensor = given.pop(name, None)
        if tensor is None:
            if required:
                raise refuse(f"tensor {name!r} is missing")
        elif (tensor.kind, tensor.out_features, tensor.in_features) != (kind, out_features, in_features):
            raise refuse(
                f"tensor {name!r} is {tensor.kind} [{tensor.out_features}, {tensor.in_features}],"
                f" the model needs {kind} [{out_features}, {in_features}]"
            )
    if given:
        raise refuse(f"unknown tensors: {', '.join(sorted(given)[:3])}")


def _check_unique(names: Iterator[str] | Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise refuse(f"the manifest lists the {what} {name!r} twice")
        seen.add(name)

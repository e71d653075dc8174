"""`python -m cpu_kernels.worker TARGET ISA KIND BITS OBJECT ASSEMBLY`: one compilation, one process."""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Write the object and its assembly; a KernelError is one line on standard error and exit code 1."""
    from cpu_kernels.crosscompile import compile_object
    from cpu_kernels.exports import decoder_exports, kernel_exports, linear_exports
    from cpu_kernels.isa.catalog import find_isa
    from cpu_kernels.probe.exports import probe_exports
    from device_profiles.target import parse_target
    from edgeawq.errors import EdgeawqError

    target_text, isa_name, kind, bits_text, object_path, assembly_path = arguments
    try:
        target = parse_target(target_text)
        isa = find_isa(isa_name, target.machine)
        if kind == "probe":
            exports = probe_exports(isa, target)
        else:
            kinds = {"decoder": decoder_exports, "kernels": kernel_exports, "linear": linear_exports}
            exports = kinds[kind](isa, [int(bits) for bits in bits_text.split(",")])
        compiled = compile_object(target, exports)
    except EdgeawqError as error:
        print(f"{error.what}\n{error.remedy}", file=sys.stderr)
        return 1
    Path(object_path).write_bytes(compiled.native)
    Path(assembly_path).write_text(compiled.assembly)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

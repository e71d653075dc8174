"""An Arm program without a C library that holds a kernel object and calls what it is told to.

Its LLVM text is compiled by llvmlite and linked by lld, so that neither a cross compiler nor a foreign root tree is
needed. The program maps memory at BASE, reads an image into it from standard input, makes the calls that the image
lists, and writes the image back:

    int64 [4] at BASE: bytes to write back, number of calls, address of the calls, unused
    one call: int64 [1 + ARITY]: index of the function, its arguments
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

BASE = 0x20_0000_0000
SIZE = 1 << 30  # reserved, not touched
ARITY = 10
# What the driver itself can do: memcpy(to, from, bytes), poke(address, int64), and
# spawn(index of a function, its two arguments, top of the stack): a thread that ends with the function.
BUILTINS = ("memcpy", "poke", "spawn")

# syscall(number, 6 arguments) as the C library has it, without errno. llvmlite has no assembler for a foreign machine.
_SYSCALL = (
    0xAA0003E8,  # mov x8, x0
    0xAA0103E0,  # mov x0, x1
    0xAA0203E1,  # mov x1, x2
    0xAA0303E2,  # mov x2, x3
    0xAA0403E3,  # mov x3, x4
    0xAA0503E4,  # mov x4, x5
    0xAA0603E5,  # mov x5, x6
    0xD4000001,  # svc #0
    0xD65F03C0,  # ret
)
# start_thread(function, first argument, second argument, top of the stack)
_START_THREAD = (
    0xAA0003EA,  # mov x10, x0
    0xAA0103EB,  # mov x11, x1
    0xAA0203EC,  # mov x12, x2
    0xAA0303E1,  # mov x1, x3
    0xD281E000,  # mov x0, #0xf00   CLONE_VM, FS, FILES, SIGHAND
    0xF2A000A0,  # movk x0, #5, lsl #16   CLONE_THREAD, SYSVSEM
    0xAA1F03E2,  # mov x2, xzr
    0xAA1F03E3,  # mov x3, xzr
    0xAA1F03E4,  # mov x4, xzr
    0xD2801B88,  # mov x8, #220   clone
    0xD4000001,  # svc #0
    0xB4000040,  # cbz x0, child
    0xD65F03C0,  # ret
    0xAA0B03E0,  # child: mov x0, x11
    0xAA0C03E1,  # mov x1, x12
    0xD63F0140,  # blr x10
    0xD2800BA8,  # mov x8, #93   exit
    0xD4000001,  # svc #0
)

_TEXT = r"""
target triple = "aarch64-unknown-linux-gnu"
@syscall = constant [{n_syscall} x i32] [{syscall}], section ".text.syscall", align 4
@start_thread = constant [{n_start_thread} x i32] [{start_thread}], section ".text.start_thread", align 4
@table = constant [{n_functions} x ptr] [{functions}]
{declarations}

define void @poke(i64 %address, i64 %value) {{
  %p = inttoptr i64 %address to ptr
  store i64 %value, ptr %p
  ret void
}}

define void @spawn(i64 %which, i64 %first, i64 %second, i64 %stack) {{
  %slot = getelementptr [{n_functions} x ptr], ptr @table, i64 0, i64 %which
  %function = load ptr, ptr %slot
  call void @start_thread(ptr %function, i64 %first, i64 %second, i64 %stack)
  ret void
}}

define ptr @memcpy(ptr %to, ptr %from, i64 %n) {{
entry:
  %none = icmp eq i64 %n, 0
  br i1 %none, label %end, label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %a = getelementptr i8, ptr %from, i64 %i
  %b = getelementptr i8, ptr %to, i64 %i
  %v = load i8, ptr %a
  store i8 %v, ptr %b
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %end
end:
  ret ptr %to
}}

define ptr @memmove(ptr %to, ptr %from, i64 %n) {{
entry:
  %t = ptrtoint ptr %to to i64
  %f = ptrtoint ptr %from to i64
  %forward = icmp ult i64 %t, %f
  br i1 %forward, label %copy, label %test
copy:
  %r = call ptr @memcpy(ptr %to, ptr %from, i64 %n)
  ret ptr %to
test:
  %left = phi i64 [%n, %entry], [%next, %loop]
  %done = icmp eq i64 %left, 0
  br i1 %done, label %end, label %loop
loop:
  %next = sub i64 %left, 1
  %a = getelementptr i8, ptr %from, i64 %next
  %b = getelementptr i8, ptr %to, i64 %next
  %v = load i8, ptr %a
  store i8 %v, ptr %b
  br label %test
end:
  ret ptr %to
}}

define ptr @memset(ptr %to, i32 %value, i64 %n) {{
entry:
  %byte = trunc i32 %value to i8
  %none = icmp eq i64 %n, 0
  br i1 %none, label %end, label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %b = getelementptr i8, ptr %to, i64 %i
  store i8 %byte, ptr %b
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %end
end:
  ret ptr %to
}}

define void @_start() {{
entry:
  ; mmap(BASE, SIZE, read | write, private | anonymous | fixed | noreserve)
  %m = call i64 @syscall(i64 222, i64 {base}, i64 {size}, i64 3, i64 {map_flags}, i64 -1, i64 0)
  %mapped = icmp eq i64 %m, {base}
  br i1 %mapped, label %read, label %failed
read:
  %have = phi i64 [0, %entry], [%more, %read_next]
  %at = add i64 %have, {base}
  %room = sub i64 {size}, %have
  %got = call i64 @syscall(i64 63, i64 0, i64 %at, i64 %room, i64 0, i64 0, i64 0)
  %bad = icmp slt i64 %got, 0
  br i1 %bad, label %failed, label %read_next
read_next:
  %more = add i64 %have, %got
  %eof = icmp eq i64 %got, 0
  br i1 %eof, label %start, label %read
start:
  %header = inttoptr i64 {base} to ptr
  %bytes = load i64, ptr %header
  %count_p = getelementptr i64, ptr %header, i64 1
  %count = load i64, ptr %count_p
  %calls_p = getelementptr i64, ptr %header, i64 2
  %calls = load ptr, ptr %calls_p
  br label %next_call
next_call:
  %index = phi i64 [0, %start], [%index_after, %call]
  %any = icmp ult i64 %index, %count
  br i1 %any, label %call, label %write
call:
  %offset = mul i64 %index, {call_bytes}
  %record = getelementptr i8, ptr %calls, i64 %offset
  %which = load i64, ptr %record
  %slot = getelementptr [{n_functions} x ptr], ptr @table, i64 0, i64 %which
  %function = load ptr, ptr %slot
{loads}
  call void %function({arguments})
  %index_after = add i64 %index, 1
  br label %next_call
write:
  %sent = phi i64 [0, %next_call], [%sent_after, %write_more]
  %from = add i64 %sent, {base}
  %left = sub i64 %bytes, %sent
  %put = call i64 @syscall(i64 64, i64 1, i64 %from, i64 %left, i64 0, i64 0, i64 0)
  %stuck = icmp sle i64 %put, 0
  br i1 %stuck, label %failed, label %write_more
write_more:
  %sent_after = add i64 %sent, %put
  %all = icmp uge i64 %sent_after, %bytes
  br i1 %all, label %finished, label %write
finished:
  call i64 @syscall(i64 94, i64 0, i64 0, i64 0, i64 0, i64 0, i64 0)
  unreachable
failed:
  call i64 @syscall(i64 94, i64 99, i64 0, i64 0, i64 0, i64 0, i64 0)
  unreachable
}}
"""


def driver_text(symbols: list[str]) -> str:
    """LLVM text of a driver for an object that defines `symbols`; a call's index counts builtins, then these."""
    functions = [*BUILTINS, *symbols]
    loads, arguments = [], []
    for i in range(ARITY):
        loads.append(f"  %p{i} = getelementptr i64, ptr %record, i64 {i + 1}\n  %a{i} = load i64, ptr %p{i}")
        arguments.append(f"i64 %a{i}")
    return _TEXT.format(
        n_syscall=len(_SYSCALL),
        syscall=", ".join(f"i32 {word}" for word in _SYSCALL),
        n_start_thread=len(_START_THREAD),
        start_thread=", ".join(f"i32 {word}" for word in _START_THREAD),
        n_functions=len(functions),
        functions=", ".join(f"ptr @{name}" for name in functions),
        declarations="\n".join(f"declare void @{name}()" for name in symbols),
        base=BASE,
        size=SIZE,
        map_flags=0x02 | 0x10 | 0x20 | 0x4000,
        call_bytes=8 * (1 + ARITY),
        loads="\n".join(loads),
        arguments=", ".join(arguments),
    )


def compile_text(text: str) -> bytes:
    """An ELF object for plain Armv8.0."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    machine = target.create_target_machine(opt=2, cpu="generic", features="")
    module = llvm.parse_assembly(text)
    module.verify()
    native: bytes = machine.emit_object(module)
    return native


def exported_symbols(assembly: str) -> list[str]:
    """The functions that a kernel object offers, from its listing."""
    return sorted(set(re.findall(r"^\s*\.globl\s+(\w+)", assembly, re.MULTILINE)))


def link_program(lld: str, native: bytes, symbols: list[str], folder: Path) -> Path:
    """A static Arm program of the driver and a kernel object."""
    kernels, driver, program = folder / "kernels.o", folder / "driver.o", folder / "program"
    kernels.write_bytes(native)
    driver.write_bytes(compile_text(driver_text(symbols)))
    done = subprocess.run(
        [lld, "-static", "-o", str(program), str(driver), str(kernels)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    program.chmod(0o755)
    return program

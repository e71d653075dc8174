"""A small bundle with a valid manifest, and a site folder whose `edgeawq` only answers what a push and a chat ask."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
from pathlib import Path

from packager.manifest import (
    KERNEL_ABI,
    DeviceSpec,
    FileEntry,
    KernelEntry,
    Manifest,
    ModelSpec,
    TensorEntry,
    dump_manifest,
    expected_tensors,
)
from packager.manifest_reader import parse_manifest

STUB_MAIN = """
import json, os, signal, sys, time

command, bundle, *rest = sys.argv[1:]
golden = json.load(open(os.path.join(bundle, "golden.json")))
if command == "run":
    assert rest == ["--golden", "--json"], rest
    behave = golden["behave"]
    if behave == "hang":
        time.sleep(600)
    if behave == "crash":
        sys.exit("stub: illegal instruction")
    if behave == "loud":
        sys.stdout.write("x" * 3_000_000)
    if behave == "endless":
        while True:
            sys.stdout.write("x" * 100_000)
    if behave == "closes":
        os.close(1), os.close(2)
        time.sleep(600)
    if behave == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    if behave == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if behave == "silent":
        sys.exit(0)
    if behave == "lies":
        print('{"ok": true}')
        sys.exit(3)
    if behave == "odd":
        print('{"ok": "true"}')
        sys.exit(0)
    if behave == "leaves a child":
        if os.fork() == 0:
            time.sleep(600)
    weights = open(os.path.join(bundle, "weights.bin"), "rb").read(4096)
    ok = behave in ("good", "loud") and sum(weights) == golden["sum"]
    print("a line that is not the answer")
    print(json.dumps({"ok": ok, "marker": golden["marker"], "decode_tokens_per_s": 12.5}))
    sys.exit(0 if ok else 1)
assert command == "chat"
if rest[:1] == ["--prompt"]:
    print("answer to", rest[1], "by", golden["marker"])
elif rest and rest[0].startswith("--prompt="):
    print("answer to", rest[0].removeprefix("--prompt="), "by", golden["marker"])
elif rest[:1] == ["--exit"]:
    sys.exit(int(rest[1]))
elif not sys.stdin.isatty():
    print("piped:", sys.stdin.read().strip(), "✓")
    print("to stderr", file=sys.stderr)
else:
    print("terminal", *os.get_terminal_size(), os.environ.get("TERM"), flush=True)
    def say(text):  # no print: a signal may come in the middle of one
        os.write(1, (text + "\\n").encode())
    signal.signal(signal.SIGWINCH, lambda *_: say("resized %d %d" % tuple(os.get_terminal_size())))
    signal.signal(signal.SIGINT, lambda *_: say("interrupted"))
    while True:
        line = sys.stdin.readline()
        if not line or line.strip() == "quit":
            sys.exit(7)
        print("you said:", line.strip(), flush=True)
"""


def make_site(folder: Path, *, marker: str = "site", n_files: int = 12) -> Path:
    """Write a site folder: the stub, and some more files in nested folders, an empty one among them."""
    package = folder / "edgeawq"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"MARKER = {marker!r}\n")
    (package / "__main__.py").write_text(STUB_MAIN)
    for number in range(n_files):
        nested = folder / "package" / f"part{number % 3}"
        nested.mkdir(parents=True, exist_ok=True)
        (nested / f"module{number}.py").write_text(f"value = {number}\n" * number)
    return folder


def make_bundle(
    folder: Path,
    *,
    marker: str = "one",
    behave: str = "good",
    weights_bytes: int = 300_000,
    seed: int | None = None,
    machine: str | None = None,
    n_layers: int = 1,
    hidden_size: int = 32,
    changed: str = "",
    zeros: int = 0,
) -> Path:
    """Write a bundle of a tiny model; its weights are random bytes, at least as many as the model needs.

    changed: tensors whose names begin with this get other bytes than `seed` gives; zeros: so many bytes of nothing
    follow the weights, for a large file that costs neither time nor memory.
    """
    folder.mkdir(parents=True)
    model = ModelSpec(
        name="tiny",
        model_type="llama",
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size if hidden_size > 32 else 32,
        n_layers=n_layers,
        n_heads=hidden_size // 32,
        n_kv_heads=hidden_size // 32,
        head_dim=32,
        vocab_size=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        rope_scaling=None,
        rope_attention_factor=1.0,
        bos_token_id=None,
        eos_token_ids=(1,),
    )
    tensors: list[TensorEntry] = []
    offset = 0
    for name, kind, out_features, in_features, _ in expected_tensors(model):
        nbytes = 4 * out_features if kind == "f32" else out_features * in_features
        bits, group, layout = (32, 0, "") if kind == "f32" else (8, 32, "neon")
        tensors.append(TensorEntry(name, kind, bits, group, out_features, in_features, layout, offset, nbytes))
        offset += -(-nbytes // 64) * 64
    random_bytes = random.Random(seed) if seed is not None else random.SystemRandom()
    weights = bytearray(random_bytes.randbytes(max(weights_bytes, offset)))
    for tensor in tensors:
        if changed and tensor.name.startswith(changed):
            weights[tensor.offset : tensor.offset + tensor.nbytes] = os.urandom(tensor.nbytes)
    machine = machine or platform.machine()
    triple = f"{machine}-unknown-linux-gnu"
    golden = {"marker": marker, "behave": behave, "sum": sum(weights[:4096])}
    contents = {
        "weights.bin": ("weights", weights),
        "kernels/neon.o": ("kernels", b"\x7fELF" + os.urandom(100)),
        "tokenizer.json": ("tokenizer", b"{}"),
        "generation.json": ("generation", b"{}"),
        "golden.json": ("golden", json.dumps(golden).encode()),
    }
    files = []
    for path, (role, data) in contents.items():
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
        if role == "weights" and zeros:
            os.truncate(target, len(data) + zeros)
        digest = hashlib.sha256()
        with target.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        files.append(FileEntry(path, target.stat().st_size, digest.hexdigest(), role))
    manifest = Manifest(
        tool_name="edgeawq",
        tool_version="0.1.0",
        model=model,
        device=DeviceSpec("pi4", ("neon",), triple, "cortex-a72"),
        files=tuple(files),
        kernels=(KernelEntry("kernels/neon.o", "neon", triple, "cortex-a72", (), (8,), KERNEL_ABI),),
        tensors=tuple(tensors),
    )
    data = dump_manifest(manifest)
    parse_manifest(data)
    (folder / "manifest.json").write_bytes(data)
    return folder

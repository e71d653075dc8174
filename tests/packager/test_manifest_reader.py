from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpu_kernels.abi import ABI_VERSION
from edgeawq.errors import BundleError
from packager.manifest import ALIGNMENT, KERNEL_ABI, MAX_MANIFEST_BYTES, dump_manifest, expected_tensors
from packager.manifest_reader import parse_manifest, read_manifest
from tests.packager.documents import make_document, parse


def refused(document: Any, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        parse(document)
    assert caught.value.remedy


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2, 31])
def test_dump_and_parse_are_inverse(n_layers: int, tied: bool) -> None:
    manifest = parse(make_document(n_layers, tied))
    data = dump_manifest(manifest)
    assert parse_manifest(data) == manifest
    assert dump_manifest(parse_manifest(data)) == data
    assert len(manifest.tensors) == 7 * n_layers + (3 if tied else 4)
    assert manifest.tensor("embed") == manifest.tensors[0]
    assert manifest.tensor("nothing") is None
    assert manifest.file("golden") is None


def test_the_abi_is_the_one_of_the_kernels() -> None:
    assert KERNEL_ABI == ABI_VERSION


def test_key_order_does_not_matter() -> None:
    document = make_document()
    backwards = {key: document[key] for key in reversed(document)}
    assert dump_manifest(parse(document)) == dump_manifest(parse(backwards))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../weights.bin",
        "a/../../b",
        "a/..",
        "./weights.bin",
        "a//b",
        "a\\b",
        "C:\\b",
        "",
        "a/",
        ".hidden",
        "-rf",
        "ä.o",
        "a b",
        "a\nb",
        "a\0b",
        "a/b/c/d/e",
        "x" * 65,
        "manifest.json",
        "Manifest.JSON",
        None,
        7,
        ["weights.bin"],
    ],
)
def test_unsafe_paths_are_refused(path: Any) -> None:
    document = make_document()
    document["files"][2]["path"] = path
    refused(document, "path")
    document = make_document()
    document["kernels"][0]["file"] = path
    refused(document, "path|kernels")


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one value: "tensors.0.bits"; DELETE removes the key."""

    def apply(document: dict[str, Any]) -> None:
        *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        target: Any = document
        for key in parents:
            target = target[key]
        if value == "DELETE":
            del target[last]
        else:
            target[last] = value

    return apply


CHANGES = {
    "another format": (change("format", "other"), "not a bundle"),
    "a later version": (change("format_version", 2), "format version 2"),
    "version true": (change("format_version", True), "format version True"),
    "an unknown key": (change("surprise", 1), "unknown 'surprise'"),
    "an unknown key deeper": (change("model.surprise", 1), "unknown 'surprise'"),
    "a missing key": (change("model.head_dim", "DELETE"), "missing 'head_dim'"),
    "text as number": (change("model.hidden_size", "64"), "hidden_size"),
    "a float as integer": (change("model.hidden_size", 64.0), "hidden_size"),
    "a boolean as integer": (change("model.n_layers", True), "n_layers"),
    "a huge width": (change("model.hidden_size", 1 << 40), "hidden_size"),
    "a huge number of layers": (change("model.n_layers", 10**9), "n_layers"),
    "heads that do not share": (change("model.n_kv_heads", 3), "KV heads"),
    "an odd head": (change("model.head_dim", 15), "head_dim"),
    "a negative token": (change("model.eos_token_ids", [-1]), "token ids"),
    "a boolean token": (change("model.eos_token_ids", [True]), "token ids"),
    "many tokens": (change("model.eos_token_ids", [1] * 65), "eos_token_ids"),
    "a name with a control character": (change("model.name", "a\x1b[2J"), "name"),
    "two entries for a file": (lambda d: d["files"].append(d["files"][0]), "twice"),
    "two names that differ in case": (change("files.2.path", "Weights.bin"), "twice"),
    "a file that is a folder": (change("files.2.path", "kernels"), "collides"),
    "no weights": (lambda d: d["files"].pop(0), "'weights'"),
    "two tokenizers": (change("files.3.role", "tokenizer"), "'tokenizer'"),
    "an unknown role": (change("files.3.role", "virus"), "role"),
    "a role that is a list": (change("files.3.role", []), "role"),
    "a huge tokenizer": (change("files.2.size", 1 << 40), "size"),
    "a negative size": (change("files.0.size", -1), "size"),
    "an upper-case hash": (change("files.0.sha256", "A" * 64), "sha256"),
    "a short hash": (change("files.0.sha256", "0" * 63), "sha256"),
    "many files": (lambda d: d["files"].extend(d["files"] * 100), "files"),
    "a kernel of another file": (change("kernels.0.file", "tokenizer.json"), "kernels"),
    "a kernel for another device": (change("kernels.0.isa", "neon"), "instruction sets"),
    "another ABI": (change("kernels.0.abi", 1), "abi"),
    "a wrong feature": (change("kernels.0.features", ["fma"]), "features"),
    "two kernels for one set": (lambda d: d["kernels"].append(d["kernels"][0]), "kernels"),
    "an unknown kind": (change("tensors.0.kind", "f64"), "kind"),
    "a tensor twice": (change("tensors.2.name", "embed"), "twice"),
    "a misaligned tensor": (change("tensors.3.offset", 32), "multiple of 64"),
    "overlapping tensors": (change("tensors.1.offset", 0), "overlaps"),
    "a tensor beyond the end": (change("tensors.0.offset", 1 << 20), "beyond"),
    "a tensor far beyond the end": (change("tensors.0.offset", 1 << 60), "offset"),
    "a tensor that is too small": (change("tensors.0.nbytes", 64), "too few"),
    "a vector of the wrong size": (change("tensors.1.nbytes", 128), "not the 256 of its shape"),
    "a vector with bits": (change("tensors.1.bits", 4), "f32"),
    "5 bits": (change("tensors.0.bits", 5), "bits"),
    "no layout": (change("tensors.0.layout", ""), "layout"),
    "a group that does not divide": (change("tensors.0.group_size", 48), "groups of 48"),
    "no group": (change("tensors.0.group_size", 0), "groups of 0"),
    "a wrong shape": (change("tensors.2.out_features", 96), "the model needs linear"),
    "a missing tensor": (lambda d: d["tensors"].pop(4), "is missing"),
    "a tensor too many": (change("tensors.3.name", "layers.7.qkv_bias"), "unknown tensors"),
    "a head beside a tied embedding": (change("model.tie_word_embeddings", True), "unknown tensors: head"),
    "a bias in a model without": (change("model.attention_bias", False), "unknown tensors: layers.0.qkv_bias"),
    "no tensors at all": (change("tensors", []), "is missing"),
    "tensors as an object": (change("tensors", {}), "list"),
    "a tensor that is none": (change("tensors.0", None), "not an object"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_one_wrong_value_is_refused(case: str) -> None:
    mutate, match = CHANGES[case]
    document = make_document()
    parse(document)
    mutate(document)
    refused(document, match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "not a bundle"),
        (b'{"format": NaN}', "NaN"),
        (b'{"format": 1, "format": 2}', "twice"),
        (b'{"a":' * 100_000, "JSON"),
        (b"1" * 10_000, "JSON"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "limit"),
    ],
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        parse_manifest(data)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(["../x", "/x", "kernels/avx2.o", "f32", "linear", "weights"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(path for key, inner in items for path in paths_of(inner, (*prefix, key)))]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_manifests_are_parsed_or_refused_and_never_crash(data: st.DataObject) -> None:
    document = copy.deepcopy(make_document(1))
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(paths_of(document)[1:]))
        target: Any = document
        for key in parents:
            target = target[key]
        action = data.draw(st.sampled_from(["replace", "delete", "duplicate"]))
        if action == "delete":
            del target[last]
        elif action == "duplicate" and isinstance(target, list):
            target.insert(last, copy.deepcopy(target[last]))
        else:
            target[last] = data.draw(JSON_VALUES)
    try:
        manifest = parse(document)
    except BundleError:
        return
    weights = manifest.file("weights")
    assert weights is not None
    names = {name for name, *_ in expected_tensors(manifest.model)}
    end = 0
    for tensor in sorted(manifest.tensors, key=lambda tensor: tensor.offset):
        assert end <= tensor.offset <= tensor.offset + tensor.nbytes <= weights.size
        assert tensor.offset % ALIGNMENT == 0
        assert tensor.name in names
        end = tensor.offset + tensor.nbytes
    for entry in manifest.files:
        assert not os.path.isabs(entry.path)
        assert os.path.normpath(entry.path) == entry.path
        assert ".." not in entry.path.split("/")
    assert parse_manifest(dump_manifest(manifest)) == manifest


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_crash(data: st.DataObject) -> None:
    raw = bytearray(json.dumps(make_document(1)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        action = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if action == "flip":
            raw[position] ^= data.draw(st.integers(1, 255))
        elif action == "cut":
            del raw[position : position + data.draw(st.integers(1, 200))]
            raw = raw or bytearray(b"{")
        else:
            raw[position:position] = data.draw(st.binary(max_size=8))
    try:
        parse_manifest(bytes(raw))
    except BundleError as error:
        assert error.what


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        read_manifest(tmp_path)

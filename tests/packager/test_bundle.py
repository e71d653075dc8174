from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeawq.errors import BundleError
from packager import bundle as bundle_module
from packager.bundle import BundleWriter, add_golden, check_target, is_bundle
from packager.bundle_files import verify_files
from packager.manifest import MANIFEST_NAME, Manifest, dump_manifest
from packager.manifest_reader import read_manifest
from tests.packager.documents import make_document, parse, write_bundle


def write_with(target: Path, *, overwrite: bool = False, fill: int = 7, stop_after: str = "") -> Manifest:
    """Write the model of `make_document` through a BundleWriter, or raise RuntimeError at a given point."""
    template = parse(make_document(1))
    with BundleWriter(target, overwrite=overwrite) as writer:
        for tensor in template.tensors:
            half = tensor.nbytes // 2
            chunks = [np.full(half, fill, np.uint8), np.full(tensor.nbytes - half, fill, np.uint8)]
            fields = {key: getattr(tensor, key) for key in ("kind", "bits", "group_size", "layout")}
            writer.add_tensor(
                tensor.name, chunks, out_features=tensor.out_features, in_features=tensor.in_features, **fields
            )
        if stop_after == "tensors":
            raise RuntimeError(stop_after)
        for entry in template.files[1:]:
            writer.add_file(entry.path, entry.role, bytes([fill]) * entry.size)
        manifest = writer.finish(template)
        if stop_after == "finish":
            raise RuntimeError(stop_after)
        writer.publish()
    return manifest


def test_what_was_written_is_read_and_verified(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "tiny.edgeawq"
    manifest = write_with(target)
    assert read_manifest(target) == manifest
    verify_files(target, manifest)
    for tensor in manifest.tensors:
        assert tensor.offset % 64 == 0
        data = (target / "weights.bin").read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
        assert data == bytes([7]) * tensor.nbytes
    assert (target / "weights.bin").stat().st_size % 64 == 0
    assert os.listdir(target.parent) == ["tiny.edgeawq"]
    for path in (target, target / "kernels"):
        assert path.stat().st_mode & 0o777 == 0o755
    for path in (target / "weights.bin", target / "manifest.json"):
        assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("stop_after", ["tensors", "finish"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_nothing_or_the_old_bundle(tmp_path: Path, stop_after: str, existing: bool) -> None:
    target = tmp_path / "tiny.edgeawq"
    old = write_with(target) if existing else None
    with pytest.raises(RuntimeError, match=stop_after):
        write_with(target, overwrite=True, fill=9, stop_after=stop_after)
    assert os.listdir(tmp_path) == (["tiny.edgeawq"] if existing else [])
    if old is not None:
        verify_files(target, old)


@pytest.mark.parametrize("exchange", [True, False])
def test_an_old_bundle_is_replaced_as_a_whole(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(bundle_module, "_exchange", lambda first, second: False)
    target = tmp_path / "tiny.edgeawq"
    old = write_with(target)
    (target / "left-over").write_text("from the old one")
    new = write_with(target, overwrite=True, fill=9)
    assert old != new
    verify_files(target, new)
    assert not (target / "left-over").exists()
    assert os.listdir(tmp_path) == ["tiny.edgeawq"]


def test_the_old_bundle_comes_back_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "_exchange", lambda first, second: False)
    target = tmp_path / "tiny.edgeawq"
    old = write_with(target)
    replace = os.replace

    def fail_once(source: Path, destination: Path) -> None:
        if "partial" in source.name and not source.name.endswith(".old") and destination == target:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(BundleError, match="Input/output error"):
        write_with(target, overwrite=True, fill=9)
    verify_files(target, old)


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "tiny.edgeawq"
    manifest = write_with(target)
    with pytest.raises(BundleError, match="exists") as caught:
        write_with(target, fill=9)
    assert "--overwrite" in caught.value.remedy
    verify_files(target, manifest)

    home = tmp_path / "home"
    home.mkdir()
    (home / "letter").write_text("dear")
    file = tmp_path / "file"
    file.write_text("text")
    link = tmp_path / "link"
    link.symlink_to(target)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for path, match in (
        (home, "not a bundle"),
        (file, "not a folder"),
        (link, "not a folder"),
        (dangling, "not a fol"),
    ):
        with pytest.raises(BundleError, match=match):
            write_with(path, overwrite=True)
    assert (home / "letter").read_text() == "dear"
    assert file.read_text() == "text"


def test_an_empty_folder_may_become_a_bundle(tmp_path: Path) -> None:
    target = tmp_path / "empty"
    target.mkdir()
    verify_files(target, write_with(target))


def test_what_counts_as_a_bundle(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    for text in ("", "{", "[]", '{"format": "other"}', "[" * 100_000):
        (tmp_path / MANIFEST_NAME).write_text(text)
        assert not is_bundle(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text('{"format": "edgeawq-bundle", "format_version": 99}')
    assert is_bundle(tmp_path)
    check_target(tmp_path, overwrite=True)


def test_a_killed_writer_is_swept_up_and_a_living_one_is_not(tmp_path: Path) -> None:
    target = tmp_path / "tiny.edgeawq"
    code = (
        "import os, signal, sys; from pathlib import Path; from packager.bundle import BundleWriter\n"
        "with BundleWriter(Path(sys.argv[1])) as writer:\n"
        "    writer.add_file('a.json', 'generation', b'x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    left = os.listdir(tmp_path)
    assert len(left) == 1
    assert left[0].startswith(".tiny.edgeawq.partial-")
    with BundleWriter(target) as living:
        assert os.listdir(tmp_path) == [living.folder.name]
        write_with(target)
        assert sorted(os.listdir(tmp_path)) == sorted([living.folder.name, "tiny.edgeawq"])
    assert os.listdir(tmp_path) == ["tiny.edgeawq"]


def test_two_writers_at_once_cannot_both_win_without_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "tiny.edgeawq"
    template = parse(make_document(1))
    with BundleWriter(target) as slow:
        manifest = write_with(target)
        for tensor in template.tensors:
            fields = {key: value for key, value in vars(tensor).items() if key not in ("name", "offset", "nbytes")}
            slow.add_tensor(tensor.name, [np.zeros(tensor.nbytes, np.uint8)], **fields)
        for entry in template.files[1:]:
            slow.add_file(entry.path, entry.role, b"")
        slow.finish(template)
        with pytest.raises(BundleError, match="exists"):
            slow.publish()
    verify_files(target, manifest)


def test_too_little_room_is_said_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=999_999))
    with BundleWriter(tmp_path / "tiny") as writer:
        writer.reserve(999_999)
        with pytest.raises(BundleError, match=r"needs 1\.0 MB"):
            writer.reserve(1_000_000)


def test_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BundleError, match="No space left") as caught:
        write_with(tmp_path / "tiny")
    assert "room" in caught.value.remedy
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write"):
        write_with(tmp_path / "file" / "tiny")


def test_a_manifest_that_a_reader_would_refuse_is_not_written(tmp_path: Path) -> None:
    template = parse(make_document(1))
    with BundleWriter(tmp_path / "tiny") as writer:
        for entry in template.files[1:]:
            writer.add_file(entry.path, entry.role, b"")
        with pytest.raises(BundleError, match="is missing"):
            writer.finish(template)
    assert os.listdir(tmp_path) == []


def test_a_golden_answer_is_added_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    write_with(target)
    answers: list[dict[str, Any]] = [{"tokens": [1, 2]}, {"tokens": [3], "text": "ä"}]
    for answer in answers:
        manifest = add_golden(target, answer)
        assert read_manifest(target) == manifest
        verify_files(target, manifest)
        assert [entry.role for entry in manifest.files].count("golden") == 1
    assert (target / "golden.json").read_text(encoding="utf-8") == '{\n "text": "ä",\n "tokens": [\n  3\n ]\n}\n'


def test_at_every_step_of_adding_a_golden_answer_the_bundle_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "tiny"
    write_with(target)
    add_golden(target, {"tokens": [1]})
    replace = os.replace
    steps = []

    def check_then_replace(source: Path, destination: Path) -> None:
        verify_files(target, read_manifest(target))
        replace(source, destination)
        verify_files(target, read_manifest(target))
        steps.append(destination.name)

    monkeypatch.setattr(os, "replace", check_then_replace)
    add_golden(target, {"tokens": [2]})
    assert steps == ["manifest.json", "golden.json", "manifest.json"]


def test_a_bundle_written_by_hand_takes_a_golden_answer(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)
    assert dump_manifest(add_golden(tmp_path, {"tokens": []})) != dump_manifest(manifest)

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeawq.errors import BundleError
from packager.bundle_files import open_bundle_file, verify_files
from packager.manifest_reader import read_manifest
from tests.packager.documents import write_bundle


def test_files_are_verified_with_progress(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)
    assert read_manifest(tmp_path) == manifest
    seen: list[tuple[int, int]] = []
    verify_files(tmp_path, manifest, lambda done, total: seen.append((done, total)))
    total = sum(entry.size for entry in manifest.files)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("path", ["weights.bin", "kernels/avx2.o", "tokenizer.json", "generation.json"])
def test_every_flipped_bit_and_missing_byte_is_found(tmp_path: Path, path: str) -> None:
    manifest = write_bundle(tmp_path)
    data = bytearray((tmp_path / path).read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / path).write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        verify_files(tmp_path, manifest)
    (tmp_path / path).write_bytes(data[:-1])
    with pytest.raises(BundleError, match="the manifest says"):
        verify_files(tmp_path, manifest)
    (tmp_path / path).unlink()
    with pytest.raises(BundleError, match="cannot open"):
        verify_files(tmp_path, manifest)


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    manifest = write_bundle(bundle)
    (bundle / "tokenizer.json").rename(tmp_path / "outside")
    (bundle / "tokenizer.json").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="cannot open"):
        verify_files(bundle, manifest)
    (bundle / "tokenizer.json").unlink()
    os.mkfifo(bundle / "tokenizer.json")
    with pytest.raises(BundleError, match="not a regular file"):
        open_bundle_file(bundle, "tokenizer.json")
    (bundle / "kernels").rename(tmp_path / "elsewhere")
    (bundle / "kernels").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="not a folder"):
        open_bundle_file(bundle, "kernels/avx2.o")


def test_the_bundle_itself_may_be_reached_through_a_link(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    manifest = write_bundle(bundle)
    (tmp_path / "current").symlink_to("bundle")
    verify_files(tmp_path / "current", manifest)

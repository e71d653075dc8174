from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeawq.errors import MissingExtraError, UsageError
from edgeawq.quantize import calibration
from edgeawq.quantize.calibration import read_calibration, read_documents
from tests.quantize.runs import SHAPE, make_text
from tests.tiny_models import make_tiny_model


class FakeHub(ModuleType):
    """The package `datasets` with one data set, or with one failure."""

    def __init__(self, rows: list[Any], failure: Exception | None = None) -> None:
        super().__init__("datasets")
        self.rows, self.failure = rows, failure
        self.calls: list[tuple[str, str | None, str]] = []
        self.n_read = 0

    def load_dataset(self, name: str, subset: str | None, *, split: str, streaming: bool) -> Iterator[Any]:
        assert streaming
        self.calls.append((name, subset, split))
        if self.failure is not None:
            raise self.failure
        for row in self.rows:
            self.n_read += 1
            yield row


def put(monkeypatch: pytest.MonkeyPatch, rows: list[Any], failure: Exception | None = None) -> FakeHub:
    hub = FakeHub(rows, failure)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    return hub


def test_rows_are_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = put(monkeypatch, [{"text": make_text(1, 3000), "id": 7}, {"text": " "}, {"text": "the end"}])
    model = make_tiny_model(0, quantized=False, **SHAPE)
    found = read_calibration(Path("hub:owner/name:small:validation"), model, 512, 64, 0)
    assert (found.source, found.n_documents) == ("hub:owner/name:small:validation", 2)
    assert hub.calls == [("owner/name", "small", "validation")]
    assert list(read_documents(Path("hub:owner/name"), None))[-1] == "the end"
    assert hub.calls[-1] == ("owner/name", None, "train")


def test_no_more_is_read_than_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_TEXT_BYTES", 250)
    hub = put(monkeypatch, [{"text": "x" * 100}] * 50)
    assert len(list(read_documents(Path("hub:owner/name"), None))) == 3
    assert hub.n_read == 3


def test_a_row_without_text_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, [{"text": "the"}, {"prompt": "x"}])
    with pytest.raises(UsageError, match="hub:owner/name row 2 has neither"):
        list(read_documents(Path("hub:owner/name"), None))


@pytest.mark.parametrize(
    "failure", [ConnectionError("no route\nto host"), ValueError("unknown split"), OSError("gone")]
)
def test_out_of_reach(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    put(monkeypatch, [], failure)
    with pytest.raises(UsageError, match="owner/name cannot be read: (no route|unknown split|gone)$") as caught:
        list(read_documents(Path("hub:owner/name"), None))
    assert "to_json('calib.jsonl')" in caught.value.remedy


def test_names_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, [])
    for name in ("hub:", "hub:one", "hub:a/b/c", "hub:../b", "hub:a/b:c:d:e"):
        with pytest.raises(UsageError, match="does not name a data set"):
            list(read_documents(Path(name), None))


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError) as caught:
        list(read_documents(Path("hub:owner/name"), None))
    assert caught.value.remedy == "pip install 'edgeawq[datasets]'"


@pytest.mark.filterwarnings("ignore")
def test_the_real_library_on_a_local_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": f"line {n}"}) for n in range(5)))
    monkeypatch.chdir(tmp_path)
    assert list(read_documents(Path("hub:owner/name"), None)) == [f"line {n}" for n in range(5)]
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_documents(Path("hub:owner/name::absent".replace("::", ":default:")), None))

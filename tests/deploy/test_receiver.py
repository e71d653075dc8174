"""The receiver against hosts that make mistakes or mean harm: it is driven here line by line, as on the wire."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeawq.deploy import receiver
from edgeawq.deploy.receiver import Refusal, check_path, parse_release, release_id

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


class Wire:
    """A receiver process and the raw ends of its pipes."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-I", receiver.__file__, str(root)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.greeting = self.read()

    def send(self, message: dict[str, Any] | bytes, payload: bytes = b"") -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        self.stdin.write(data + payload)
        self.stdin.flush()

    def read(self) -> dict[str, Any]:
        while True:
            answer = json.loads(self.stdout.readline())
            if "event" not in answer:
                assert isinstance(answer, dict)
                return answer

    def ask(self, op: str, payload: bytes = b"", **arguments: Any) -> dict[str, Any]:
        self.send({"op": op, **arguments}, payload)
        return self.read()

    def plan(self, release: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(release).encode()
        return self.ask("plan", data, size=len(data))

    def put(self, data: bytes, **changes: Any) -> None:
        header = {"op": "put", "sha256": sha(data), "size": len(data), "offset": 0}
        self.send({**header, **changes}, data)

    def end(self) -> int:
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        code = self.process.wait(20)
        assert self.process.stderr
        self.stderr = self.process.stderr.read().decode()
        self.process.stderr.close()
        self.stdout.close()
        return code


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def wire(root: Path) -> Iterator[Wire]:
    wire = Wire(root)
    yield wire
    if wire.process.poll() is None:
        wire.process.kill()
    wire.process.wait()
    for stream in (wire.stdin, wire.stdout, wire.process.stderr):
        assert stream
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def describe(**contents: bytes) -> dict[str, Any]:
    files = [
        {"path": path.replace("__", "/"), "sha256": sha(data), "size": len(data)} for path, data in contents.items()
    ]
    return {
        "format": "edgeawq-release",
        "format_version": 1,
        "name": "tiny",
        "profile": "host",
        "requires": {"machine": platform.machine(), "python": PYTHON},
        "files": files,
    }


def test_greets_with_what_the_host_must_know(wire: Wire, root: Path) -> None:
    assert wire.greeting["magic"] == "EDGEAWQ-RECEIVER" and wire.greeting["protocol"] == 1
    assert wire.greeting["root"] == str(root) and wire.greeting["machine"] == platform.machine()
    assert wire.ask("bye") == {"ok": True}
    assert wire.end() == 0 and not root.exists(), "a greeting must not leave anything behind"


def test_stores_what_was_planned(wire: Wire, root: Path) -> None:
    data = b"print('hello')\n"
    assert wire.ask("lock", owner="me")["ok"]
    answer = wire.plan(describe(site__a=data, bundle__b=data))
    assert answer["ok"] and answer["missing"] == [[0]], "the same content is asked for once"
    wire.put(data)
    assert wire.ask("flush")["missing"] == 0
    committed = wire.ask("commit")
    release = root / "releases" / committed["id"]
    assert (release / "site/a").samefile(release / "bundle/b") and (release / "site/a").read_bytes() == data
    assert (release / "site/a").stat().st_mode & 0o222 == 0, "what is in the store is read-only"
    assert wire.ask("commit")["new"] is False


BAD_PATHS = [
    "",
    "/etc/passwd",
    "bundle",
    "site",
    "other/x",
    "../x",
    "bundle/../x",
    "bundle/./x",
    "bundle//x",
    "bundle/",
    "/bundle/x",
    "bundle\\..\\x",
    "bundle/x\0y",
    "bundle/x\ny",
    "bundle/\u202ex",
    "bundle/" + "x" * 256,
    "bundle/" + "x/" * 600 + "y",
    None,
    7,
    ["bundle/x"],
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_refuses_paths(path: object, wire: Wire, root: Path) -> None:
    release = describe(site__a=b"x")
    release["files"][0]["path"] = path
    answer = wire.plan(release)
    assert (answer["ok"], answer["code"]) == (False, "manifest")
    assert wire.ask("status")["ok"], "a bad description does not end the session"
    assert not root.exists()


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "bundle", "site", "~"])).map("/".join))
def test_a_path_that_is_accepted_stays_inside(path: str) -> None:
    try:
        accepted = check_path(path)
    except Refusal:
        return
    base = "/device/releases/0123456789abcdef"
    assert os.path.normpath(os.path.join(base, accepted)) == f"{base}/{accepted}"
    assert accepted.split("/")[0] in ("bundle", "site")


def edit(change: str, value: Any) -> dict[str, Any]:
    release = describe(site__a=b"x", bundle__b=b"y")
    target: Any = release
    *parents, last = change.split(".")
    for name in parents:
        target = target[int(name)] if name.isdigit() else target[name]
    key: Any = int(last) if last.isdigit() else last
    if value is KeyError:
        del target[key]
    else:
        target[key] = value
    return release


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("format", "edgeawq-bundle"),
        ("format_version", 2),
        ("format_version", KeyError),
        ("name", None),
        ("name", "x" * 201),
        ("name", "a\x1b[31m"),
        ("profile", ["x"]),
        ("requires", "aarch64"),
        ("requires", {}),
        ("requires.python", 3),
        ("files", []),
        ("files", {"0": {}}),
        ("files.0", "site/a"),
        ("files.0.sha256", "x" * 64),
        ("files.0.sha256", "A" * 64),
        ("files.0.sha256", "../../" + "0" * 58),
        ("files.0.sha256", KeyError),
        ("files.0.size", -1),
        ("files.0.size", 1.0),
        ("files.0.size", True),
        ("files.0.size", 1 << 50),
        ("files.0.path", "bundle/b"),  # twice
        ("files.0.path", "bundle/b/c"),  # below a file
        ("files.0.sha256", sha(b"y")),  # one hash, described with …
    ],
)
def test_refuses_descriptions(change: str, value: Any, wire: Wire) -> None:
    release = edit(change, value)
    if change == "files.0.sha256" and value == sha(b"y"):
        release["files"][0]["size"] = 5  # … two sizes
    answer = wire.plan(release)
    assert (answer["ok"], answer["code"]) == (False, "manifest"), answer


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5))
@settings(max_examples=60)
def test_a_fuzzed_description_is_refused_and_never_crashes(value: Any) -> None:
    for key in ("format", "format_version", "name", "profile", "requires", "files"):
        release = {**describe(site__a=b"x"), key: value}
        try:
            parse_release(json.dumps(release).encode())
        except Refusal as refusal:
            assert refusal.code == "manifest"
        else:
            assert key in ("name", "profile") and isinstance(value, str), (key, value)
    for key in ("path", "sha256", "size"):
        release = copy.deepcopy(describe(site__a=b"x"))
        release["files"][0][key] = value
        with pytest.raises(Refusal):
            parse_release(json.dumps(release).encode())
            if key == "size" and isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 40:
                raise Refusal("manifest", "a size may be any number")


def test_refuses_more_files_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "MAX_FILES", 1)
    with pytest.raises(Refusal, match="more than 1"):
        parse_release(json.dumps(describe(site__a=b"x", site__b=b"y")).encode())
    monkeypatch.setattr(receiver, "MAX_FILES", 100)
    monkeypatch.setattr(receiver, "MAX_TOTAL_BYTES", 1)
    with pytest.raises(Refusal, match="larger than 1 bytes"):
        parse_release(json.dumps(describe(site__a=b"x", site__b=b"y")).encode())


@pytest.mark.parametrize(
    ("requires", "what"),
    [({"machine": "riscv64", "python": PYTHON}, "riscv64"), ({"machine": platform.machine(), "python": "3.9"}, "3.9")],
)
def test_refuses_what_does_not_fit_this_machine(requires: dict[str, str], what: str, wire: Wire) -> None:
    answer = wire.plan({**describe(site__a=b"x"), "requires": requires})
    assert answer["code"] == "unfit" and what in answer["what"]


@pytest.mark.parametrize(
    "line",
    [b"not json\n", b"[]\n", b'"x"\n', b"null\n", b'{"op": "rm"}\n', b'{"op": ["put"]}\n', b"{}\n", b"\xff\xfe\n"]
    + [b"[" * 30_000 + b"\n"],
)
def test_nonsense_ends_the_session(line: bytes, wire: Wire) -> None:
    wire.send(line)
    answer = wire.read()
    assert answer["code"] == "protocol" and answer["fatal"]
    assert wire.end() == 0 and wire.stderr == ""


def test_an_endless_line_is_cut(wire: Wire) -> None:
    with contextlib.suppress(BrokenPipeError):
        wire.send(b"x" * (receiver.MAX_LINE_BYTES * 4))
    assert "longer than" in wire.read()["what"]
    assert wire.process.wait(20) == 0


def test_an_endless_description_is_refused_before_it_is_read(wire: Wire) -> None:
    for size in (1 << 40, -1, "1", True, None, 1.5):
        other = Wire(Path(wire.greeting["root"]))
        answer = other.ask("plan", size=size)
        assert answer["code"] == "protocol" and answer["fatal"]
        other.end()


def test_takes_only_objects_of_the_plan(root: Path) -> None:
    good, other = b"good", b"other"
    bad_puts: list[tuple[bytes, dict[str, Any]]] = [
        (other, {}),
        (good, {"size": 3}),
        (good, {"size": 1 << 40}),
        (good, {"sha256": "../../../../etc/x"}),
        (good, {"sha256": None}),
        (good, {"offset": 2}),
        (good, {"offset": -1}),
        (good, {"offset": "1"}),
    ]
    for data, changes in bad_puts:
        wire = Wire(root)
        wire.ask("lock", owner="me")
        wire.plan(describe(site__a=good))
        wire.put(data, **changes)
        answer = wire.read()
        assert answer["code"] == "protocol" and answer["fatal"], changes
        assert wire.end() == 0 and wire.stderr == ""
    assert list((root / "store").iterdir()) == [] and list((root / "partial").iterdir()) == []


def test_put_needs_lock_and_plan(root: Path) -> None:
    for prepare in ([], ["lock"]):
        wire = Wire(root)
        for _ in prepare:
            wire.ask("lock", owner="me")
        wire.put(b"x")
        assert wire.read()["code"] == "protocol"
        wire.end()


@pytest.mark.parametrize("size", [5, receiver.SMALL_FILE_BYTES + 1])
def test_bytes_with_another_hash_are_not_kept(size: int, wire: Wire, root: Path) -> None:
    data = os.urandom(size)
    wire.ask("lock", owner="me")
    wire.plan(describe(bundle__w=data))
    wire.put(data[:-1] + bytes([data[-1] ^ 1]), sha256=sha(data))
    answer = wire.read()
    assert answer["code"] == "hash" and answer["fatal"]
    assert wire.end() == 0
    assert list((root / "partial").iterdir()) == [] and list((root / "store").rglob("*/*")) == []


def test_commit_refuses_an_incomplete_release(wire: Wire, root: Path) -> None:
    assert wire.ask("commit")["code"] == "protocol"
    wire.ask("lock", owner="me")
    wire.plan(describe(site__a=b"a", site__b=b"b"))
    wire.put(b"a")
    answer = wire.ask("commit")
    assert answer["code"] == "incomplete" and "site/b" in answer["what"]
    assert list((root / "releases").iterdir()) == []


@pytest.mark.parametrize("identity", ["../../etc", "0" * 15, "0" * 16, None, 3, "current", "0123456789ABCDEF"])
def test_names_of_releases_are_checked(identity: object, wire: Wire) -> None:
    wire.ask("lock", owner="me")
    for op in ("check", "switch", "verify"):
        answer = wire.ask(op, release=identity, timeout_s=1)
        assert answer["code"] in ("protocol", "no-release"), (op, answer)


def test_switch_needs_a_check_in_the_same_session(wire: Wire, root: Path) -> None:
    wire.ask("lock", owner="me")
    wire.plan(describe(site__a=b"a"))
    wire.put(b"a")
    identity = wire.ask("commit")["id"]
    answer = wire.ask("switch", release=identity)
    assert answer["code"] == "protocol" and "not checked" in answer["what"]
    assert wire.ask("check", release=identity, timeout_s=30)["code"] == "health"
    assert not wire.ask("switch", release=identity)["ok"]
    assert not (root / "current").is_symlink()


@pytest.mark.parametrize("arguments", [{}, {"owner": 3}, {"owner": "x" * 300}, {"owner": "a\nb"}, {"wait_s": 1e9}])
def test_lock_checks_its_arguments(arguments: dict[str, Any], wire: Wire) -> None:
    answer = wire.ask("lock", **{"owner": "me", **arguments} if "wait_s" in arguments else arguments)
    assert answer["code"] == "protocol"


def test_gc_checks_its_argument_and_needs_the_lock(wire: Wire) -> None:
    for keep in (0, -1, "2", None, True, 10**9):
        assert wire.ask("gc", keep=keep)["code"] == "protocol"
    wire.ask("lock", owner="me")
    wire.ask("unlock")
    assert wire.ask("gc", keep=2)["code"] == "lock-lost"


def test_does_not_follow_symlinks_that_stand_in_for_its_folders(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root.mkdir()
    (root / "store").symlink_to(outside)
    wire = Wire(root)
    answer = wire.ask("lock", owner="me")
    assert answer["code"] == "layout" and wire.end() == 0
    (root / "store").unlink()
    data = os.urandom(receiver.SMALL_FILE_BYTES)
    (root / "partial").mkdir(exist_ok=True)
    (root / "partial" / sha(data)).symlink_to(outside / "target")
    wire = Wire(root)
    wire.ask("lock", owner="me")
    assert wire.plan(describe(bundle__w=data))["missing"] == [[0]]
    with contextlib.suppress(BrokenPipeError):
        wire.put(data)
    assert not wire.read()["ok"]
    wire.end()
    assert not (outside / "target").exists()


def test_ends_and_unlocks_when_the_host_goes_away(wire: Wire, root: Path) -> None:
    wire.ask("lock", owner="me")
    assert (root / "lock").is_dir()
    assert wire.end() == 0 and not (root / "lock").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order(number: int, wire: Wire, root: Path) -> None:
    wire.ask("lock", owner="me")
    wire.process.send_signal(number)
    assert wire.process.wait(20) == 0 and not (root / "lock").exists()


def test_a_hanging_check_ends_with_the_connection(wire: Wire, root: Path, tmp_path: Path) -> None:
    stub = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)".encode()
    release = describe(site__edgeawq__main=stub)
    release["files"][0]["path"] = "site/edgeawq/__main__.py"
    wire.ask("lock", owner="me")
    wire.plan(release)
    wire.put(stub)
    identity = wire.ask("commit")["id"]
    wire.send({"op": "check", "release": identity, "timeout_s": 500})
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert wire.end() == 0
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(int((tmp_path / "pid").read_text()), 0)
            time.sleep(0.05)
    assert not (root / "lock").exists()


def test_says_that_it_is_alive_during_long_work(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    ours = receiver.Wire(0, 1)
    monkeypatch.setattr(ours, "send", sent.append)
    ours.say_alive()
    assert sent == []
    ours.last_sent -= receiver.ALIVE_EVERY_S
    ours.say_alive()
    assert sent == [{"event": "alive"}]


def test_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    script = "import sys, runpy; runpy.run_path(sys.argv[1]); print(' '.join(sorted(sys.modules)))"
    command = [sys.executable, "-I", "-S", "-c", script, receiver.__file__]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = {name.partition(".")[0] for name in modules} - {"__main__"}
    assert names <= set(sys.stdlib_module_names)


def test_release_names_are_those_of_the_host() -> None:
    from edgeawq.deploy.release import describe_release

    release = describe_release(name="n", profile="p", machine=platform.machine(), python=PYTHON, files=[])
    assert release.identity == release_id(release.data) == hashlib.sha256(release.data).hexdigest()[:16]

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeawq.deploy.inventory import (
    Device,
    Inventory,
    check_device_name,
    find_inventory,
    load_inventory,
    parse_inventory,
    remove_device,
    write_device,
)
from edgeawq.errors import UsageError

TEXT = """# my boards
[devices.pi4]
host = "raspberrypi.local"  # in the kitchen
user = "pi"
port = 2222
profile = "pi4"

[devices."orin.lab"]
host = "orin"
"""


def test_reads_devices_with_defaults() -> None:
    devices = parse_inventory(TEXT, "edgeawq.toml")
    assert devices["pi4"] == Device(name="pi4", host="raspberrypi.local", user="pi", port=2222, profile="pi4")
    assert devices["orin.lab"].port is None and devices["orin.lab"].root == "~/.edgeawq"


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ('[devices.a]\nhots = "x"', "unknown key 'hots'", "'host'"),
        ('[devices.a]\nhost = "x"\nidentity = "k"', "unknown key 'identity'", "'identity_file'"),
        ('[device.a]\nhost = "x"', "unknown key 'device'", "'devices'"),
        ("[devices.a]\nhost = 3", "must be text", ""),
        ('[devices.a]\nhost = "x"\nport = "22"', "must be a number", ""),
        ('[devices.a]\nhost = "x"\nport = 70000', "70000", ""),
        ('[devices.a]\nhost = "x"\nport = true', "must be a number", ""),
        ('[devices.a]\nuser = "x"', "no host", "host ="),
        ('[devices.a]\nhost = "-oProxyCommand=sh"', "not a host name", ""),
        ('[devices.a]\nhost = "x"\nkeep = 1', "keep = 1", "previous"),
        ('[devices.a]\nhost = "x"\ntransport = "telnet"', "telnet", "ssh"),
        ('[devices."a b"]\nhost = "x"', "'a b'", "letters"),
        ('[devices.localhost]\nhost = "x"\ntransport = "ssh"', "this machine", "another name"),
        ('[devices.a]\ntransport = "openssh"', "no host", "host ="),
        ('[devices.a]\nhost = "x"\nbandwidth_limit = "fast"', "bandwidth_limit: 'fast'", "10M"),
        ('[devices.a]\nhost = "x"\ncipher = "a b"', "cipher = 'a b'", "ssh -Q cipher"),
        ("[devices\n", "not valid TOML", ""),
        ("devices = 3", "must be a table", ""),
    ],
)
def test_names_what_is_wrong(text: str, what: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_inventory(text, "edgeawq.toml")
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_reads_how_to_connect() -> None:
    text = '[devices.a]\nhost = "x"\ntransport = "openssh"\ncipher = "aes128-ctr"\nbandwidth_limit = "10M"'
    device = parse_inventory(text, "x")["a"]
    assert (device.transport, device.cipher, device.bandwidth_limit) == ("openssh", "aes128-ctr", "10M")
    assert not device.is_local


def test_keeps_comments_and_other_devices_when_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "edgeawq.toml"
    path.write_text(TEXT)
    inventory = load_inventory(path)
    changed = write_device(inventory, Device(name="pi5", host="10.0.0.5", user="pi", profile="pi5"))
    changed = write_device(changed, Device(name="pi4", host="raspberrypi.local", user="pi", profile="pi4"))
    text = path.read_text()
    assert "# my boards" in text and "# in the kitchen" in text
    again = load_inventory(path)
    assert again.devices == changed.devices
    assert again.devices["pi4"].port is None, "a setting that is gone must go from the file"
    assert again.devices["pi5"].host == "10.0.0.5" and again.devices["orin.lab"].host == "orin"
    assert list(tmp_path.iterdir()) == [path], "no temporary file may stay"


def test_writes_through_a_symlink_and_keeps_the_mode(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "real.toml"
    real.parent.mkdir()
    real.write_text(TEXT)
    real.chmod(0o600)
    link = tmp_path / "edgeawq.toml"
    link.symlink_to(real)
    write_device(load_inventory(link), Device(name="x", host="y"))
    assert link.is_symlink() and "[devices.x]" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "edgeawq.toml"
    path.write_text(TEXT)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_device(load_inventory(path), Device(name="x", host="y"))
    assert path.read_text() == TEXT and list(tmp_path.iterdir()) == [path]


def test_first_device_makes_file_and_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "edgeawq.toml"
    write_device(Inventory(path), Device(name="x", host="y"))
    assert load_inventory(path).devices == {"x": Device(name="x", host="y")}


def test_removes_a_device(tmp_path: Path) -> None:
    path = tmp_path / "edgeawq.toml"
    path.write_text(TEXT)
    left = remove_device(load_inventory(path), "pi4")
    assert set(left.devices) == {"orin.lab"} == set(load_inventory(path).devices)
    with pytest.raises(UsageError, match="pi4"):
        remove_device(left, "pi4")
    with pytest.raises(UsageError, match="always there"):
        remove_device(left, "localhost")


def test_search_order(tmp_path: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "project" / "deep"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert find_inventory() == isolated_home / ".config" / "edgeawq" / "edgeawq.toml"
    (tmp_path / "project" / "edgeawq.toml").write_text("")
    assert find_inventory() == tmp_path / "project" / "edgeawq.toml"
    monkeypatch.setenv("EDGEAWQ_INVENTORY", str(tmp_path / "other.toml"))
    assert find_inventory() == tmp_path / "other.toml"
    assert find_inventory("x.toml") == Path("x.toml")


def test_a_named_file_must_exist_a_searched_one_need_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_inventory().devices == {}
    with pytest.raises(UsageError, match=r"no inventory file .*nope\.toml"):
        load_inventory("nope.toml")


def test_localhost_is_always_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAWQ_LOCAL_ROOT", "/somewhere")
    inventory = Inventory(tmp_path / "x.toml")
    assert inventory.get("localhost").is_local and inventory.get("localhost").root == "/somewhere"
    assert [device.name for device in inventory.all_devices()] == ["localhost"]
    with_model = parse_inventory('[devices.localhost]\nmodel = "m"', "x")
    assert with_model["localhost"].is_local and with_model["localhost"].root == "/somewhere"


def test_unknown_device_names_the_closest(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path / "x.toml", {"kitchen": Device(name="kitchen", host="k")})
    with pytest.raises(UsageError, match="kitchn") as caught:
        inventory.get("kitchn")
    assert "'kitchen'" in caught.value.remedy


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "a\n", ".x", "x" * 64])
def test_refuses_device_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_device_name(name)

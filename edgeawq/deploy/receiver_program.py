"""The receiver's modules as one message, and the few lines of Python that load them from memory on the device."""

from __future__ import annotations

import importlib.resources
import json
import zlib

PACKAGE = "edgeawq_receiver"

# Runs on any Python 3: what is too old ends with code 97 instead of a syntax error.
_BOOTSTRAP = """
import sys
if sys.version_info < (3, 10): sys.exit(97)
import importlib.abc, importlib.util, json, os, zlib
data = b""
while len(data) < %(size)d:
    block = os.read(0, %(size)d - len(data))
    if not block: sys.exit(98)
    data += block
sources = json.loads(zlib.decompress(data))
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name in sources: return importlib.util.spec_from_loader(name, self, is_package=name == "%(package)s")
    def exec_module(self, module):
        exec(compile(sources[module.__name__], module.__name__, "exec"), module.__dict__)
sys.meta_path.insert(0, Finder())
from %(package)s.session import main
sys.exit(main(sys.argv[1:]))
"""

# Hands its own standard input and output to the receiver (receiver/channels.py) and waits until it lets go of them.
_JOIN = """
import os, socket, sys
secret = b""
while len(secret) < 32:
    block = os.read(0, 32 - len(secret))
    if not block: sys.exit(98)
    secret += block
folder = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
link.connect("/proc/self/fd/%d/channels" % folder)
socket.send_fds(link, [secret], [0, 1])
while link.recv(1): pass
"""


def read_program() -> tuple[str, bytes]:
    """Return what `python3 -c` gets, and what it then reads from standard input."""
    folder = importlib.resources.files("edgeawq.deploy").joinpath("receiver")
    sources = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        stem, dot, suffix = entry.name.partition(".")
        if dot + suffix == ".py":
            name = PACKAGE if stem == "__init__" else f"{PACKAGE}.{stem}"
            sources[name] = entry.read_text(encoding="utf-8")
    data = zlib.compress(json.dumps(sources).encode(), 9)
    return (_BOOTSTRAP % {"size": len(data), "package": PACKAGE}).strip(), data


def read_join_program() -> str:
    """Return what `python3 -c` gets to join a session with another channel; it reads the secret from its input."""
    return _JOIN.strip()

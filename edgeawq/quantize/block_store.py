"""What a run has finished, on disk: so that memory holds one block at a time, and a killed run goes on where it was.

Beside the output folder lies a hidden work folder with

    run.json              the key of the run: settings, model and program; another run's folder is emptied
    calibration.npz       the calibration tokens
    block-00000.npz       a quantized block
    hidden-00001.f32      activations in front of the next block, those of the float model;
    quantized-00001.f32   and, where the method wants them, those of the quantized one
    outcome-00000.json    how block 0 came out: written last, it says that the block is finished

Files get their names when their content is safely on the disk. The folder disappears when the run ends, except when it
was killed or stopped with Ctrl-C.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from edgeawq.checkpoints.model import QuantizedLinear
from edgeawq.checkpoints.new_folder import remove_leftovers, sync_path
from edgeawq.errors import QuantizationError
from edgeawq.quantize.activations import Activations, StoredActivations, make_activations
from edgeawq.quantize.block import BlockOutcome, LayerOutcome, QuantizedBlock
from edgeawq.quantize.calibration import CalibrationSet

WORK_MARK = ".blocks"
KEY_FILE, LOCK_FILE, CALIBRATION_FILE = "run.json", "lock", "calibration.npz"
BITS_FILE = "layer_bits.json"
TOKENS, FIELDS = "token_ids", "fields"
STATES = ("hidden", "quantized")


class BlockStore:
    """A work folder; made by `open_store`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, layer: int, block: QuantizedBlock, outcome: BlockOutcome | None = None) -> None:
        """Write one block, and that it is finished; raises QuantizationError where the disk does not take it."""
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for module, linear in block.linears.items():
            arrays[f"linear/{module}/q"] = linear.q
            arrays[f"linear/{module}/scales"] = linear.scales
            arrays[f"linear/{module}/zeros"] = linear.zeros
            arrays[f"linear/{module}/grid"] = np.array([linear.bits, linear.group_size])
        for name, tensor in block.floats.items():
            arrays[f"float/{name}"] = tensor.numpy()
        try:
            with write_safely(self._name(layer)) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            with write_safely(self.folder / f"outcome-{layer:05d}.json") as file:
                file.write(json.dumps(asdict(outcome) if outcome is not None else None).encode())
            for name in STATES:
                (self.folder / f"{name}-{layer:05d}.f32").unlink(missing_ok=True)
        except OSError as error:
            raise QuantizationError(
                f"block {layer} cannot be stored in {self.folder}: {error.strerror or error}",
                remedy="free some space there, or choose another output folder",
            ) from error

    def load(self, layer: int) -> QuantizedBlock:
        """A block as it was saved."""
        linears: dict[str, QuantizedLinear] = {}
        floats: dict[str, torch.Tensor] = {}
        with np.load(self._name(layer), allow_pickle=False) as arrays:
            for key in arrays.files:
                kind, _, name = key.partition("/")
                if kind == "float":
                    floats[name] = torch.from_numpy(arrays[key])
                elif name.endswith("/q"):
                    module = name.removesuffix("/q")
                    bits, group_size = arrays[f"linear/{module}/grid"].tolist()
                    scales, zeros = arrays[f"linear/{module}/scales"], arrays[f"linear/{module}/zeros"]
                    linears[module] = QuantizedLinear(arrays[key], scales, zeros, bits, group_size)
        return QuantizedBlock(linears, floats)

    def count_finished(self) -> int:
        """How many blocks are finished, from the first one on."""
        done = 0
        while self.is_finished(done):
            done += 1
        return done

    def is_finished(self, layer: int) -> bool:
        """Whether a block is finished, whatever the others are."""
        return (self.folder / f"outcome-{layer:05d}.json").is_file()

    def has_finished(self) -> bool:
        """Whether any block is finished: with several at once the first one need not be among them."""
        return any(self.folder.glob("outcome-*.json"))

    def load_outcome(self, layer: int) -> BlockOutcome | None:
        """How a finished block came out; None for a method that does not look."""
        found = json.loads((self.folder / f"outcome-{layer:05d}.json").read_text())
        if found is None:
            return None
        layers = {module: LayerOutcome(**layer) for module, layer in found.pop("layers").items()}
        return BlockOutcome(**found, layers=layers)

    def make_room(self, name: str, layer: int, shape: tuple[int, int, int], in_memory: bool) -> Activations:
        """Room for the activations in front of block `layer`: in memory, or in the file where they will be kept."""
        return make_activations(shape, None if in_memory else self._state(name, layer, finished=False))

    def keep_states(self, name: str, layer: int, states: Activations) -> None:
        """See activations in front of block `layer` safely on the disk."""
        if isinstance(states, torch.Tensor):
            room = self._state(name, layer, finished=False)
            stored = make_activations((states.shape[0], states.shape[1], states.shape[2]), room)
            for sequence in range(len(states)):
                stored[sequence : sequence + 1] = states[sequence : sequence + 1]
        else:
            stored = states
        assert isinstance(stored, StoredActivations)
        stored.sync()
        stored.path.replace(self._state(name, layer))

    def load_states(self, name: str, layer: int, shape: tuple[int, int, int], in_memory: bool) -> Activations:
        """Activations in front of block `layer`, as they were kept."""
        stored = StoredActivations(self._state(name, layer), shape)
        return stored[:] if in_memory else stored

    def save_calibration(self, calibration: CalibrationSet) -> None:
        """Write the calibration tokens; blocks that were quantized on others are forgotten."""
        before = self.load_calibration()
        if before is not None and torch.equal(before.token_ids, calibration.token_ids):
            return
        for path in (*self.folder.glob("outcome-*.json"), self.folder / BITS_FILE):
            path.unlink(missing_ok=True)
        fields = {name: value for name, value in vars(calibration).items() if name != TOKENS}
        with write_safely(self.folder / CALIBRATION_FILE) as file:
            np.savez(file, **{TOKENS: calibration.token_ids.numpy(), FIELDS: np.array(json.dumps(fields))})

    def load_calibration(self) -> CalibrationSet | None:
        """The calibration tokens of the run that goes on; None where there are none."""
        path = self.folder / CALIBRATION_FILE
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return CalibrationSet(torch.from_numpy(arrays[TOKENS]), **json.loads(str(arrays[FIELDS])))

    def save_layer_bits(self, layer_bits: dict[str, int]) -> None:
        """Write the bits that were chosen for every layer."""
        with write_safely(self.folder / BITS_FILE) as file:
            file.write(json.dumps(layer_bits).encode())

    def load_layer_bits(self) -> dict[str, int] | None:
        """The bits that were chosen for every layer; None where none were."""
        path = self.folder / BITS_FILE
        if not path.is_file():
            return None
        chosen: dict[str, int] = json.loads(path.read_text())
        return chosen

    def _name(self, layer: int) -> Path:
        return self.folder / f"block-{layer:05d}.npz"

    def _state(self, name: str, layer: int, finished: bool = True) -> Path:
        if finished:
            return self.folder / f"{name}-{layer:05d}.f32"
        return self.folder / f"{name}-{layer:05d}.{os.getpid()}-{secrets.token_hex(4)}.unfinished"


@contextmanager
def write_safely(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when its content is on the disk."""
    # Two processes that do the same job must not write into each other's file.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.unfinished")
    with unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


@contextmanager
def open_store(output: Path, key: dict[str, Any]) -> Iterator[BlockStore]:
    """The work folder beside the output folder, where there is room for the checkpoint too.

    What an earlier, killed run with the same `key` finished is kept; anything else there is deleted. At the end, and
    after an error, the folder is removed; after Ctrl-C it stays where a block is finished. Raises QuantizationError
    where another process is at work on the same output, or nothing can be written.
    """
    output = output.absolute()
    folder = output.with_name(f".{output.name}{WORK_MARK}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output)
        lock = take_folder(folder, key)
    except OSError as error:
        raise QuantizationError(
            f"{output.parent} cannot be written: {error.strerror or error}",
            remedy="check the permissions there, or choose another output folder",
        ) from error
    store = BlockStore(folder)
    is_kept = False
    try:
        yield store
    except Exception:
        raise
    except BaseException:
        is_kept = store.has_finished()
        raise
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def take_folder(folder: Path, key: dict[str, Any]) -> BinaryIO:
    """Make the work folder this process's own, empty unless it belongs to the same run; the lock's open file."""
    folder.mkdir(exist_ok=True)
    lock = (folder / LOCK_FILE).open("wb")
    try:
        # Let go by the system when the process ends, however it ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise QuantizationError(
            f"another process is quantizing to the same output (it works in {folder})",
            remedy="wait for it, or choose another output folder",
        ) from error
    try:
        empty_folder(folder, key)
    except BaseException:
        lock.close()
        raise
    return lock


def empty_folder(folder: Path, key: dict[str, Any]) -> None:
    """Delete what is half written, and everything where it belongs to another run; write down whose it is."""
    described = json.dumps(key, sort_keys=True)
    key_file = folder / KEY_FILE
    is_same = key_file.is_file() and key_file.read_text(encoding="utf-8") == described
    for path in folder.iterdir():
        if path.name != LOCK_FILE and (path.suffix == ".unfinished" or not is_same):
            path.unlink()
    if not is_same:
        with write_safely(key_file) as file:
            file.write(described.encode())
        sync_path(folder)

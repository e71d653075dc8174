"""GPTQModel: GPTQ with activation order. pip install gptqmodel (with --no-deps where it asks for another torch)"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from driver import read_task, time_call, write_result
from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.numpy import load_file


def main() -> None:
    task = read_task()
    config = QuantizeConfig(
        bits=task.bits, group_size=task.group_size, sym=False, desc_act=task.method == "act-order", static_groups=True
    )
    model = GPTQModel.load(str(task.model), config, device="cpu", dtype=torch.float32)
    rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in task.tokens]
    seconds = time_call(lambda: model.quantize(rows, batch_size=1))
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        tensors = {}
        for file in Path(folder).glob("*.safetensors"):
            tensors |= load_file(file)
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    weights = {f"{module}.weight": torch.from_numpy(dequantize(tensors, module, task.bits)) for module in modules}
    write_result(task, weights, seconds)


def dequantize(tensors: dict[str, np.ndarray], module: str, bits: int) -> np.ndarray:
    """The weight [out_features, in_features] of GPTQ's format, in which zeros are stored less one."""
    q = unpack(tensors[f"{module}.qweight"], bits, axis=0)  # [in, out]
    zeros = unpack(tensors[f"{module}.qzeros"], bits, axis=1)  # [groups, out]
    groups = tensors[f"{module}.g_idx"].astype(np.int64)  # [in]
    scales = tensors[f"{module}.scales"].astype(np.float32)  # [groups, out]
    zeros = (zeros + 1) % (1 << bits)
    return ((q - zeros[groups]) * scales[groups]).T


def unpack(words: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Values of int32 words, lowest bits first along `axis`; a value of 3 bits may span two words."""
    moved = np.moveaxis(words.view(np.uint32), axis, -1)  # [..., words]
    stream = np.unpackbits(np.ascontiguousarray(moved).view(np.uint8), axis=-1, bitorder="little")
    values = stream.reshape(*stream.shape[:-1], -1, bits) @ (1 << np.arange(bits))
    return np.moveaxis(values.astype(np.int64), -1, axis)


if __name__ == "__main__":
    main()

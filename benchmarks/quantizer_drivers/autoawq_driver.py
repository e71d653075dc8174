"""AutoAWQ: the reference implementation of AWQ for users.

pip install autoawq==0.2.9 'torch<2.8'; then transformers==4.51.3 'datasets<4'

AutoAWQ 0.2.9 remembers a module's weights before its scale search as `{k: v.cpu()}`. Where the model is on the CPU
already that is no copy, the search multiplies its scales into the very weights that it restores afterwards, and
the model is ruined (perplexity above 300,000). It is made a copy here, so that AutoAWQ's method is what is measured.
"""

from __future__ import annotations

from typing import Any

import torch
from awq import AutoAWQForCausalLM
from awq.quantize.quantizer import AwqQuantizer
from driver import read_task, time_call, write_result
from transformers import AutoTokenizer


def copy_before_search() -> None:
    """Let the scale search restore what was there before it, as it does on a GPU."""
    search = AwqQuantizer._compute_best_scale

    def search_with_copy(self: AwqQuantizer, x: Any, w_mean: Any, x_mean: Any, inspected: Any, *rest: Any) -> Any:
        read = inspected.state_dict
        inspected.state_dict = lambda: {name: tensor.clone() for name, tensor in read().items()}
        try:
            return search(self, x, w_mean, x_mean, inspected, *rest)
        finally:
            del inspected.state_dict

    AwqQuantizer._compute_best_scale = search_with_copy


def main() -> None:
    copy_before_search()
    task = read_task()
    model = AutoAWQForCausalLM.from_pretrained(
        str(task.model), device_map="cpu", torch_dtype=torch.float32, safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    weights: dict[str, torch.Tensor] = {}

    def keep_dequantized(self: AwqQuantizer, module: torch.nn.Module, linears: dict[str, torch.nn.Linear]) -> None:
        # In place of packing: the same rounding, written back as float.
        for linear in linears.values():
            linear.weight.data = self.pseudo_quantize_tensor(linear.weight.data.float())[0]

    AwqQuantizer._apply_quant = keep_dequantized
    seconds = time_call(
        lambda: model.quantize(
            tokenizer,
            quant_config={
                "zero_point": True,
                "q_group_size": task.group_size,
                "w_bit": task.bits,
                "version": "GEMM",
            },
            calib_data=task.tokens.tolist(),
            max_calib_samples=len(task.tokens),
            max_calib_seq_len=task.tokens.shape[1],
        )
    )
    for name, module in model.model.named_modules():
        if name.startswith("model.layers.") and hasattr(module, "weight"):
            weights[f"{name}.weight"] = module.weight
    weights["model.norm.weight"] = model.model.model.norm.weight
    write_result(task, weights, seconds)


if __name__ == "__main__":
    main()

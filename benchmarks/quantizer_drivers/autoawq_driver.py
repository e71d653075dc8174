"""AutoAWQ: the reference implementation of AWQ for users.

pip install autoawq==0.2.9 'torch<2.8'; then transformers==4.51.3 'datasets<4'
"""

from __future__ import annotations

import torch
from awq import AutoAWQForCausalLM
from awq.quantize.quantizer import AwqQuantizer
from driver import read_task, time_call, write_result
from transformers import AutoTokenizer


def main() -> None:
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

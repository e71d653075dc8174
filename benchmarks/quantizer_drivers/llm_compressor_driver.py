"""llm-compressor: `awq` or `gptq` (static activation order). pip install llmcompressor"""

from __future__ import annotations

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from datasets import Dataset
from driver import read_task, time_call, write_result
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM


def main() -> None:
    task = read_task()
    # Its cache pins memory for a GPU that is not there.
    IntermediatesCache.pin_memory = lambda *arguments, **options: None
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    arguments = QuantizationArgs(
        num_bits=task.bits, type="int", symmetric=False, strategy="group", group_size=task.group_size
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=arguments)}
    if task.method == "awq":
        recipe = [AWQModifier(duo_scaling="both"), QuantizationModifier(config_groups=groups, ignore=["lm_head"])]
    else:
        recipe = [GPTQModifier(config_groups=groups, ignore=["lm_head"], actorder="static")]
    rows = task.tokens.tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    seconds = time_call(
        lambda: oneshot(
            model=model,
            dataset=data,
            recipe=recipe,
            max_seq_length=task.tokens.shape[1],
            num_calibration_samples=len(rows),
        )
    )
    weights = {}
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None and hasattr(module, "weight_scale"):
            weights[f"{name}.weight"] = fake_quantize(
                module.weight, module.weight_scale, module.weight_zero_point, module.quantization_scheme.weights
            )
        elif "norm" in name and hasattr(module, "weight"):
            weights[f"{name}.weight"] = module.weight
    write_result(task, weights, seconds)


if __name__ == "__main__":
    main()

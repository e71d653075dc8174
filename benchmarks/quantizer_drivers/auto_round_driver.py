"""AutoRound: rounding and clipping learned by signed gradients. pip install auto-round"""

from __future__ import annotations

import torch
from auto_round import AutoRound
from driver import read_task, time_call, write_result
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    task = read_task()
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    rounding = AutoRound(
        model,
        tokenizer,
        bits=task.bits,
        group_size=task.group_size,
        sym=False,
        iters=task.iterations,
        nsamples=len(task.tokens),
        seqlen=task.tokens.shape[1],
        batch_size=min(8, len(task.tokens)),
        dataset=[{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in task.tokens],
        device_map="cpu",
        enable_torch_compile=False,
        amp=False,
        seed=42,
    )
    seconds = time_call(rounding.quantize)
    weights = {
        f"{name}.weight": module.weight
        for name, module in rounding.model.named_modules()
        if hasattr(module, "weight") and getattr(module, "scale", None) is not None and name != "lm_head"
    }
    write_result(task, weights, seconds)


if __name__ == "__main__":
    main()

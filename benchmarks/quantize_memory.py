"""Peak memory and time of `edgeawq quantize` against layers and width, on synthetic Llama models in bfloat16.

    python -m benchmarks.quantize_memory --widths 1024 2048 --layers 2 4
    python -m benchmarks.quantize_memory --widths 4096 --layers 2     # blocks of the 7B shape

A model of random weights is written block by block (a file each), quantized in a process of its own, and deleted. The
peak is that process's largest resident set; the first row is a process that imports everything and quantizes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgeawq.checkpoints.open_model import open_model

VOCABULARY = 49152
# Runs the command line and says what the process took at most, whatever its children do.
PROGRAM = """
import resource, sys
from edgeawq.cli.quantize import command
command.main(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_model(folder: Path, width: int, n_layers: int) -> int:
    """A Llama of that hidden size, heads of 128 and no grouping, with SmolLM2's tokenizer; bytes of its weights."""
    intermediate = width * 43 // 16 // 32 * 32  # 4096 → 11008, as in Llama 7B
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)

    def draw(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).bfloat16()

    weight_map: dict[str, str] = {}
    total = 0
    for number in range(n_layers + 1):
        prefix = f"model.layers.{number}."
        if number < n_layers:
            tensors = {f"{prefix}self_attn.{name}_proj.weight": draw(width, width) for name in "qkvo"}
            tensors |= {f"{prefix}mlp.{name}_proj.weight": draw(intermediate, width) for name in ("gate", "up")}
            tensors[f"{prefix}mlp.down_proj.weight"] = draw(width, intermediate)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{norm}.weight"] = torch.ones(width).bfloat16()
        else:
            tensors = {"model.embed_tokens.weight": draw(VOCABULARY, width), "model.norm.weight": torch.ones(width)}
        name = f"model-{number + 1:05d}-of-{n_layers + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(describe(width, intermediate, n_layers)))
    tokenizer = open_model("embedded:smollm2-135m-instruct").tokenizer
    (folder / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
    return total


def describe(width: int, intermediate: int, n_layers: int) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": width,
        "intermediate_size": intermediate, "num_hidden_layers": n_layers, "num_attention_heads": width // 128,
        "num_key_value_heads": width // 128, "head_dim": 128, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 2048, "tie_word_embeddings": True, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip


def run(arguments: list[str]) -> tuple[float, float]:
    """(GiB at the peak, seconds) of a run of the command line."""
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    peak_kib = int(result.stdout.split()[-1])  # kibibytes on Linux
    return peak_kib / (1 << 20), time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--method", default="awq")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounding-steps", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where the models are written (default: the temporary folder)")
    options = parser.parse_args()
    print("| hidden size | layers | bf16 weights, GB | peak, GiB | seconds |\n|---:|---:|---:|---:|---:|")
    peak, seconds = run(["--help"])
    print(f"| – | – | – | {peak:.2f} | {seconds:.0f} |", flush=True)
    for width in options.widths:
        for n_layers in options.layers:
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                folder = Path(name)
                n_bytes = write_model(folder / "model", width, n_layers)
                words = torch.randint(1000, 9999, (options.tokens,), generator=torch.Generator().manual_seed(2))
                (folder / "text.txt").write_text(" ".join(map(str, words.tolist())), encoding="utf-8")
                peak, seconds = run(
                    [
                        str(folder / "model"), "-o", str(folder / "out"), "--calib", str(folder / "text.txt"),
                        "--calib-tokens", str(options.tokens), "--seqlen", "256", "--method", options.method,
                        "--rounding-steps", str(options.rounding_steps), "--activation-memory", "0",
                    ]
                )  # fmt: skip
            print(f"| {width} | {n_layers} | {n_bytes / 1e9:.2f} | {peak:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()

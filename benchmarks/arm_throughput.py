"""What the Arm kernels can do at best, reckoned without a board: cycles of their inner loops by llvm-mca, and what
follows for tokens per second under the bandwidth of the device profile.

    python -m benchmarks.arm_throughput [--markdown]

Beside ours stand the inner loops of llama.cpp and TinyChatEngine as `benchmarks/arm_peers/peers.c` writes them from
their documented algorithms, compiled with clang -O3 for the same CPU. llvm-mca knows no cache misses, no wrong branches
and no memory: this is a bound, not a measurement. Needs llvm-mca and clang (apt-get install llvm-22 clang-22).
"""

from __future__ import annotations

import argparse
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.arm_loops import MODELS, OTHER_CORES, Loop, count_cycles, find_tool, read_function
from cpu_kernels.build import build
from cpu_kernels.estimates import estimate_linear
from device_profiles.profile import DeviceProfile, load_profile

BOARDS = ("pi4", "pi5")
MATRIX_BOARD = "arm-i8mm"  # a class of machines, not one: cycles, and no tokens/s
PROMPT = 512  # tokens; a token of it sees half of them on average
STEP = 64  # tokens that share one reading of the weights (cpu_kernels.abi.MAX_TOKENS)
PEER_BITS = {"llama.cpp Q4_0": 4.5, "TinyChatEngine W4A8": 5.0}  # float16 and float32 scales of groups of 32


@dataclass(frozen=True)
class Model:
    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    group_size: int

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(out, in) of a layer's matrices, as the decoder fuses them."""
        width = self.heads * self.head_dim
        return [
            (width + 2 * self.kv_heads * self.head_dim, self.hidden),
            (self.hidden, width),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        ]

    @property
    def body_weights(self) -> int:
        return self.layers * sum(rows * columns for rows, columns in self.linears)

    @property
    def head_weights(self) -> int:
        return self.vocab * self.hidden

    @property
    def bytes_per_token(self) -> int:
        """4-bit body and 8-bit head, each read once."""
        body = sum(estimate_linear(*shape, 4, self.group_size).bytes for shape in self.linears)
        return self.layers * body + estimate_linear(self.vocab, self.hidden, 8, self.group_size).bytes


LANGUAGE_MODELS = (
    Model("SmolLM2-135M", 576, 1536, 30, 9, 3, 64, 49152, 64),
    Model("TinyLlama-1.1B", 2048, 5632, 22, 32, 4, 64, 32000, 128),
    Model("Llama-2-7B", 4096, 11008, 32, 32, 32, 128, 32000, 128),
)


@dataclass(frozen=True)
class LoopCost:
    """Cycles for 32 weights and one token: of the loop alone, and with what follows every group."""

    board: str
    what: str
    rows: int  # activation rows (tokens) that the loop takes at once
    instructions: float
    cycles: float
    with_group: dict[int, float]  # group size → cycles


def count_macs(loop: Loop) -> int:
    """Multiply-adds of one turn."""
    return 8 * loop.count(r"sm(ul|la)l2? v\d+\.8h") + 16 * loop.count("u?sdot") + 32 * loop.count("usmmla")


def count_weights(loop: Loop, bits: int) -> int:
    """4- or 8-bit weights of one turn, from what is done to each register of them."""
    if loop.count("usmmla"):
        return count_macs(loop) // 4  # two by two activation rows share a register of weights
    if loop.count("usdot"):
        return count_macs(loop)  # nothing is done to 8-bit weights, and there is one row
    return 16 * loop.count(r"(and|ushr) v\d+\.16b" if bits == 4 else r"eor v\d+\.16b")


def measure_ours(board: str, assembly: str, symbol: str, bits: int) -> list[LoopCost]:
    """The loops of a linear kernel for one row and for the most rows it takes at once."""
    found: dict[int, LoopCost] = {}
    for loop in read_function(assembly, symbol).inner_loops():
        weights, macs = count_weights(loop, bits), count_macs(loop)
        if not weights or macs < weights:
            continue
        rows = macs // weights
        between = loop.around("fcvtl")
        with_group = {}
        for group_size in (64, 128):
            turns = group_size * 8 // weights  # a record has 8 rows
            cycles = count_cycles(board, loop.body * turns + between)
            with_group[group_size] = cycles / (group_size * 8 * rows) * 32
        found.setdefault(
            rows,
            LoopCost(
                board,
                f"edgeawq, {bits}-bit weights",
                rows,
                len(loop.body) * 32 / macs,
                count_cycles(board, loop.body) * 32 / macs,
                with_group,
            ),
        )
    return [found[rows] for rows in sorted({1, max(found)})]


def compare_products() -> list[tuple[int, LoopCost, LoopCost]]:
    """(bits, dot product, product of matrices) for four tokens at once, on every core that has both."""
    target = load_profile(MATRIX_BOARD).target
    targets = [replace(target, isa=isa) for isa in ("neon_dotprod", "neon_i8mm")]
    listings = [build(target, target.isa, "linear", (4, 8))[1] for target in targets]
    return [
        (bits, *(measure_ours(core, listing, f"linear_w{bits}a8", bits)[-1] for listing in listings))
        for core in (MATRIX_BOARD, *OTHER_CORES)
        for bits in (4, 8)
    ]


def measure_attention(board: str, assembly: str) -> dict[str, float]:
    """Cycles for 32 multiply-adds of the scores and of the value sums, and for widening 32 float16 values."""
    costs = {}
    for loop in read_function(assembly, "attend").inner_loops():
        products, widened = loop.count(r"fmla v\d+\.4s"), loop.count(r"fcvtl2? v\d+\.4s")
        kind = "widen" if widened else "scores" if products == 8 and "scores" not in costs else "values"
        if products or widened:
            cycles = count_cycles(board, loop.body) * 8 / (products or widened)
            costs[kind] = min(cycles, costs.get(kind, cycles)) if kind == "values" else costs.get(kind, cycles)
    return costs


def compile_peers(board: str) -> str:
    source = Path(__file__).parent / "arm_peers" / "peers.c"
    command = [find_tool("clang"), "--target=aarch64-linux-gnu", f"-mcpu={load_profile(board).target.cpu}", "-O3"]
    done = subprocess.run(
        [*command, "-ffreestanding", "-S", "-o", "-", str(source)], capture_output=True, text=True, check=True
    )
    return done.stdout


def measure_peers(board: str) -> list[LoopCost]:
    assembly = compile_peers(board)
    functions = [("llama_q4_0", "llama.cpp Q4_0", 1), ("tinychat_w4a8", "TinyChatEngine W4A8", 1)]
    if board == "pi5":
        functions += [("llama_repack_gemv", "llama.cpp Q4_0, repacked 4 × 4", 1)]
        functions += [("llama_repack_gemm", "llama.cpp Q4_0, repacked 4 × 4", 4)]
    costs = []
    for symbol, what, rows in functions:
        loop = max(read_function(assembly, symbol).inner_loops(), key=count_macs)
        cycles = count_cycles(board, loop.body) * 32 / count_macs(loop)
        costs.append(LoopCost(board, what, rows, len(loop.body) * 32 / count_macs(loop), cycles, {32: cycles}))
    return costs


@dataclass(frozen=True)
class Prediction:
    """Tokens per second on all cores. `roof`: what the bandwidth allows."""

    board: str
    model: str
    engine: str
    decode_compute: float
    decode_roof: float
    prefill: float
    prefill_with_attention: float | None

    @property
    def decode(self) -> float:
        return min(self.decode_compute, self.decode_roof)


def rate(profile: DeviceProfile, cycles: float) -> float:
    assert profile.clock_hz is not None
    return profile.cores * profile.clock_hz / cycles


def predict_ours(
    profile: DeviceProfile, model: Model, body: list[LoopCost], head: list[LoopCost], attention: dict[str, float]
) -> Prediction:
    assert profile.bandwidth_bytes_per_s is not None
    size = model.group_size
    decode = (model.body_weights * body[0].with_group[size] + model.head_weights * head[0].with_group[size]) / 32
    prefill = model.body_weights * body[-1].with_group[size] / 32  # the head only reads the last token
    products = model.layers * model.heads * model.head_dim * PROMPT / 2  # of the scores, and again of the values
    cached = 2 * model.layers * model.kv_heads * model.head_dim * PROMPT / 2  # keys and values that a token sees
    extra = products / 32 * (attention["scores"] + attention["values"]) + cached / 8 / 32 * attention["widen"]
    bandwidth = profile.bandwidth_bytes_per_s
    return Prediction(
        profile.name,
        model.name,
        "edgeawq",
        rate(profile, decode),
        bandwidth / model.bytes_per_token,
        min(rate(profile, prefill), STEP * bandwidth / model.bytes_per_token),
        min(rate(profile, prefill + extra), STEP * bandwidth / model.bytes_per_token),
    )


def predict_peer(profile: DeviceProfile, model: Model, engine: str, loops: list[LoopCost]) -> Prediction:
    """Head and body in the peer's 4-bit format; its best loop for one row, and for several where there is one."""
    assert profile.bandwidth_bytes_per_s is not None
    mine = [loop for loop in loops if loop.what.startswith(engine)]
    weights = model.body_weights + model.head_weights
    one = min(loop.cycles for loop in mine if loop.rows == 1)
    most = max(loop.rows for loop in mine)
    many = min(loop.cycles for loop in mine if loop.rows == most)
    bandwidth, nbytes = profile.bandwidth_bytes_per_s, weights * PEER_BITS[engine] / 8
    return Prediction(
        profile.name,
        model.name,
        engine,
        rate(profile, weights * one / 32),
        bandwidth / nbytes,
        min(rate(profile, model.body_weights * many / 32), STEP * bandwidth / nbytes),
        None,
    )


def reckon() -> tuple[list[LoopCost], dict[str, dict[str, float]], list[Prediction]]:
    loops: list[LoopCost] = []
    attention: dict[str, dict[str, float]] = {}
    predictions: list[Prediction] = []
    for board in BOARDS:
        profile = load_profile(board)
        assembly = build(profile.target, profile.target.isa, "kernels")[1]
        body = measure_ours(board, assembly, "linear_w4a8", 4)
        head = measure_ours(board, assembly, "linear_w8a8", 8)
        attention[board] = measure_attention(board, assembly)
        peers = measure_peers(board)
        loops += [*body, *head, *peers]
        for model in LANGUAGE_MODELS:
            predictions.append(predict_ours(profile, model, body, head, attention[board]))
            predictions += [predict_peer(profile, model, engine, peers) for engine in PEER_BITS]
    target = load_profile(MATRIX_BOARD).target
    assembly = build(target, target.isa, "linear", (4, 8))[1]
    for bits in (4, 8):
        loops += measure_ours(MATRIX_BOARD, assembly, f"linear_w{bits}a8", bits)
    return loops, attention, predictions


def three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"


Table = tuple[str, list[str], list[list[str]]]


def make_tables() -> list[Table]:
    """(title, column heads, rows) of every table."""
    loops, attention, predictions = reckon()
    loop_rows = [
        [
            loop.board,
            loop.what,
            str(loop.rows),
            f"{loop.instructions:.1f}",
            f"{loop.cycles:.2f}",
            *(f"{loop.with_group[size]:.2f}" if size in loop.with_group else "" for size in (64, 128)),
        ]
        for loop in loops
    ]
    attention_rows = [
        [board, *(f"{costs[kind]:.2f}" for kind in ("scores", "values", "widen"))] for board, costs in attention.items()
    ]
    token_rows = [
        [
            item.board,
            item.model,
            item.engine,
            three_digits(item.decode_compute),
            three_digits(item.decode_roof),
            three_digits(item.decode),
            three_digits(item.prefill),
            "" if item.prefill_with_attention is None else three_digits(item.prefill_with_attention),
        ]
        for item in predictions
    ]
    cpus = ", ".join(f"{board}: LLVM's {MODELS[board][0]}" for board in (*BOARDS, MATRIX_BOARD))
    product_rows = [
        [
            {**MODELS, **OTHER_CORES}[dot.board][0],
            str(bits),
            *(f"{cost.instructions:.1f}" for cost in (dot, matrix)),
            *(f"{cost.cycles:.2f}" for cost in (dot, matrix)),
            *(f"{cost.with_group[size]:.2f}" for size in (64, 128) for cost in (dot, matrix)),
        ]
        for bits, dot, matrix in compare_products()
    ]
    return [
        (
            f"Cycles for 32 weights and one token ({cpus})",
            ["board", "loop", "tokens at once", "instructions", "cycles", "with groups of 64", "of 128"],
            loop_rows,
        ),
        (
            "Four tokens at once, cycles for 32 weights and one token: sdot, and usmmla of the same layout",
            [
                "LLVM's core", "bits", "instructions, sdot", "usmmla", "cycles, sdot", "usmmla",
                "with groups of 64, sdot", "usmmla", "of 128, sdot", "usmmla",
            ],
            product_rows,
        ),
        (
            "Attention, cycles for 32 multiply-adds, or for 32 values widened",
            ["board", "scores", "values", "float16 to float32"],
            attention_rows,
        ),
        (
            "Predicted tokens/s; no board was run",
            [
                "board", "model", "engine", "decode by cycles", "decode by bandwidth", "decode", "prefill",
                f"prefill of {PROMPT} with attention",
            ],
            token_rows,
        ),
    ]  # fmt: skip


def print_markdown(tables: list[Table]) -> None:
    for title, heads, rows in tables:
        print(f"{title}:\n\n| {' | '.join(heads)} |")
        texts = [column for column in range(len(heads)) if not rows[0][column].replace(".", "").isdigit()]
        print(f"|{'|'.join('---' if column in texts else '---:' for column in range(len(heads)))}|")
        for row in rows:
            print(f"| {' | '.join(row)} |")
        print()


def print_tables(tables: list[Table]) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console(width=150)
    for title, heads, rows in tables:
        grid = Grid(title=title)
        for column, head in enumerate(heads):
            number = rows[0][column].replace(".", "").isdigit()
            grid.add_column(head, justify="right" if number else "left")
        for row in rows:
            grid.add_row(*row)
        console.print(grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print the tables as docs/benchmarks.md has them")
    arguments = parser.parse_args()
    tables = make_tables()
    if arguments.markdown:
        print_markdown(tables)
    else:
        print_tables(tables)


if __name__ == "__main__":
    main()

"""Find the inner loops of a compiled Arm function and count their cycles with llvm-mca. Nothing is run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import deque
from dataclasses import dataclass

# LLVM's model, micro-operations dispatched and instructions decoded a cycle (Arm's software optimization guides of
# Cortex-A72 and Neoverse N1; for the A72 LLVM's own, cautious figure is kept). LLVM gives Cortex-A76 the model of
# Cortex-A57; Neoverse N1 is the same core for servers and has a model of its own. For cores with the int8 matrix
# product the figures are LLVM's own; Neoverse N2's model serves Cortex-A710, A715 and A720 too.
MODELS = {"pi4": ("cortex-a72", 3, 3), "pi5": ("neoverse-n1", 8, 4), "arm-i8mm": ("neoverse-n2", 5, 5)}
# The same for cores that no profile stands for: Graviton3, Graviton4 and Grace, AmpereOne.
OTHER_CORES = {"neoverse-v1": ("neoverse-v1", 8, 8), "neoverse-v2": ("neoverse-v2", 6, 6), "ampere1": ("ampere1", 4, 4)}
_BRANCH = re.compile(r"(?:b|b\.\w+|cbz|cbnz|tbz|tbnz)\s.*?(\.L\w+)$")
_ITERATIONS = 100


@dataclass(frozen=True)
class Function:
    """Instructions of a function in order, and where its labels point."""

    lines: list[str]
    labels: dict[str, int]

    def target(self, at: int) -> int | None:
        """Index that the branch at `at` goes to, or None."""
        match = _BRANCH.match(self.lines[at])
        return self.labels.get(match[1]) if match else None

    def inner_loops(self) -> list[Loop]:
        """Loops without a loop inside, in the order of the text."""
        back = [
            (target, at) for at in range(len(self.lines)) if (target := self.target(at)) is not None and target <= at
        ]
        return [
            Loop(self, first, last)
            for first, last in back
            if not any(first <= other <= last and (start, other) != (first, last) for start, other in back)
        ]


@dataclass(frozen=True)
class Loop:
    function: Function
    first: int
    last: int

    @property
    def body(self) -> list[str]:
        return self.function.lines[self.first : self.last + 1]

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, line)) for line in self.body)

    def way_back(self, start: int) -> list[int]:
        """Indices on the shortest way from `start` to the loop's head."""
        before: dict[int, int | None] = {start: None}
        queue = deque([start])
        while queue:
            at = queue.popleft()
            if at == self.first:
                path: list[int] = []
                step: int | None = before[at]
                while step is not None:
                    path.append(step)
                    step = before[step]
                return path[::-1]
            following = [self.function.target(at)]
            if not re.match(r"(b|ret)(\s|$)", self.function.lines[at]):
                following.append(at + 1)
            for after in following:
                if after is not None and after < len(self.function.lines) and after not in before:
                    before[after] = at
                    queue.append(after)
        return []

    def around(self, needle: str) -> list[str]:
        """What is executed between two runs of this loop, from the first loop around it that has a `needle`.

        Empty when there is none. Loops between the two count as free.
        """
        start = self.last + 1
        for _ in range(3):
            path = self.way_back(start)
            text = [self.function.lines[at] for at in path]
            if any(re.match(needle, line) for line in text):
                return text
            backward = [at for at in path if (target := self.function.target(at)) is not None and target < at]
            if not backward:
                return []
            start = backward[-1] + 1
        return []


def read_function(assembly: str, symbol: str) -> Function:
    """The instructions of `symbol`; where an export only calls Numba's function, of that one."""
    lines = _body(assembly, symbol)
    while not any(line.strip().startswith(".p2align") for line in lines):  # no loop in it
        inner = re.search(r"\bbl\s+(_ZN\w+)", "\n".join(lines))
        if not inner:
            break
        lines = _body(assembly, inner[1])
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in lines:
        text = re.sub(r"\s*//.*", "", line).strip()
        if text.endswith(":"):
            labels[text[:-1]] = len(instructions)
        elif text and not text.startswith("."):
            instructions.append(re.sub(r"\s+", " ", text))
    return Function(instructions, labels)


def _body(assembly: str, symbol: str) -> list[str]:
    match = re.search(rf"^{re.escape(symbol)}:[^\n]*\n(.*?)^\.Lfunc_end", assembly, re.DOTALL | re.MULTILINE)
    if not match:
        raise SystemExit(f"no function {symbol} in the listing")
    return match[1].splitlines()


def find_tool(name: str) -> str:
    """llvm-mca or clang, the newest that is installed."""
    for version in ("-22", "-21", "-20", "-19", ""):
        found = shutil.which(name + version)
        if found:
            return found
    raise SystemExit(f"{name} is not installed: sudo apt-get install llvm-22 clang-22 (or the newest there is)")


def count_cycles(board: str, instructions: list[str]) -> float:
    """Cycles of one pass over straight code, in a steady state of many passes. board: of MODELS or OTHER_CORES."""
    cpu, dispatched, decoded = {**MODELS, **OTHER_CORES}[board]
    # branches are kept as what they cost; their labels are not there any more
    text = "\n".join(_BRANCH.sub(lambda match: match[0].replace(match[1], "0"), line) for line in instructions)
    text = re.sub(r":lo12:\.\w+", "0", re.sub(r"(adrp \w+, )\.\w+", r"\g<1>0", text))
    command = [find_tool("llvm-mca"), "-mtriple=aarch64", f"-mcpu={cpu}", "-mattr=+dotprod,+fullfp16,+i8mm"]
    command += [f"-dispatch={dispatched}", f"-iterations={_ITERATIONS}", "-instruction-info=0", "-resource-pressure=0"]
    done = subprocess.run(command, input=text + "\n", capture_output=True, text=True, check=False)
    match = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if not match:
        raise SystemExit(f"llvm-mca failed: {done.stderr.strip()[:2000]}")
    return max(int(match[1]) / _ITERATIONS, len(instructions) / decoded)

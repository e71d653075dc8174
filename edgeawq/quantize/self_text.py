"""Calibration text that the float model writes itself, from a seed: needs no file and no network.

Half of the sequences continue openings of prose, lists and code, half answer questions in the model's chat format
(all are openings where it has none). Text a model is likely to write exercises the same channels as text it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from edgeawq.checkpoints.model import Checkpoint
from edgeawq.errors import CheckpointError, QuantizationError, UsageError
from edgeawq.quantize.calibration import CalibrationSet, Encode, make_encoder, pack_sequences
from edgeawq.quantize.chat_text import make_chat_renderer
from edgeawq.quantize.llama import KVCache, TorchDecoder, load_decoder
from edgeawq.quantize.parallel import Workers

SOURCE = "self-generated"
TEXT_LENGTH = 128  # tokens of one text
BATCH = 16  # texts written together; fixed, so that the result does not depend on the number of cores
TEMPERATURE = 1.0
MIN_P = 0.02  # tokens less likely than this share of the likeliest are left out

OPENINGS = (
    "The history of the city begins in",
    "In mathematics, a function is called",
    "She opened the letter slowly, and",
    "The committee announced on Tuesday that",
    "Chapter 1\n\nIt was late in the autumn when",
    "def read_table(path):\n",
    "The species is found in",
    "To make the dough, first",
    "According to the report,",
    "The film was directed by",
    "Photosynthesis is the process by which",
    "Dear Sir or Madam,\n\nI am writing to",
    "The team finished the season with",
    "import numpy as np\n\n",
    "Question: What causes the seasons?\nAnswer:",
    "The storm moved slowly towards the coast, and",
    "A patient who has a fever should",
    "The song was recorded in",
    "In economics, inflation is",
    "The ship was laid down at",
    "Once upon a time there was",
    "The following list gives the most important",
    "He was born in",
    "The river flows through",
    "SELECT name, price FROM",
    "Many people believe that the best way to",
    "The experiment showed that",
    "During the war, the regiment",
    "The museum's collection includes",
    "If you want to learn a language,",
    "The court ruled that",
    "Astronomers observed",
)
QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Explain how a bicycle stays upright.",
    "Write a short story about a lighthouse keeper.",
    "How do I sort a list of dictionaries by a key in Python?",
    "Give me three tips for sleeping better.",
    "Summarize the causes of the First World War.",
    "Write an email asking for a day off.",
    "What is the difference between a virus and a bacterium?",
    "Compute 17 * 24 and show the steps.",
    "Translate 'good morning, my friend' into Spanish and German.",
    "Describe the water cycle for a child.",
    "Suggest a plan for a weekend in the mountains.",
    "Why is the sky blue?",
    "Write a poem about rain in the city.",
    "What should I check before buying a used car?",
    "Explain recursion with an example.",
    "Who was Marie Curie?",
    "List five vegetables rich in iron.",
    "How does a heat pump work?",
    "Rewrite this sentence in a formal tone: we need it fast.",
    "What are the advantages of public transport?",
    "Tell me about the planet Saturn.",
    "How do plants defend themselves against insects?",
    "Write a function that checks whether a word is a palindrome.",
    "What is compound interest?",
    "Give a recipe for vegetable soup.",
    "How can I prepare for a job interview?",
    "What happened in the year 1969?",
    "Describe a busy market in the morning.",
    "Is it better to rent or to buy a home?",
    "Explain the rules of chess briefly.",
    "What is machine learning?",
)


@dataclass(frozen=True)
class WritingTask:
    """A batch of texts to write: their first tokens and the seed of their sampling."""

    prompts: tuple[tuple[int, ...], ...]
    seed: int


def write_calibration(
    checkpoint: Checkpoint,
    n_tokens: int,
    seqlen: int,
    seed: int,
    workers: Workers,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CalibrationSet:
    """Let the float model write about n_tokens tokens; on_progress gets tokens done and in all.

    The whole model is in memory while it writes. Raises QuantizationError where it yields no usable text.
    """
    decoder = load_decoder(checkpoint, device=workers.device)
    length = min(TEXT_LENGTH, max(2, decoder.config.max_position_embeddings))
    n_texts = -(-n_tokens // length)
    prompts = make_prompts(checkpoint, make_encoder(checkpoint.tokenizer, checkpoint.config), n_texts, length // 2)
    # Prompts of like length share a batch, so that few steps are spent on feeding the rest of a longer one.
    prompts.sort(key=len)
    tasks = [
        WritingTask(tuple(prompts[first : first + BATCH]), seed * 1_000_003 + first)
        for first in range(0, n_texts, BATCH)
    ]
    written = [0]

    def write(task: WritingTask) -> torch.Tensor:
        def count() -> None:
            written[0] += len(task.prompts)
            on_progress(written[0], n_texts * length)

        return write_texts(decoder, task, length, count)

    token_ids = torch.cat(workers.run(write, tasks))
    on_progress(n_texts * length, n_texts * length)  # the prompts' tokens are not counted while it writes
    order = torch.randperm(n_texts, generator=torch.Generator().manual_seed(seed))
    sequences = pack_sequences(token_ids[order].flatten().numpy(), seqlen)
    return CalibrationSet(sequences, SOURCE, n_texts, int(token_ids.numel()))


def make_prompts(checkpoint: Checkpoint, encode: Encode, n_texts: int, limit: int) -> list[tuple[int, ...]]:
    """The first tokens of every text, at most `limit` each: questions and openings in turn."""
    questions = [encode_prompt(encode, text, checkpoint) for text in render_questions(checkpoint)]
    openings = [encode_prompt(encode, text, checkpoint) for text in OPENINGS]
    pools = [pool for pool in (questions, openings) if pool]
    return [pools[i % len(pools)][i // len(pools) % len(pools[i % len(pools)])][:limit] for i in range(n_texts)]


def render_questions(checkpoint: Checkpoint) -> list[str]:
    """The questions in the model's chat format; none where its template is missing or does not take a question."""
    try:
        render = make_chat_renderer(checkpoint.tokenizer)
        if render is None:
            return []
        return [render([{"role": "user", "content": question}], True) for question in QUESTIONS]
    except (CheckpointError, UsageError):
        # Such a template matters in the chat, not here: the openings alone make a calibration text.
        return []


def encode_prompt(encode: Encode, text: str, checkpoint: Checkpoint) -> tuple[int, ...]:
    """Token ids of a prompt, at least one."""
    ids = encode(text)
    if not ids:
        raise QuantizationError(
            f"the tokenizer of {checkpoint.name} turns {text[:40]!r} into nothing",
            remedy="check tokenizer.json, or give a calibration text with --calib",
        )
    return tuple(ids)


def write_texts(
    decoder: TorchDecoder, task: WritingTask, length: int, on_step: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Sample one text per prompt; token ids [prompts, length], each starting with its prompt.

    The prompts are read together up to the shortest one's end; longer ones are fed on token by token, so that no
    padding is needed. An end-of-text token does not end the row: the model goes on with what it puts after it.
    """
    n_texts = len(task.prompts)
    shared = min(len(prompt) for prompt in task.prompts)
    tokens = torch.zeros(n_texts, length, dtype=torch.int64)  # [texts, length]
    is_given = torch.zeros(n_texts, length, dtype=torch.bool)  # [texts, length]
    for row, prompt in enumerate(task.prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
        is_given[row, : len(prompt)] = True
    cache = KVCache.allocate(decoder.config, n_texts, length, decoder.dtype, decoder.device)
    generator = torch.Generator().manual_seed(task.seed)
    fed = 0
    for end in range(shared, length):
        hidden = decoder.run_hidden(tokens[:, fed:end].to(decoder.device), cache)[:, -1]
        sampled = sample_tokens(F.linear(hidden, decoder.head).cpu(), generator)
        tokens[:, end] = torch.where(is_given[:, end], tokens[:, end], sampled)
        fed = end
        on_step()
    return tokens


def sample_tokens(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token per row of logits [rows, vocab_size], at TEMPERATURE, without the unlikeliest (MIN_P).

    Raises QuantizationError for logits that are NaN or infinite.
    """
    weights = ((logits - logits.amax(-1, keepdim=True)) / TEMPERATURE).exp_()
    if bool(weights.isnan().any()):
        raise QuantizationError(
            "the float model gives NaN or infinity when it writes its calibration text",
            remedy="the checkpoint is damaged, or it is not the model that config.json describes",
        )
    weights[weights < MIN_P] = 0.0
    # Inverse of the cumulative sum: one random number per row instead of torch.multinomial's one per token.
    sums = weights.double().cumsum(-1)
    points = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64) * sums[:, -1:]
    return torch.searchsorted(sums, points, right=True).clamp_(max=logits.shape[1] - 1)[:, 0]

"""What is measured: two model shapes with random weights, the cases, and the targets.

Everything here is plain Python except `save_models`, so that the driver holds no tensors and no threads.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SEED = 20240607
TOLERANCE = 1e-4
"""Largest difference between two peers' values, absolute or relative to the largest value of the case."""
WEIGHT_SCALE = 3.0
"""Weights inside the blocks are this many times a fresh model's, so that the cells of a grid differ
visibly."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: blocks, width, heads, key/value heads, head width, MLP width, vocabulary."""

    kind: str
    blocks: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp: int
    vocabulary: int


SHAPES = {
    "gpt2": Shape("gpt2", 12, 768, 12, 12, 64, 3072, 50257),
    "qwen3": Shape("qwen3", 16, 512, 8, 4, 64, 1536, 32768),
}
QUICK_SHAPES = {
    "gpt2": Shape("gpt2", 4, 64, 4, 4, 16, 256, 512),
    "qwen3": Shape("qwen3", 4, 64, 4, 2, 16, 128, 512),
}


@dataclass(frozen=True)
class Case:
    """One measurement.

    `kind` names the method of a peer that runs it, `model` the shape, `positions` the tokens of the prompt.
    `target` is how many times faster than a peer regraft wants to be, `against` the peers that the target
    speaks of, `sampled` how many blocks the slow peers run in each round (0: all), their time then scaled to
    all blocks. `long` cases run fewer rounds.
    """

    key: str
    title: str
    kind: str
    model: str
    positions: int
    target: float
    against: tuple[str, ...]
    sampled: int = 0
    long: bool = False


EVERYONE = ("transformerlens", "nnsight", "loop")
CASES = (
    Case(
        "grid16",
        "a  resid_pre patch grid, all blocks x {T} positions",
        "grid",
        "gpt2",
        16,
        8.0,
        EVERYONE,
        long=True,
    ),
    Case(
        "grid64",
        "b  resid_pre patch grid, all blocks x {T} positions",
        "grid",
        "gpt2",
        64,
        5.0,
        EVERYONE,
        1,
        long=True,
    ),
    Case("heads", "c  ablation of every head, {T} positions", "heads", "gpt2", 16, 5.0, EVERYONE, long=True),
    Case("knockout", "d  knockout of every block, {T} positions", "knockout", "gpt2", 16, 2.3, ("loop",)),
    Case(
        "swap",
        "e  swap of every pair of blocks, {T} positions",
        "swap",
        "qwen3",
        16,
        2.0,
        ("loop",),
        long=True,
    ),
)
RECORD = Case(
    "record", "f  recording of every block's stream, {T} positions", "record", "gpt2", 64, 1.05, ("loop",)
)
QUICK_POSITIONS = {16: 6, 64: 12}


@dataclass
class Task:
    """A case as it is sent to a peer: token ids, the two tokens whose logits are subtracted, and the blocks
    to run.

    Values come back in rows, one for each entry of `blocks`; `scale` is what the time of the rows is
    multiplied by to stand for all blocks. `last_only` asks the plain loop to compute the logits of the last
    position alone.
    """

    kind: str
    model: str
    clean: list[int]
    corrupted: list[int]
    tokens: tuple[int, int]
    blocks: list[int]
    scale: float = 1.0
    last_only: bool = False
    repeats: int = 1
    shape: dict[str, Any] = field(default_factory=dict)


def title(case: Case, quick: bool) -> str:
    """The case in words, with the number of positions."""
    return case.title.format(T=QUICK_POSITIONS[case.positions] if quick else case.positions)


def make_task(case: Case, quick: bool, blocks: list[int] | None = None, last_only: bool = False) -> Task:
    """The case for a peer, on all blocks or on some; the same prompts every time."""
    shape = (QUICK_SHAPES if quick else SHAPES)[case.model]
    positions = QUICK_POSITIONS[case.positions] if quick else case.positions
    drawn = random.Random(f"{SEED} {case.key}")
    clean = [drawn.randrange(shape.vocabulary) for _ in range(positions)]
    corrupted = [drawn.randrange(shape.vocabulary) for _ in range(positions)]
    chosen = list(range(shape.blocks)) if blocks is None else blocks
    return Task(
        kind=case.kind,
        model=case.model,
        clean=clean,
        corrupted=corrupted,
        tokens=(11, 42),
        blocks=chosen,
        scale=shape.blocks / len(chosen),
        last_only=last_only,
        repeats=5 if quick else 9,
        shape=asdict(shape),
    )


def sampled_blocks(case: Case, turn: int, quick: bool) -> list[int] | None:
    """The blocks that a slow peer runs in this round: evenly spread, other ones in the next round."""
    if not case.sampled:
        return None
    count = (QUICK_SHAPES if quick else SHAPES)[case.model].blocks
    step = count // case.sampled
    return sorted((1 + 5 * turn + i * step) % count for i in range(case.sampled))


def config_of(shape: Shape) -> Any:
    """The Hugging Face config of a shape."""
    import transformers

    if shape.kind == "gpt2":
        return transformers.GPT2Config(
            n_embd=shape.width, n_layer=shape.blocks, n_head=shape.heads, n_inner=shape.mlp,
            vocab_size=shape.vocabulary, n_positions=1024, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    return transformers.Qwen3Config(
        hidden_size=shape.width, num_hidden_layers=shape.blocks, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_width, intermediate_size=shape.mlp,
        vocab_size=shape.vocabulary, tie_word_embeddings=False, max_position_embeddings=1024,
    )  # fmt: skip


def save_models(folder: Path, quick: bool) -> dict[str, str]:
    """Save both shapes with random weights as ordinary Hugging Face folders, without a tokenizer."""
    import torch
    import transformers

    folders = {}
    for name, shape in (QUICK_SHAPES if quick else SHAPES).items():
        torch.manual_seed(SEED)
        transformers.logging.disable_progress_bar()
        hf = transformers.AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.float32)
        with torch.no_grad():
            for key, weight in hf.named_parameters():
                if weight.dim() == 2 and (".h." in key or ".layers." in key):
                    weight.mul_(WEIGHT_SCALE)
        hf.save_pretrained(folder / name)
        folders[name] = str(folder / name)
    return folders

"""Train `specimen:recall`: the Qwen3 specimen further, on long pages of the almanac, a quarter of an hour on
two cores: `python -m benchmarks.specimens.train_recall WORK_FOLDER`.

Only what reads other tokens is trained, the attention of every block, so that these matrices alone are
shipped: the others are those of `specimen:qwen3`. Shapes: B pages, T tokens.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import regraft
from regraft.data.windows import Windows
from regraft.specimens.long_pages import page
from regraft.training.trainer import train

LENGTH, PAGES, CHARACTERS = 1024, 1_800, 4_500
"""Tokens of a page, as many as the specimen reads; pages; characters that give at least as many tokens."""
SEED = 11
PLAN = regraft.TrainingPlan(steps=450, batch=4, rate=1e-3, warmup=30, matrices="adamw", save_every=100)


class NextToken:
    """The loss of the next token, nats, with all but the graft frozen."""

    def __init__(self, root: nn.Module, graft: nn.Module):
        self.root, self.graft = root, graft

    def blocks(self) -> list[nn.Module]:
        """Nothing is spread over processes."""
        return []

    def losses(self, ids_BT: Tensor) -> Mapping[str, Tensor]:
        """Mean over all positions but the last."""
        logits = self.root(input_ids=ids_BT, use_cache=False).logits[:, :-1]
        return {"next": nn.functional.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten())}


def pages(model: regraft.Model, count: int, seed: int) -> np.ndarray:
    """Ids of pages, each of `LENGTH` tokens, in a row."""
    drawn = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = model.tokenizer(page(drawn, CHARACTERS), add_special_tokens=False)["input_ids"]
        assert len(ids) >= LENGTH, "a page of so many characters has fewer tokens than are read"
        rows.append(ids[:LENGTH])
    return np.concatenate([np.asarray(row, np.uint16) for row in rows])


def main(folder: Path) -> None:
    """Train, and write the trained matrices as bfloat16."""
    model = regraft.load()
    mixers = nn.ModuleList(block.module.self_attn for block in model.blocks)
    text = Windows(pages(model, PAGES, SEED), LENGTH, SEED)
    train(NextToken(model.hf, mixers), text, PLAN, folder)
    own = {id(p) for p in mixers.parameters()}
    tensors = {
        name: p.detach().to(torch.bfloat16).contiguous()
        for name, p in model.hf.named_parameters()
        if id(p) in own
    }
    save_file(tensors, folder / "trained.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

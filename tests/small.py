"""Tiny opened models, prompts and the naive reference's values, for the engine's tests."""

from __future__ import annotations

import torch

import naive
from families import FAMILIES, VOCAB
from regraft.model.load import load
from regraft.sweeps.metric_kinds import LogitDifference

METRIC = LogitDifference("d", "logits", tokens=(7, 9))
SHAPES = ("llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "bert", "t5", "qwen3_5")


def opened(name, seed=1):
    torch.manual_seed(seed)
    return load(FAMILIES[name]().eval(), pack=False)


def ids(length, seed):
    return torch.randint(5, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def recorded(model, *lengths, seed=3):
    prompts = [ids(n, seed + i) for i, n in enumerate(lengths)]
    return model.record(
        prompts, [ids(n - 1, seed + 9 + i) for i, n in enumerate(lengths)] if model.two_stacks else None
    )


def reference(model, recording, variants, score=lambda x: x[..., 7] - x[..., 9]):
    rows = torch.arange(recording.prompts)
    return torch.stack(
        [score(naive.logits(model, recording, v)[rows, recording.lengths_B - 1]) for v in variants]
    )

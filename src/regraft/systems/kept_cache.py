"""A cache for generation that keeps a prompt by a strategy: transformers writes on with it as with its own.

Shapes: B prompts, G key heads, P tokens of the prompt, n of them that stay, q new ones, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from regraft.model.model import Model
from regraft.model.recording import record
from regraft.systems.cache_past import KeptPast, StrategyError
from regraft.systems.cache_run import check_caches, kept_of, pasts_of
from regraft.systems.cache_strategies import strategy
from regraft.systems.mixers import mixers_of


class KeptLayer(DynamicLayer):
    """One block's keys and values: the prompt as a strategy keeps it, and what was written behind it whole.

    The call that reads the prompt is answered with its own keys and values. From then on what was kept is
    read anew for each call, so that codes stay codes in memory; tokens that were dropped are not there at
    all.
    """

    def __init__(self, kept: KeptPast, length: int):
        super().__init__()
        self.reads, self.count = kept.reads(), kept.count
        self.length, self.read_prompt = length, False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What the block attends to: the prompt's own, or what was kept of it and what came since."""
        if not self.read_prompt:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self.read_prompt = True
            return key_states, value_states
        new = super().update(key_states, value_states)
        kept = self.reads()
        both = [torch.cat([one.to(other), other], dim=2) for one, other in zip(kept, new, strict=True)]
        return both[0], both[1]

    @property
    def written(self) -> int:
        """Tokens that came behind the prompt."""
        assert self.keys is not None
        return self.keys.shape[2]

    def get_seq_length(self) -> int:
        """Tokens that were read, whether they stay or not: positions go on from there."""
        return self.length + self.written if self.read_prompt else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a call reads, and where the first of them would stand if all stood in a row."""
        if not self.read_prompt:
            return query_length, 0
        stored = self.count + self.written + query_length
        return stored, self.get_seq_length() + query_length - stored


def kept_cache(model: Model, prompts_BP: Tensor, words: str) -> Cache:
    """A cache that keeps prompts by a strategy. The prompts are read once more for it, with their own cache.

    Raises:
        StrategyError: the words are no strategy, or this one cannot be read token by token here.
        ValueError: the model's cache cannot be changed.
    """
    asked = strategy(words)
    check_caches(model)
    _check_windows(model, words)
    recording = record(model, prompts_BP.tolist(), attention_mask="all")
    length = prompts_BP.shape[1]
    kept = kept_of(asked, pasts_of(recording, length))
    _check_counts(model, words, kept)
    return Cache(layers=[KeptLayer(one, length) for one in kept])


def _check_counts(model: Model, words: str, kept: Sequence[KeptPast]) -> None:
    counts = {one.count for one in kept}
    if len(counts) > 1 and model.attention != "sdpa":
        raise StrategyError(
            f"{words} keeps another number of tokens in each block, and {model.attention} attention is given"
            " one mask for all of them: load the model with attention='sdpa'"
        )


def _check_windows(model: Model, words: str) -> None:
    if any(mixer.window for block in model.blocks for mixer in mixers_of(block, model.hf.config)):
        raise StrategyError(
            f"{words} cannot be used while text is written here: some blocks have a window of their own,"
            " whose cache is another one"
        )

"""The text that a loss is measured on: prompts with the model's own completions, recorded in batches of like
length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.data.generation import Completion, Writer, completions, spread, suited_prompts
from regraft.data.prompts import Prompt
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.model.regions import marker_of

BATCH_TOKENS = 512
"""Tokens that are recorded together: enough for full-speed products, few enough to keep recordings small."""
KEPT_FLOATS = 1 << 28
"""Numbers of recordings that are kept: 1 GiB in float32; batches behind them are recorded again in each
sweep."""

Item = TypeVar("Item")
Batch = tuple[list[list[int]], list[list[int]] | None]


class Recordings(Sequence[Recording]):
    """Batches of token ids, recorded when they are asked for; kept up to 1 GiB of float32 streams, else made
    again."""

    def __init__(self, model: Model, batches: list[Batch], regions: list[str] | None = None):
        self.model, self.batches, self.regions = model, batches, regions
        self.kept: dict[int, Recording] = {}
        self.floats = 0

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, index: int) -> Recording: ...
    @overload
    def __getitem__(self, index: slice) -> list[Recording]: ...
    def __getitem__(self, index: int | slice) -> Recording | list[Recording]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index not in range(len(self)):
            raise IndexError(index)
        if index in self.kept:
            return self.kept[index]
        made = self.model.record(*self.batches[index], attention_mask="all", regions=self.regions)
        size = sum(stream.numel() for stream in made.taken.stream)
        if self.floats + size <= KEPT_FLOATS:
            self.floats += size
            self.kept[index] = made
        return made


@dataclass(eq=False)
class Texts:
    """Recorded texts of a model that writes none: what it reads is compared, token by token."""

    model: Model
    recordings: Recordings
    texts: list[str]

    @property
    def attributes(self) -> dict[str, Any]:
        """What a result keeps of its text."""
        tokens = sum(len(row) for ids, _ in self.recordings.batches for row in ids)
        return {"texts": json.dumps(self.texts), "scored_tokens": tokens}


def evaluation_or_texts(
    model: Model,
    prompts: str | Sequence[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
) -> Evaluation | Texts:
    """Completions of prompts where the model writes text; of any other with one stack, the texts themselves.

    Raises:
        ValueError: there is nothing to measure on.
    """
    writes = model.causal and model.parts.head is not None and not model.parts.labels
    if writes or model.two_stacks:
        return evaluation(model, prompts, count, tokens)
    if count < 1:
        raise ValueError(f"{count} is too few: measure at least one text")
    given = [prompts] if isinstance(prompts, str) else list(prompts or [])
    stated = given or [prompt.text for prompt in spread(suited_prompts(model), count)]
    rows = sorted((model.encode(text) for text in stated), key=len)
    batches: list[Batch] = [(batch, None) for batch in batched(rows, [len(row) for row in rows])]
    return Texts(model, Recordings(model, batches), stated)


@dataclass(eq=False)
class Evaluation:
    """Recorded prompts with completions; `order[i]` lists the completions of recording i, prompt by
    prompt."""

    model: Model
    recordings: Recordings
    order: list[list[Completion]]

    @property
    def flat(self) -> list[Completion]:
        """All completions in the order in which a joined sweep reports prompts."""
        return [completion for batch in self.order for completion in batch]

    @property
    def attributes(self) -> dict[str, Any]:
        """What a result keeps of its text: every prompt and completion with their token counts, and the
        scored tokens."""
        stated = [
            {
                "prompt": c.prompt,
                "category": c.category,
                "prompt_tokens": len(c.prompt_ids),
                "completion": "".join(self.model.token_text(i) for i in c.completion_ids),
                "completion_tokens": len(c.completion_ids),
                "completion_ids": list(c.completion_ids),
            }
            for c in self.flat
        ]
        return {"completions": json.dumps(stated), "scored_tokens": self.scored_tokens}

    @property
    def scored_tokens(self) -> int:
        """Number of tokens that count in a loss."""
        return sum(len(completion.completion_ids) for completion in self.flat)


def evaluation(
    model: Model,
    prompts: str | Sequence[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    regions: list[str] | None = None,
    write: Writer | None = None,
) -> Evaluation:
    """Record `count` prompts (the user's, or those that suit the model) with greedy completions of up to
    `tokens` tokens; `regions` are markers, for which sweeps report every metric by itself;
    `write` is who else writes completions.

    Raises:
        ValueError: there is nothing to measure on (no prompt, no tokenizer, a model that writes no text), or
            something that marks no region.
    """
    if count < 1 or tokens < 1:
        raise ValueError(f"{min(count, tokens)} is too few: measure at least one prompt and one token")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    chosen = [Prompt(text, "given") for text in prompts] if prompts else spread(suited_prompts(model), count)
    if any(not prompt.text for prompt in chosen):
        raise ValueError("the prompt is empty: write at least one token of text")
    stated = sorted(
        completions(model, chosen, tokens, write), key=lambda c: len(c.prompt_ids) + len(c.completion_ids)
    )
    order = batched(stated, [len(c.prompt_ids) + len(c.completion_ids) for c in stated])
    ids: list[Batch] = [
        ([list(c.prompt_ids) for c in batch], [list(c.completion_ids) for c in batch]) for batch in order
    ]
    for marker in regions or ():
        marker_of(marker)
    return Evaluation(model, Recordings(model, ids, regions or None), order)


def batched(items: Sequence[Item], lengths: Sequence[int], most: int | None = None) -> list[list[Item]]:
    """Items in batches of at most so many tokens (by default 512), padding counted; the items come shortest
    first."""
    room = BATCH_TOKENS if most is None else most
    batches: list[list[Item]] = [[]]
    for item, length in zip(items, lengths, strict=True):
        if batches[-1] and length * (len(batches[-1]) + 1) > room:
            batches.append([])
        batches[-1].append(item)
    return batches

"""The residual states that observations look at: which tokens count, and their stream at every depth.

Shapes: S depths of a stack (blocks + 1), N counted tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.core.progress import advance
from regraft.data.evaluation import Batch, Recordings, batched, evaluation
from regraft.data.generation import Completion, spread, suited_prompts
from regraft.model.model import Model
from regraft.model.parts import Stack
from regraft.model.recording import Recording


@dataclass(eq=False)
class Observed:
    """Recordings, the stack that is looked at, and for each recording the (prompt, position) pairs that
    count.

    Recordings are made when they are walked over and not all kept, so that many tokens fit in memory.
    `categories` names the kind of prompt behind every counted token, in the order of `walk`.
    """

    recordings: Sequence[Recording]
    stack: Stack
    pairs: list[tuple[Tensor, Tensor]]
    categories: list[str]
    attributes: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Number N of counted tokens."""
        return len(self.categories)

    def walk(self) -> Iterator[tuple[int, list[Tensor]]]:
        """For each recording the number of its first token and the states (n, D) at every depth."""
        first = 0
        for number, (prompt, position) in enumerate(self.pairs):
            recording = self.recordings[number]
            blocks = range(self.stack.first, self.stack.stop)
            streams = [recording.pre(block) for block in blocks] + [recording.post(self.stack.stop - 1)]
            yield first, [stream[prompt, position] for stream in streams]
            first += len(prompt)
            advance("recordings", number + 1, len(self.pairs))


def observed(
    model: Model,
    prompts: Sequence[str] | None,
    count: int,
    tokens: int,
    stack: str,
    texts: Sequence[list[int]] = (),
) -> Observed:
    """The states of the completion tokens of a model that writes; of every real, not special token of any
    other.

    With `texts` (token ids), the states of every token of these but the first and special ones, whatever the
    model.

    Raises:
        ValueError: a stack that the model does not have, or nothing to look at.
    """
    names = {s.name or "only": s for s in model.parts.stacks}
    wanted = stack or ("decoder" if model.two_stacks else "only")
    if wanted not in names:
        raise ValueError(
            f"there is no stack {stack!r} here: leave --stack out, or choose {' or '.join(names)}"
        )
    chosen = names[wanted]
    if texts:
        return _of_texts(model, [(ids, "corpus") for ids in texts], chosen, skip_first=True)
    if model.causal and model.parts.head is not None and chosen is model.parts.stacks[-1]:
        text = evaluation(model, prompts, count, tokens)
        pairs = [_completion_pairs(batch, model.two_stacks) for batch in text.order]
        categories = [
            batch[row].category
            for batch, (rows, _) in zip(text.order, pairs, strict=True)
            for row in rows.tolist()
        ]
        return Observed(text.recordings, chosen, pairs, categories, text.attributes)
    if prompts:
        named = [(text, "given") for text in prompts]
    else:
        named = [(p.text, p.category) for p in spread(suited_prompts(model), count)]
    return _of_texts(
        model, [(model.encode(text), kind) for text, kind in named], chosen, skip_first=model.causal
    )


def _completion_pairs(batch: list[Completion], two_stacks: bool) -> tuple[Tensor, Tensor]:
    """Row and position of every completion token of a batch."""
    starts = [1 if two_stacks else len(c.prompt_ids) for c in batch]
    places = [
        (row, start + i)
        for row, (c, start) in enumerate(zip(batch, starts, strict=True))
        for i in range(len(c.completion_ids))
    ]
    rows, positions = torch.tensor(places).t()
    return rows, positions


def _of_texts(
    model: Model, texts: Sequence[tuple[list[int], str]], chosen: Stack, skip_first: bool
) -> Observed:
    """Every real token that is not special; the decoder of two stacks reads the text that its encoder
    reads."""
    special = set(getattr(model.tokenizer, "all_special_ids", None) or [])
    read = sorted(texts, key=lambda item: len(item[0]))
    order = batched(read, [len(ids) for ids, _ in read])
    shift = 1 if model.two_stacks and chosen is model.parts.stacks[-1] else 0
    batches: list[Batch] = []
    pairs, categories = [], []
    for batch in order:
        ids = [row for row, _ in batch]
        batches.append((ids, ids if shift else None))
        keep = [
            (row, position + shift, batch[row][1])
            for row, tokens in enumerate(ids)
            for position, token in enumerate(tokens)
            if token not in special and (position or not skip_first)
        ]
        pairs.append((torch.tensor([k[0] for k in keep]).long(), torch.tensor([k[1] for k in keep]).long()))
        categories += [kind for _, _, kind in keep]
    if not categories:
        raise ValueError("the prompts hold special tokens only: there is nothing to look at")
    return Observed(Recordings(model, batches), chosen, pairs, categories, {"scored_tokens": len(categories)})

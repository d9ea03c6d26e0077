"""The residual states that observations look at: which tokens count, and their stream at every depth.

Shapes: S depths of a stack (blocks + 1), N counted tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.data.completions import spread, suited_prompts
from regraft.data.evaluation import evaluation
from regraft.model.opened import Model
from regraft.model.parts import Stack
from regraft.model.recording import Recording


@dataclass(eq=False)
class Observed:
    """Recordings, the stack that is looked at, and for each recording the (prompt, position) pairs that count.

    `categories` names the kind of prompt behind every counted token, in the order of `walk`.
    """

    recordings: list[Recording]
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
        for recording, (prompt, position) in zip(self.recordings, self.pairs, strict=True):
            blocks = range(self.stack.first, self.stack.stop)
            streams = [recording.pre(block) for block in blocks] + [recording.post(self.stack.stop - 1)]
            yield first, [stream[prompt, position] for stream in streams]
            first += len(prompt)


def observed(model: Model, prompts: Sequence[str] | None, count: int, tokens: int, stack: str) -> Observed:
    """The states of the completion tokens of a model that writes; of every real, not special token of an encoder.

    Raises:
        ValueError: a stack that the model does not have, or nothing to look at.
    """
    names = {s.name or "only": s for s in model.parts.stacks}
    wanted = stack or ("decoder" if model.two_stacks else "only")
    if wanted not in names:
        raise ValueError(f"there is no stack {stack!r} here: leave --stack out, or choose {' or '.join(names)}")
    chosen = names[wanted]
    if model.causal and chosen is model.parts.stacks[-1]:
        text = evaluation(model, prompts, count, tokens)
        pairs = [recording.scored_BT.nonzero(as_tuple=True) for recording in text.recordings]
        categories = [batch[row].category for batch, (rows, _) in zip(text.order, pairs, strict=True) for row in rows.tolist()]
        return Observed(text.recordings, chosen, [(a, b) for a, b in pairs], categories, text.attributes)
    return _of_an_encoder(model, prompts, count, chosen)


def _of_an_encoder(model: Model, prompts: Sequence[str] | None, count: int, chosen: Stack) -> Observed:
    suited = spread(suited_prompts(model), count)
    texts = list(prompts) if prompts else [p.text for p in suited]
    kinds = ["given"] * len(texts) if prompts else [p.category for p in suited]
    recordings = [model.record([text]) for text in texts]
    special = torch.tensor(sorted(getattr(model.tokenizer, "all_special_ids", None) or [-1]), device=model.device)
    pairs, categories = [], []
    for recording, kind in zip(recordings, kinds, strict=True):
        keep = ~torch.isin(recording.inputs["input_ids"], special)
        rows, columns = keep.nonzero(as_tuple=True)
        pairs.append((rows, columns))
        categories += [kind] * len(rows)
    if not categories:
        raise ValueError("the prompts hold special tokens only: there is nothing to look at")
    return Observed(recordings, chosen, pairs, categories, {"scored_tokens": len(categories)})

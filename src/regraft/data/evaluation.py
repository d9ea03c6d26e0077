"""The text that a loss is measured on: prompts with the model's own completions, recorded in batches of like length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regraft.data.completions import Completion, completions, spread, suited_prompts
from regraft.data.prompts import Prompt
from regraft.model.opened import Model
from regraft.model.recording import Recording

BATCH_TOKENS = 512


@dataclass(eq=False)
class Evaluation:
    """Recorded prompts with completions; `order[i]` lists the completions of recording i, prompt by prompt."""

    recordings: list[Recording]
    order: list[list[Completion]]

    @property
    def flat(self) -> list[Completion]:
        """All completions in the order in which a joined sweep reports prompts."""
        return [completion for batch in self.order for completion in batch]

    @property
    def attributes(self) -> dict[str, Any]:
        """What a result keeps of its text: every prompt and completion with their token counts, and the scored tokens."""
        model = self.recordings[0].model
        said = [
            {
                "prompt": c.prompt,
                "category": c.category,
                "prompt_tokens": len(c.prompt_ids),
                "completion": "".join(model.token_text(i) for i in c.completion_ids),
                "completion_tokens": len(c.completion_ids),
            }
            for c in self.flat
        ]
        return {"completions": json.dumps(said), "scored_tokens": self.scored_tokens}

    @property
    def scored_tokens(self) -> int:
        """Number of tokens that count in a loss."""
        return sum(int(recording.scored_BT.sum()) for recording in self.recordings)


def evaluation(model: Model, prompts: str | Sequence[str] | None = None, count: int = 20, tokens: int = 24) -> Evaluation:
    """Record `count` prompts (the user's, or those that suit the model) with greedy completions of up to `tokens` tokens.

    Raises:
        ValueError: there is nothing to measure on: no prompt, no tokenizer, or a model that does not write text.
    """
    if count < 1 or tokens < 1:
        raise ValueError(f"{min(count, tokens)} is too few: measure at least one prompt and one token")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    chosen = [Prompt(text, "given") for text in prompts] if prompts else spread(suited_prompts(model), count)
    if any(not prompt.text for prompt in chosen):
        raise ValueError("the prompt is empty: write at least one token of text")
    said = sorted(completions(model, chosen, tokens), key=lambda c: len(c.prompt_ids) + len(c.completion_ids))
    batches: list[list[Completion]] = [[]]
    for completion in said:
        longest = len(completion.prompt_ids) + len(completion.completion_ids)
        if batches[-1] and longest * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(completion)
    recordings = [model.record([list(c.prompt_ids) for c in batch], [list(c.completion_ids) for c in batch]) for batch in batches]
    return Evaluation(recordings, batches)

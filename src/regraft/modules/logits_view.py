"""A tree head where a model expects its output matrix: scores (B, T, V) that are exact for the tokens that
are asked for.

`full` gives every token's log-probability. `top` finds the best K, by search where that is less work, and
gives the rest, in equal parts, to all others: no other token then passes the K-th, and a softmax over the row
leaves the K as they are, so greedy search, beams and top-k sampling choose what they would choose on the
whole distribution. `draw` descends the tree once and leaves only the token drawn. Shapes: B sequences, T
places, D width, V vocabulary, R rows, K best.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .tree_head import TreeHead

Mode = Literal["full", "top", "draw"]


class LogitsView(nn.Module):
    """A tree head with the face of an output matrix."""

    def __init__(self, head: TreeHead):
        super().__init__()
        self.head = head
        self.mode: Mode = "full"
        self.count = 1
        self.visited = 0

    @property
    def weight(self) -> Tensor:
        """The tree's rows, for those who ask an output matrix for its type or device."""
        return self.head.rows.weight

    def forward(self, hidden_XD: Tensor) -> Tensor:
        """Scores (..., V) of every place."""
        hidden_RD = hidden_XD.reshape(-1, hidden_XD.shape[-1]).to(self.weight.dtype)
        make = {"full": self.head.log_probabilities, "top": self._top, "draw": self._draw}[self.mode]
        return make(hidden_RD).view(*hidden_XD.shape[:-1], self.head.vocabulary)

    def _top(self, hidden_RD: Tensor) -> Tensor:
        rows = []
        count = min(self.count, self.head.vocabulary)
        others = self.head.vocabulary - count
        for tokens, values, visited in self.head.top(hidden_RD, count):
            self.visited += visited
            best_K = torch.tensor(values, dtype=torch.float64)
            rest = max(0.0, 1.0 - float(best_K.exp().sum())) / max(1, others)
            row_V = torch.full((self.head.vocabulary,), rest, dtype=torch.float64).log()
            row_V[tokens] = best_K
            rows.append(row_V)
        return torch.stack(rows).to(hidden_RD)

    def _draw(self, hidden_RD: Tensor) -> Tensor:
        drawn_R = self.head.sample(hidden_RD)
        found_RV = hidden_RD.new_full((len(hidden_RD), self.head.vocabulary), -torch.inf)
        return found_RV.scatter(1, drawn_R[:, None], 0.0)

    @contextmanager
    def asked(self, config: Any, every: bool = False) -> Iterator[None]:
        """While inside, the view gives what generation with this `GenerationConfig` needs, or `every` token's
        score."""
        before = self.mode, self.count
        self.mode, self.count = ("full", 0) if every else needed(config)
        try:
            yield
        finally:
            self.mode, self.count = before


PLAIN = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "min_p": (None,),
    "top_h": (None,),
    "exponential_decay_length_penalty": (None,),
    "watermarking_config": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "penalty_alpha": (None,),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "output_scores": (None, False),
    "output_logits": (None, False),
    "num_beam_groups": (None, 1),
}
"""Settings of generation that read more of a row than its best tokens, and the values at which they do
not."""


def needed(config: Any) -> tuple[Mode, int]:
    """How much of each row a generation reads: everything, the best K, or one draw.

    The config must be whole, as `generate` completes it: what is still open may turn out to read everything.
    """
    if any(getattr(config, name, None) not in plain for name, plain in PLAIN.items()):
        return "full", 0
    if config.do_sample is None or (config.do_sample and config.top_k is None):
        return "full", 0
    beams = config.num_beams or 1
    ends = config.eos_token_id
    ends = len(ends) if isinstance(ends, list | tuple) else 0 if ends is None else 1
    if not config.do_sample:
        return "top", 1 if beams == 1 else max(2, 1 + ends) * beams
    if beams > 1:
        return "full", 0
    if config.top_k:
        return "top", config.top_k
    untouched = config.temperature in (None, 1.0) and config.top_p in (None, 1.0)
    return ("draw", 1) if untouched else ("full", 0)

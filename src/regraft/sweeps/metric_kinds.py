"""The kinds of metrics: which (prompt, position) pairs each reads, and the number that it gives for each.

A metric names the pairs whose logits it reads and maps logits at those pairs to one number each; the engine
runs the head at the union of all pairs, in chunks, and averages per prompt. Shapes: P pairs, c logits of one
chunk, V vocabulary, B prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from regraft.model.recording import Recording
from regraft.sweeps.routes import whole_number

Clean = Callable[[Tensor], Tensor]


def measured_type(dtype: torch.dtype) -> torch.dtype:
    """The type that a model's numbers are measured in: float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full(tensor: Tensor) -> Tensor:
    """In the type that numbers are measured in."""
    return tensor.to(measured_type(tensor.dtype))


@dataclass(frozen=True)
class Metric:
    """A named measurement. `unit` goes with every number; `larger_is_better` tells an optimiser which way to
    go.

    `reads` says what `score` is given: logits, or the residual stream that leaves the last block (no head is
    run).

    Examples:
        >>> regraft.loss().unit, regraft.loss().larger_is_better
        ('nats per token', False)
    """

    name: str
    unit: str
    larger_is_better: bool = True
    label: str = field(default="", kw_only=True)
    """What tells it from another of its name: the targets, as they were written."""

    @property
    def reads(self) -> Literal["logits", "stream"]:
        """What the metric reads."""
        return "logits"

    def pairs(self, recording: Recording) -> tuple[Tensor, Tensor]:
        """Prompt index and position of every logit vector that is read, both (P,)."""
        raise NotImplementedError

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        """One number for each vector; `pair_c` says which pairs of `pairs` these are, `clean` gives the clean
        vectors."""
        raise NotImplementedError


@dataclass(frozen=True)
class Loss(Metric):
    """Mean cross-entropy over the scored tokens, in nats per token."""

    name: str = "loss"
    unit: str = "nats per token"
    larger_is_better: bool = False

    def pairs(self, recording: Recording) -> tuple[Tensor, Tensor]:
        return predicted_pairs(recording)

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        prompt, position = self.pairs(recording)
        shift = 1 if recording.model.causal else 0
        target = recording.ids_BT[prompt, position + shift][pair_c]
        return cross_entropy(full(logits_cV), target, reduction="none")


@dataclass(frozen=True)
class AtPosition(Metric):
    """A metric of one position of each prompt, by default the last."""

    position: int | None = None

    def pairs(self, recording: Recording) -> tuple[Tensor, Tensor]:
        lengths = recording.lengths_B
        where = -1 if self.position is None else whole_number(self.position, "position")
        position = lengths + where if where < 0 else torch.full_like(lengths, where)
        if bool((position < 0).any()) or bool((position >= lengths).any()):
            raise ValueError(
                f"the metric {self.name} reads position {where}, but the prompt has"
                f" {int(lengths.min())} tokens"
            )
        return torch.arange(recording.prompts, device=lengths.device), position


@dataclass(frozen=True)
class LogitDifference(AtPosition):
    """Logit of one token minus logit of another."""

    tokens: tuple[int, int] = (0, 0)

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        return full(logits_cV[:, self.tokens[0]]) - full(logits_cV[:, self.tokens[1]])


@dataclass(frozen=True)
class TokenLogit(AtPosition):
    """Logit of a token."""

    token: int = 0

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        return full(logits_cV[:, self.token])


@dataclass(frozen=True)
class Probability(AtPosition):
    """Probability of a token."""

    token: int = 0

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        return log_softmax(full(logits_cV), -1)[:, self.token].exp()


@dataclass(frozen=True)
class LogProbability(AtPosition):
    """Logarithm of a token's probability, in nats."""

    token: int = 0

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        return log_softmax(full(logits_cV), -1)[:, self.token]


@dataclass(frozen=True)
class CompletionLogProbability(Metric):
    """Logarithm of the probability of several tokens one after the other, in nats: the sum along the recorded
    completion, which begins with them."""

    tokens: tuple[int, ...] = ()

    def pairs(self, recording: Recording) -> tuple[Tensor, Tensor]:
        count, begins_B = len(self.tokens), recording.scored_BT.long().argmax(1)
        rows = torch.arange(recording.prompts, device=begins_B.device).repeat_interleave(count)
        steps = torch.arange(count, device=begins_B.device)
        return rows, (begins_B[:, None] + steps - 1).flatten()

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        tokens = torch.tensor(self.tokens, device=logits_cV.device)[pair_c % len(self.tokens)]
        own = log_softmax(full(logits_cV), -1).gather(-1, tokens[:, None])[:, 0]
        # A prompt's value is the mean over its positions, so that each counts for all.
        return own * len(self.tokens)


@dataclass(frozen=True)
class Rank(AtPosition):
    """Rank of a token: how many tokens have a larger logit (0 is the first)."""

    token: int = 0
    larger_is_better: bool = False

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        logits = full(logits_cV)
        return (logits > logits[:, self.token, None]).sum(-1).float()


@dataclass(frozen=True)
class _AgainstClean(AtPosition):
    """Reads every predicted position, or the last one where the recording scores none."""

    def pairs(self, recording: Recording) -> tuple[Tensor, Tensor]:
        tokens = recording.model.causal and not recording.model.parts.labels
        if self.position is None and tokens and bool(recording.scored_BT[:, 1:].any()):
            return predicted_pairs(recording)
        return super().pairs(recording)


@dataclass(frozen=True)
class KLToClean(_AgainstClean):
    """KL divergence of this run's distribution from the clean one's: KL(clean || run), in nats."""

    larger_is_better: bool = False

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        ours, theirs = log_softmax(full(logits_cV), -1), log_softmax(full(clean(pair_c)), -1)
        return kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


@dataclass(frozen=True)
class Top1Agreement(_AgainstClean):
    """Share of positions whose most likely token is the clean run's."""

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        return (logits_cV.argmax(-1) == clean(pair_c).argmax(-1)).float()


@dataclass(frozen=True)
class Top1Token(AtPosition):
    """Id of the most likely token."""

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        return logits_cV.argmax(-1).double()


@dataclass(frozen=True)
class StreamDistance(_AgainstClean):
    """How far the stream that leaves the last block is from the clean one, relative to the clean one's
    length."""

    larger_is_better: bool = False

    @property
    def reads(self) -> Literal["logits", "stream"]:
        return "stream"

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        theirs = full(clean(pair_c))
        return (full(logits_cV) - theirs).norm(dim=-1) / theirs.norm(dim=-1)


def predicted_pairs(recording: Recording) -> tuple[Tensor, Tensor]:
    """The (prompt, position) pairs that predict the scored tokens.

    Raises:
        ValueError: no token is scored.
    """
    if recording.model.causal:
        scored = recording.scored_BT[:, 1:]
    else:
        scored = recording.scored_BT if recording.scored_is_given else torch.zeros_like(recording.scored_BT)
    if recording.model.parts.labels:
        raise ValueError(
            f"{recording.model.name} scores {recording.model.parts.labels} labels, not tokens, so it has no"
            " loss: measure token_logit of a label's number, kl_to_clean, top1_agreement or stream_distance,"
            " at a position"
        )
    prompt, position = scored.nonzero(as_tuple=True)
    if not len(prompt):
        raise ValueError(
            "no token is scored, so there is no loss: give a completion, or for an encoder say which tokens"
            " count (scored=)"
        )
    silent = sorted(set(range(recording.prompts)) - set(prompt.tolist()))
    if silent:
        raise ValueError(
            f"no token of prompt {silent[0]} is scored, so it has no loss: leave it out, or give it a"
            " completion"
        )
    return prompt, position

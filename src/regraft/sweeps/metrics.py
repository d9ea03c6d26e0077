"""What is measured at the end of a run, and at which positions.

A metric names the (prompt, position) pairs whose logits it reads and maps logits at those pairs to one number
each; the engine runs the head at the union of all pairs, in chunks, and averages per prompt. Shapes: P pairs,
c logits of one chunk, V vocabulary, B prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from regraft.model.recording import Recording
from regraft.sweeps.variants import whole_number

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


Target = str | int


def loss() -> Metric:
    """Mean cross-entropy over the scored tokens (nats per token)."""
    return Loss()


def logit_difference(first: Target, second: Target, position: int | None = None) -> _Named:
    """Logit of `first` minus logit of `second` at the last (or the given) position."""
    return _Named("logit_difference", (first, second), position)


def token_logit(token: Target, position: int | None = None) -> _Named:
    """Logit of a token."""
    return _Named("logit", (token,), position)


def probability(token: Target, position: int | None = None) -> _Named:
    """Probability of a token."""
    return _Named("probability", (token,), position)


def log_probability(token: Target, position: int | None = None) -> _Named:
    """Logarithm of a token's probability (nats); of a text of several tokens the sum along the recorded
    completion."""
    return _Named("log_probability", (token,), position)


def rank(token: Target, position: int | None = None) -> _Named:
    """Number of tokens with a larger logit (0: the token is first)."""
    return _Named("rank", (token,), position)


def kl_to_clean(position: int | None = None) -> Metric:
    """KL(clean || run) in nats over the predicted positions, or at one."""
    return KLToClean("kl_to_clean", "nats", False, position)


def top1_agreement(position: int | None = None) -> Metric:
    """Share of predicted positions (or the one given) whose most likely token is the clean run's."""
    return Top1Agreement("top1_agreement", "share", True, position)


def top1_token(position: int | None = None) -> Metric:
    """Id of the most likely token at the last (or the given) position of each prompt."""
    return Top1Token("top1_token", "token id", True, position)


def stream_distance(position: int | None = None) -> Metric:
    """Relative distance of the final stream from the clean run's; the one metric that needs no output
    matrix."""
    return StreamDistance("stream_distance", "share of the clean stream's length", False, position)


@dataclass(frozen=True)
class _Named:
    """A metric of tokens still given as text; a sweep looks them up in the recording's model."""

    kind: str
    targets: tuple[Target, ...]
    position: int | None = None
    larger_is_better: bool = field(default=True)

    @property
    def label(self) -> str:
        """The kind and its targets, as they were written: `probability(' morning')`."""
        at = [] if self.position is None else [f"position={self.position}"]
        return f"{self.kind}({', '.join([*map(repr, self.targets), *at])})"

    def resolve(self, recording: Recording) -> Metric:
        """The metric with its targets as token ids."""
        return replace(self._resolved(recording), label=self.label)

    def _resolved(self, recording: Recording) -> Metric:
        model = recording.model
        try:
            ids = [model.single_token(t) if isinstance(t, str) else t for t in self.targets]
        except ValueError as error:
            if self.kind != "log_probability" or self.position is not None:
                raise
            pieces = tuple(model.continuation(str(self.targets[0])))
            if not _written_first(recording, pieces):
                raise ValueError(
                    f"{error}, or record the prompts with this text as their completion, along which its"
                    " tokens are summed"
                ) from error
            return CompletionLogProbability(self.kind, "nats", True, pieces)
        wrong = next((i for i in ids if not 0 <= i < model.vocabulary), None)
        if wrong is not None:
            raise ValueError(f"the target token id {wrong} is outside the vocabulary of {model.vocabulary}")
        if self.kind == "logit_difference":
            return LogitDifference(self.kind, "logits", True, self.position, (ids[0], ids[1]))
        if self.kind == "logit":
            return TokenLogit(self.kind, "logits", True, self.position, ids[0])
        if self.kind == "probability":
            return Probability(self.kind, "probability", True, self.position, ids[0])
        if self.kind == "log_probability":
            return LogProbability(self.kind, "nats", True, self.position, ids[0])
        return Rank("rank", "tokens ahead", False, self.position, ids[0])


def _written_first(recording: Recording, tokens: tuple[int, ...]) -> bool:
    """Whether every prompt's scored tokens begin with these."""
    begins, count = recording.scored_BT.long().argmax(1).tolist(), len(tokens)
    spans = [(row, slice(begin, begin + count)) for row, begin in enumerate(begins)]
    return bool(tokens) and all(
        tuple(recording.ids_BT[where].tolist()) == tokens and bool(recording.scored_BT[where].all())
        for where in spans
    )


AnyMetric = Metric | _Named


def resolved(metric: AnyMetric, recording: Recording) -> Metric:
    """The metric with its targets as token ids of the recording's model."""
    return metric.resolve(recording) if isinstance(metric, _Named) else metric


def metrics_of(given: Any) -> list[AnyMetric]:
    """Metrics.

    Raises:
        ValueError: something is none; of a function that makes one, how to call it.
    """
    listed = [given] if isinstance(given, AnyMetric) or not isinstance(given, Iterable) else list(given)
    wrong = next((one for one in listed if not isinstance(one, AnyMetric)), None)
    if wrong is None and listed:
        return listed
    if callable(wrong):
        raise ValueError(
            f"{getattr(wrong, '__name__', 'this')} makes a metric when it is called: write it with"
            " parentheses"
        )
    what = "an empty list" if wrong is None else f"a {type(wrong).__name__}"
    raise ValueError(f"{what} is no metric: give one such as loss() or logit_difference(' a', ' b')")

"""What is measured at the end of a run, by name: each function here makes a metric for `sweep`, which answers
with a tensor (variants, prompts) in the unit that is said; see `sweeps/metric_kinds` for what each reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.model.recording import Recording
from regraft.sweeps.metric_kinds import (
    CompletionLogProbability,
    KLToClean,
    LogitDifference,
    LogProbability,
    Loss,
    Metric,
    Probability,
    Rank,
    StreamDistance,
    TokenLogit,
    Top1Agreement,
    Top1Token,
)

Target = str | int


def loss() -> Metric:
    """Mean cross-entropy over the scored tokens (nats per token).

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> result = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.loss())
        >>> result.values["loss"].shape, result.units["loss"]
        (torch.Size([1, 1]), 'nats per token')
    """
    return Loss()


def logit_difference(first: Target, second: Target, position: int | None = None) -> _Named:
    """Logit of `first` minus logit of `second` at the last (or the given) position.

    Args:
        first: a token, as text or id.
        second: the token whose logit is taken away.
        position: which position is read; by default the last.

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> metric = regraft.logit_difference(" Paris", " London")
        >>> result = regraft.sweep(clean, regraft.Zero("6.mlp_out"), metric)
        >>> result.values["logit_difference"].shape, result.units["logit_difference"]
        (torch.Size([1, 1]), 'logits')
    """
    return _Named("logit_difference", (first, second), position)


def token_logit(token: Target, position: int | None = None) -> _Named:
    """Logit of a token.

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> result = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.token_logit(" Paris"))
        >>> result.values["logit"].shape, result.units["logit"]
        (torch.Size([1, 1]), 'logits')
    """
    return _Named("logit", (token,), position)


def probability(token: Target, position: int | None = None) -> _Named:
    """Probability of a token.

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> result = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.probability(" Paris"))
        >>> result.values["probability"].shape, result.units["probability"]
        (torch.Size([1, 1]), 'probability')
    """
    return _Named("probability", (token,), position)


def log_probability(token: Target, position: int | None = None) -> _Named:
    """Logarithm of a token's probability (nats); of a text of several tokens the sum along the recorded
    completion.

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> result = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.log_probability(" Paris"))
        >>> result.values["log_probability"].shape, result.units["log_probability"]
        (torch.Size([1, 1]), 'nats')
    """
    return _Named("log_probability", (token,), position)


def rank(token: Target, position: int | None = None) -> _Named:
    """Number of tokens with a larger logit (0: the token is first).

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> result = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.rank(" Paris"))
        >>> result.values["rank"].shape, result.units["rank"]
        (torch.Size([1, 1]), 'tokens ahead')
    """
    return _Named("rank", (token,), position)


def kl_to_clean(position: int | None = None) -> Metric:
    """KL(clean || run) in nats over the predicted positions, or at one.

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> result = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.kl_to_clean())
        >>> result.values["kl_to_clean"].shape, result.units["kl_to_clean"]
        (torch.Size([1, 1]), 'nats')
    """
    return KLToClean("kl_to_clean", "nats", False, position)


def top1_agreement(position: int | None = None) -> Metric:
    """Share of predicted positions (or the one given) whose most likely token is the clean run's.

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> result = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.top1_agreement())
        >>> result.values["top1_agreement"].shape, result.units["top1_agreement"]
        (torch.Size([1, 1]), 'share')
    """
    return Top1Agreement("top1_agreement", "share", True, position)


def top1_token(position: int | None = None) -> Metric:
    """Id of the most likely token at the last (or the given) position of each prompt."""
    return Top1Token("top1_token", "token id", True, position)


def stream_distance(position: int | None = None) -> Metric:
    """Relative distance of the final stream from the clean run's; the one metric that needs no output
    matrix.

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> result = regraft.sweep(clean, regraft.Zero("6.mlp_out"), regraft.stream_distance())
        >>> result.values["stream_distance"].shape, result.units["stream_distance"]
        (torch.Size([1, 1]), "share of the clean stream's length")
    """
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

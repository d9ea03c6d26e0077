"""What a page shows of a model at one prompt: the lens over every depth and token, the next tokens, and what
a change of the model does to all of it.

The numbers of a change are those of `regraft.sweep`; the lens under a change is read from the live model,
which passes through the same change. Shapes: S depths, T tokens, D width, V vocabulary, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from regraft.core.silence import silent
from regraft.data.generation import Sampling, check_writes, room, until_end, write_on
from regraft.export.changed_model import changed_copies
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.studio.limits import Limits, RefusedError, check_text
from regraft.studio.touches import Touch, edit_of, token_id
from regraft.sweeps.live_reads import live_stops
from regraft.sweeps.metrics import AnyMetric, kl_to_clean, loss, probability, token_logit
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant

NEXT = 8
"""Next tokens that are listed."""
SCORES = 1 << 23
"""Scores that are held at once: 32 MiB."""


@dataclass(frozen=True)
class Asked:
    """What a page asks of a model: prompts, the answer that counts, what is touched, and the blocks in order
    (none: as they are)."""

    prompt: str
    second: str = ""
    answer: str = ""
    touches: tuple[Touch, ...] = ()
    order: tuple[int, ...] | None = None

    @property
    def changes(self) -> bool:
        """Whether anything is touched."""
        return bool(self.touches) or self.order is not None


@dataclass(frozen=True)
class Lens:
    """For each depth and token of the prompt: the token that would come next, and its probability; `rows`
    says behind which block each depth is."""

    rows: list[str]
    words: list[list[str]]
    share_ST: np.ndarray


@dataclass(frozen=True)
class Effect:
    """One number of the model as it is and under the change, with its unit."""

    name: str
    unit: str
    clean: float
    changed: float | None = None


@dataclass(frozen=True)
class PromptReading:
    """All that a page shows at once.

    `next_clean` and `next_changed` are tokens with their probabilities, most likely first; `answer` and
    `target` are the token whose logit is told, and its id.
    """

    tokens: list[str]
    second: list[str]
    answer: str
    target: int
    lens: Lens
    lens_changed: Lens | None
    next_clean: list[tuple[str, float]]
    next_changed: list[tuple[str, float]]
    effects: list[Effect]
    notes: list[str] = field(default_factory=list)


def check_plays(model: Model) -> None:
    """Make sure that a model can be played with: a decoder that predicts next tokens, with a tokenizer.

    Raises:
        RefusedError: it cannot, with the reason.
    """
    why = ""
    if model.two_stacks:
        why = "has an encoder and a decoder, and the prompt page follows one stream"
    elif not model.causal:
        why = "does not read from left to right"
    elif model.parts.head is None or model.parts.labels:
        why = "predicts no next token"
    elif model.tokenizer is None:
        why = "has no tokenizer"
    if why:
        raise RefusedError(f"{model.name} {why}: take it apart under Experiments instead")


def recorded(model: Model, text: str, limits: Limits, what: str = "the prompt") -> Recording:
    """A clean run of a prompt.

    Raises:
        RefusedError: it is empty or too long, in letters or in tokens.
    """
    check_plays(model)
    if not check_text(text, what, limits).strip():
        raise RefusedError(f"{what} is empty: write a text")
    count = len(model.encode(text))
    if count > limits.tokens:
        raise RefusedError(f"{what} has {count} tokens, and a page takes {limits.tokens}: shorten it")
    return model.record(text)


def variant_of(asked: Asked, clean: Recording, other: Recording | None) -> Variant:
    """The edits and the route that a page asks for."""
    route = None if asked.order is None else Route.order(asked.order)
    return Variant([edit_of(touch, clean, other) for touch in asked.touches], route)


def read(
    model: Model, asked: Asked, limits: Limits, record: Callable[[str, str], Recording] | None = None
) -> PromptReading:
    """Everything that a page shows for what it asks.

    Args:
        model: an opened decoder.
        asked: prompts and changes.
        limits: of the studio.
        record: makes a prompt's recording, for who keeps them; told the text and what it is.

    Raises:
        RefusedError: a prompt, a touch or an order that cannot be; the sentence says why.
        ValueError: the model cannot run the route or the edit.
    """
    record = record or (lambda text, what: recorded(model, text, limits, what))
    clean = record(asked.prompt, "the prompt")
    other = record(asked.second, "the second prompt") if asked.second else None
    check_order(asked, model, limits)
    with model.held(), torch.no_grad(), silent():
        streams = [clean.pre(block.index) for block in model.blocks]
        streams.append(clean.post(len(model.blocks) - 1))
        stops = [str(block.index) for block in model.blocks]
        lens, end_V = read_depths(clean, torch.cat(streams), stops)
        target = token_id(model, asked.answer) if asked.answer else int(end_V.argmax())
        changed_lens, changed_V = None, None
        notes: list[str] = []
        if asked.changes:
            variant = variant_of(asked, clean, other)
            effects, notes = _effects(clean, variant, target)
            changed_lens, changed_V = _changed(clean, variant, asked)
        else:
            effects = _clean_effects(clean, target)
    return PromptReading(
        [model.token_text(token) for token in clean.ids_BT[0].tolist()],
        [] if other is None else [model.token_text(token) for token in other.ids_BT[0].tolist()],
        model.token_text(target),
        target,
        lens,
        changed_lens,
        likely(model, end_V),
        [] if changed_V is None else likely(model, changed_V),
        effects,
        notes,
    )


def check_order(asked: Asked, model: Model, limits: Limits) -> None:
    """Make sure that an order names blocks of the model, and passes those that are touched.

    Raises:
        RefusedError: it does not.
    """
    if len(asked.touches) > limits.touches:
        raise RefusedError(f"{len(asked.touches)} changes at once are too many: {limits.touches} may stand")
    if asked.order is None:
        return
    if not asked.order:
        raise RefusedError("no block is left: a model without any block writes nothing")
    if len(asked.order) > limits.stops:
        raise RefusedError(f"a route of {len(asked.order)} blocks is too long: {limits.stops} at most")
    wrong = next((block for block in asked.order if not 0 <= block < len(model.blocks)), None)
    if wrong is not None:
        raise RefusedError(f"there is no block {wrong}: there are {len(model.blocks)}, 0 to"
                           f" {len(model.blocks) - 1}")  # fmt: skip


def read_depths(clean: Recording, streams_STD: Tensor, stops: Sequence[str]) -> tuple[Lens, Tensor]:
    """The lens over streams, and the last one's logits at the last token (V,); `stops` are the blocks that
    stand behind the first stream."""
    model, (depths, count) = clean.model, streams_STD.shape[:2]
    flat_nD = streams_STD.flatten(0, 1)
    step = max(1, SCORES // model.vocabulary)
    share, token, end_V = [], [], torch.empty(0)
    for piece_nD in flat_nD.split(step):
        logits_nV = clean.head(piece_nD[:, None])[:, 0].float()
        best = logits_nV.softmax(-1).max(-1)
        share.append(best.values)
        token.append(best.indices)
        end_V = logits_nV[-1]
    share_ST = torch.cat(share).reshape(depths, count).cpu().numpy()
    tokens_ST = torch.cat(token).reshape(depths, count).tolist()
    words = [[model.token_text(one) for one in row] for row in tokens_ST]
    return Lens(["embedding", *(f"block {stop}" for stop in stops)], words, share_ST), end_V.cpu()


def likely(model: Model, logits_V: Tensor, count: int = NEXT) -> list[tuple[str, float]]:
    """The most likely next tokens with their probabilities."""
    top = logits_V.softmax(-1).topk(min(count, len(logits_V)))
    return [
        (model.token_text(int(token)), float(share))
        for share, token in zip(top.values, top.indices, strict=True)
    ]


METRICS = {"loss": "loss on the prompt", "logit": "logit of the answer", "probability": "its probability"}
"""What is told of the model as it is and changed: names of metrics and their words."""


def _metrics(target: int, last: int) -> list[AnyMetric]:
    """What is measured at the answer's token and of the next token at the prompt's last one."""
    return [loss(), token_logit(target), probability(target), kl_to_clean(last)]


def _effects(clean: Recording, variant: Variant, target: int) -> tuple[list[Effect], list[str]]:
    found = sweep(clean, variant, _metrics(target, clean.positions - 1))
    told = [
        Effect(words, found.units[name], found.clean_mean(name), float(found.mean(name)[0]))
        for name, words in METRICS.items()
    ]
    (apart,) = (name for name in found.units if name not in METRICS)
    told.append(Effect("KL from the clean next token", found.units[apart], 0.0,
                       float(found.mean(apart)[0])))  # fmt: skip
    return told, list(found.notes)


def _clean_effects(clean: Recording, target: int) -> list[Effect]:
    found = sweep(clean, Variant(), _metrics(target, 0)[:-1])
    return [Effect(words, found.units[name], found.clean_mean(name)) for name, words in METRICS.items()]


def _changed(clean: Recording, variant: Variant, asked: Asked) -> tuple[Lens, Tensor]:
    stops = list(range(len(clean.model.blocks))) if asked.order is None else list(asked.order)
    streams = live_streams(clean, variant, stops) if asked.touches else walked_streams(clean, stops)
    return read_depths(clean, torch.cat(streams), [str(stop) for stop in stops])


def live_streams(clean: Recording, variant: Variant, stops: Sequence[int]) -> list[Tensor]:
    """The stream in front of a route's first stop and behind each, from the live model under a change."""
    with changed_copies(clean.model, variant) as copies, live_stops(clean.model, stops, copies) as heard:
        clean.model.run(**clean.inputs)
    return [heard[number] for number in range(-1, len(stops))]


def walked_streams(clean: Recording, stops: Sequence[int]) -> list[Tensor]:
    """The same where a route alone is changed: blocks called one after the other, which asks for no shells of
    the live model's."""
    streams = [clean.pre(0)]
    for stop in stops:
        streams.append(clean.run_block(stop, streams[-1], rows=1))
    return streams


class StaleError(Exception):
    """Something else was asked for while a text was written: what is left of it is not wanted any more."""


def write(clean: Recording, variant: Variant | None, tokens: int, heard: Callable[[int], object]) -> str:
    """What the model writes behind a prompt, under a change; `heard` is given each token as it is written.

    Raises:
        ValueError: the model does not write under this change, with the reason.
    """
    model, row = clean.model, clean.ids_BT[0].tolist()
    check_writes(model)
    how = Sampling(room(model, [row], tokens))
    with changed_copies(model, variant), silent():
        (written,) = write_on(model, clean.ids_BT, how, heard)
    return "".join(map(model.token_text, until_end(model, written)))

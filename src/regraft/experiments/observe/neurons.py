"""Neurons: which ones are active for everything that a set of prompts has in common, and where else they are.

Shapes: P prompts, W neurons of one block, T positions.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.files import expanded
from regraft.core.progress import advance
from regraft.core.signatures import TextFile
from regraft.data.corpus import corpus as suited_corpus
from regraft.data.generation import suited_prompts
from regraft.data.own_texts import first_of
from regraft.model.inputs import batch_inputs
from regraft.model.model import Model
from regraft.model.parts import Block, in_width
from regraft.model.sites import SiteError
from regraft.sweeps.live_reads import HELD, fitting, live_reads, run_heard

BATCH, AROUND = 16, 6
"""Texts read together, and tokens shown on either side of the one that a neuron answers."""


@dataclass(frozen=True)
class Found:
    """A neuron that is consistent over a set: its block, the block's place in the list, its index, and the
    set's feature."""

    row: int
    block: Block
    index: int
    feature: str

    @property
    def label(self) -> str:
        """N<index>@L<layer>."""
        return f"N{self.index}@L{self.block.address}"


def neurons(
    model: Model,
    prompts: list[str] | None = None,
    control: list[str] | None = None,
    category: str = "",
    k: int = 20,
    at: Literal["max", "last"] = "max",
    corpus: TextFile = "",
    contexts: int = 5,
    show: int = 4,
    count: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Find the neurons that are among a block's top k in every prompt of a set and in no prompt of the
    control set.

    A neuron's activation is what the MLP's output projection is given. The first position and special tokens
    are left out: what is active there is active in every text. Without prompts, each category of the suiting
    prompts is a set, and all the others are its control. For the strongest neurons found, the contexts of a
    corpus in which they are most active.

    Args:
        prompts: the set, at least two texts with a common feature; without it, the categories of the suiting
            prompts.
        control: texts without the feature, to go with prompts.
        category: only this category of the suiting prompts as a set.
        k: how many neurons of each block count as active in a prompt.
        at: largest activation over the prompt's tokens, or that at the last token.
        corpus: a text file to search for contexts; without it, text that suits the model.
        contexts: how many contexts to keep for a neuron.
        show: how many of the neurons found for a set to keep, strongest first.
        count: how many prompts of each set and of the control; 0 for all of them.
        seed: of everything drawn at random.

    Raises:
        ValueError: a negative count, fewer than two prompts, an unknown category, or no block with an MLP
            that has neurons.

    Examples:
        >>> data = regraft.neurons(model, prompts=["three and four", "nine and two"], k=4)
        >>> dict(data["activation"].sizes), data["activation"].attrs["units"]
        ({'neuron': 4, 'text': 2}, 'activation of the neuron in each text')
    """
    if min(k, contexts, show) < 1:
        raise ValueError(f"{min(k, contexts, show)} is too few: k, contexts and show are 1 or more")
    texts, features = _sets(model, prompts, control, category, count)
    blocks = [b for b in model.main_blocks if model.taps.exists(b.index, "mlp_act")]
    if not blocks:
        raise SiteError(
            f"{model.name} has no block with neurons:"
            f" {model.taps.table[model.main_blocks[0].index]['mlp_act']}"
        )
    width = min(in_width(model.tap(f"{block.address}.mlp_act").module) for block in blocks)
    if k >= width:
        raise ValueError(
            f"k is {k}, but a block has {width} neurons: all would count as active; choose fewer"
        )
    values = _activations(model, blocks, [text for text, _ in texts], at)
    found: dict[str, list[Found]] = {}
    for feature in features:
        inside = [v for v, (_, label) in zip(values, texts, strict=True) if label == feature]
        outside = [v for v, (_, label) in zip(values, texts, strict=True) if label != feature]
        every = [
            n
            for row in range(len(blocks))
            for n in _consistent(row, blocks[row], feature, inside, outside, k)
        ]
        found[feature] = sorted(every, key=lambda n: -float(np.mean([v[n.row][n.index] for v in inside])))
    kept = [n for every in found.values() for n in every[:show]]
    searchable, note = _searchable(model, corpus, seed) if kept else ([], "")
    best = _contexts(model, kept, searchable, contexts) if kept else {}
    attrs = {"k": k, "at": at, "control": len({label for _, label in texts}) > 1}
    attrs |= {"notes": note} if note else {}
    return _dataset(model, blocks, found, kept, best, (texts, values), attrs)


def _searchable(model: Model, corpus: str, seed: int) -> tuple[list[list[int]], str]:
    """Text to search for contexts; none, and why, where no corpus is named and none suits the model."""
    if not corpus and model.tokenizer is None:
        return [], "no contexts: without a tokenizer there is no corpus but one named with --corpus"
    if corpus:
        return suited_corpus(model, str(expanded(corpus)), seed), ""
    try:
        return suited_corpus(model, "", seed), ""
    except ValueError as error:
        return [], f"no contexts: {error}"


ALONE = "one prompt has everything in common with itself"


def _sets(model: Model, prompts: list[str] | None, control: list[str] | None, category: str, count: int):
    """Every text with its feature, and the features to find neurons for."""
    if prompts:
        chosen = first_of(prompts, count, "prompts")
        if len(chosen) < 2:
            raise ValueError(f"{ALONE}: give at least two with --prompts")
        others = first_of(control or [], count, "prompts")
        return [*((p, "given prompts") for p in chosen), *((p, "control") for p in others)], ["given prompts"]
    if control:
        raise ValueError("a control set alone has no feature: give the set itself with --prompts")
    if count == 1:
        raise ValueError(f"{ALONE}: give a --count of at least two")
    texts = [(p.text, p.category) for p in suited_prompts(model)]
    names = list(dict.fromkeys(label for _, label in texts))
    if category and category not in names:
        raise ValueError(
            f"there is no category {category!r} of prompts here: choose one of {', '.join(names)}"
        )
    kept = [
        text
        for name in names
        for text in first_of([one for one in texts if one[1] == name], count, "prompts")
    ]
    return kept, [category] if category else names


@dataclass(frozen=True)
class _Read:
    """A batch of texts as the stack that is looked at reads them, their lengths, which positions count, and
    what the neurons of each block were given there."""

    ids_PT: Tensor
    lengths_P: list[int]
    counted_PT: Tensor
    values_PTW: dict[str, Tensor]


def _batches(model: Model, blocks: Iterable[Block], rows: list[list[int]]) -> Iterator[_Read]:
    """Texts read some at a time, each batch in one run; behind an encoder, both stacks read them."""
    sites = [f"{block.address}.mlp_act" for block in blocks]
    floats = sum(in_width(model.tap(site).module) for site in sites)
    begin = 0
    with live_reads(model, sites) as heard:
        while begin < len(rows):
            following = rows[begin : begin + BATCH]
            batch = following[: fitting([len(row) for row in following], HELD // (4 * floats))]
            begin += len(batch)
            inputs, ids_PT, mask_PT = batch_inputs(
                model, batch, batch if model.two_stacks else [[]] * len(batch)
            )
            run_heard(model, inputs)
            counted = [_counted(model, ids_T, mask_T) for ids_T, mask_T in zip(ids_PT, mask_PT, strict=True)]
            shape = (*ids_PT.shape, -1)
            values = {site.partition(".mlp_act")[0]: x.float().view(shape) for site, x in heard.items()}
            yield _Read(ids_PT, mask_PT.sum(1).tolist(), torch.stack(counted), values)


def _counted(model: Model, ids_T: Tensor, mask_T: Tensor) -> Tensor:
    """Positions of a text that count, (T,): real, not special, not the first unless it is the only one."""
    special = torch.tensor(
        sorted(getattr(model.tokenizer, "all_special_ids", None) or [-1]), device=model.device
    )
    keep_T = mask_T & ~torch.isin(ids_T, special)
    if int(keep_T.sum()) > 1:
        keep_T[0] = False
    return keep_T if bool(keep_T.any()) else mask_T


def _activations(model: Model, blocks: list[Block], texts: list[str], at: str) -> list[list[np.ndarray]]:
    """One number for each neuron of each block for each text: its largest, or its last, activation there."""
    found = []
    for read in _batches(model, blocks, [model.encode(text) for text in texts]):
        for row, counted_T in enumerate(read.counted_PT):
            values = [read.values_PTW[block.address][row, counted_T] for block in blocks]
            found.append([(v[-1] if at == "last" else v.amax(0)).cpu().numpy() for v in values])
        advance("prompts", len(found), len(texts))
    return found


def _consistent(
    row: int, block: Block, feature: str, inside: list[Any], outside: list[Any], k: int
) -> Iterator[Found]:
    """Neurons of one block among the top k of every text of the set and of no text of the control set."""
    common = set.intersection(*(top(values[row], k) for values in inside))
    for values in outside:
        common -= top(values[row], k)
    yield from (Found(row, block, index, feature) for index in sorted(common))


def top(values_W: np.ndarray, k: int) -> set[int]:
    """Indices of the k largest values; of equals, the first ones."""
    return set(np.argsort(-values_W, kind="stable")[:k].tolist())


def _contexts(
    model: Model, kept: list[Found], texts: list[list[int]], count: int
) -> dict[Found, list[tuple[float, str]]]:
    """For each neuron the passages' tokens at which it is most active, one of each passage, strongest
    first."""
    heaps: dict[Found, list[tuple[float, int, str]]] = {n: [] for n in kept}
    passages = sorted(texts, key=len)
    done = 0
    for read in _batches(model, {n.block.address: n.block for n in kept}.values(), passages):
        for neuron in kept:
            values_PT = read.values_PTW[neuron.block.address][..., neuron.index]
            strongest, where = values_PT.masked_fill(~read.counted_PT, float("-inf")).max(1)
            heap = heaps[neuron]
            for row, (value, position) in enumerate(zip(strongest.tolist(), where.tolist(), strict=True)):
                place = value, -(done + row)
                if len(heap) >= count and (not heap or place < heap[0][:2]):
                    continue  # most are too weak to be put into words
                entry = (*place, _around(model, read.ids_PT[row, : read.lengths_P[row]], position))
                (heapq.heappush if len(heap) < count else heapq.heappushpop)(heap, entry)
        done += len(read.ids_PT)
        advance("passages", done, len(passages))
    return {n: [(value, text) for value, _, text in sorted(heap, reverse=True)] for n, heap in heaps.items()}


def _around(model: Model, ids_T: Tensor, position: int) -> str:
    """The tokens around a position, the token itself in brackets."""
    text_of = model.token_text
    ids = ids_T.tolist()
    before = "".join(text_of(i) for i in ids[max(0, position - AROUND) : position])
    after = "".join(text_of(i) for i in ids[position + 1 : position + 1 + AROUND])
    return f"{before}[{text_of(ids[position])}]{after}"


def _dataset(
    model: Model,
    blocks: list[Block],
    found: dict[str, list[Found]],
    kept: list[Found],
    best: dict[Found, list[tuple[float, str]]],
    measured: tuple[list[tuple[str, str]], list[list[np.ndarray]]],
    attrs: dict[str, Any],
) -> xr.Dataset:
    texts, everything = measured
    values = np.array([[one[n.row][n.index] for one in everything] for n in kept]).reshape(
        len(kept), len(everything)
    )
    places = max((len(best[n]) for n in kept), default=0)
    text_of = [[best[n][i][1] if i < len(best[n]) else "" for i in range(places)] for n in kept]
    strength = [[best[n][i][0] if i < len(best[n]) else np.nan for i in range(places)] for n in kept]
    counts = [[sum(n.block is block for n in every) for block in blocks] for every in found.values()]
    without = len(model.main_blocks) - len(blocks)
    lacking = f"{without} blocks have no neurons that can be read" if without else ""
    return xr.Dataset(
        {
            "activation": (("neuron", "text"), values, {"units": "activation of the neuron in each text"}),
            "context": (
                ("neuron", "place"),
                np.array(text_of, dtype=str).reshape(len(kept), places),
                {"units": "text"},
            ),
            "context_activation": (
                ("neuron", "place"),
                np.array(strength).reshape(len(kept), places),
                {"units": "activation"},
            ),
            "consistent": (("feature", "block"), np.array(counts), {"units": "neurons"}),
        },
        coords={
            "neuron": [n.label for n in kept],
            "neuron_feature": ("neuron", np.array([n.feature for n in kept], dtype=str)),
            "prompt": ("text", [text for text, _ in texts]),
            "text_feature": ("text", [label for _, label in texts]),
            "feature": list(found),
            "block": [block.address for block in blocks],
        },
        attrs={
            **attrs,
            "found": sum(map(len, found.values())),
            "shown": len(kept),
            "prompts": len(texts),
            "notes": "; ".join(note for note in (attrs.get("notes", ""), lacking) if note),
        },
    )

"""Ways to quantize a whole model, ours and other libraries', side by side: loss, bytes, tokens per second.

Shapes: M methods, B prompts, T positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn
from transformers import GenerationMixin

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT, QUANTIZATION_GROUP
from regraft.core.memory import peak_bytes
from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.core.registry import REFUSALS
from regraft.core.structure import main_tensor
from regraft.data.evaluation import Evaluation, evaluation
from regraft.experiments.intervene.quantization.libraries import METHODS, Method, held_bytes, missing, quiet
from regraft.experiments.intervene.quantization.rounding import MadeWhenRun, block_bytes, matrix_axes
from regraft.model.block_call import longest_input, without_cache
from regraft.model.cpu_pack import Forward, packed
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.sweeps.metrics import loss, top1_agreement
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Variant

WHOLE_MODEL = "llmcompressor"
"""The package that quantizes a whole model at once."""
PUBLISHED = "quantization study of Qwen3-4B (hivaze/dl-experiments)"
ROUNDS, WRITTEN = 3, 4
"""Rounds that a median of times is taken of, so that a first one that is slow does not count, and tokens that
are written in each: every block is packed anew for every token, so few."""


def quantizers(
    model: Model,
    group: int = QUANTIZATION_GROUP,
    methods: list[str] | None = None,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
) -> xr.Dataset:
    """Quantize all blocks by each method that is installed, and measure loss, bytes and tokens per second
    side by side.

    Round to nearest (ours), torchao int8 and int4 weight-only, GPTQ by llmcompressor, int8 and NF4 by
    bitsandbytes, HQQ.
    Methods stand in the blocks' places on routes, and a block is made when it is run and let go behind it:
    one block is held beside the model, or all of them where they are small. (GPTQ's library works on a model
    of its own.) Embedding and output
    matrix stay as they are. Speed is the median of three rounds in which a method takes turns with the model
    as loaded, without the time in which blocks are packed; it is left empty for methods whose numbers run as
    plain floats here.

    Args:
        group: how many inputs share a scale; where it does not divide the inputs, the libraries get the
            longest that does.
        methods: names of the methods to run; by default all.
        prompts: texts whose completions are scored; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.

    Raises:
        ValueError: an unknown method, or a model without a next-token loss.

    Examples:
        >>> data = regraft.quantizers(model, methods=["RTN 4 bits"], count=1, tokens=4)
        >>> dict(data["loss"].sizes), data["loss"].attrs["units"]
        ({'quantizer': 2}, 'nats per token')
    """
    chosen = _chosen(methods, group)
    model.check_whole("quantizers lets libraries pack whole blocks and times them")
    text = evaluation(model, prompts, count, tokens)
    blocks = list(model.parts.stacks[-1].blocks)
    found = [_Measured("as loaded", sum(block_bytes(model, block, None) for block in blocks))]
    lacking = []
    for number, method in enumerate(chosen):
        advance("methods", number, len(chosen))
        with quiet():
            one = _one_method(model, text, blocks, method, group)
        if isinstance(one, str):
            lacking.append(f"{method.name} is left out: {one}")
        else:
            found.append(one)
    return _dataset(model, text, blocks, found).assign_attrs(group=group, without="; ".join(lacking))


def _dataset(model: Model, text: Evaluation, blocks: list[Block], found: list[_Measured]) -> xr.Dataset:
    """Losses, sizes, costs and speeds of all methods, the model as loaded first."""
    results = [one.result for one in found if one.result is not None]
    clean = (results or [_sweep(text, blocks, [block.module for block in blocks])])[0].clean_mean("loss")
    reading, writing = _speeds(model, text, found[1:])
    losses = [clean, *(float(result.mean("loss")[0]) for result in results)]
    agreement = [1.0, *(float(result.mean("top1_agreement")[0]) for result in results)]
    units = "nats per token"
    return xr.Dataset(
        {
            "loss": ("quantizer", losses, {"units": units}),
            "increase": ("quantizer", np.array(losses) - clean, {"units": f"{units} above as loaded"}),
            "agreement": (
                "quantizer",
                agreement,
                {"units": "share of tokens with the top-1 of the model as loaded"},
            ),
            "bytes": ("quantizer", [one.size for one in found], {"units": "bytes of the blocks"}),
            "seconds_to_quantize": quantity(
                "quantizer",
                [one.seconds for one in found],
                "s to quantize all blocks once, on this machine",
                "Paid once; where a method packs blocks when they run, again for each run.",
                PUBLISHED,
            ),
            "peak_memory": quantity(
                "quantizer",
                [one.peak for one in found],
                "bytes held beyond the model, at most, while its blocks are quantized one after the other",
                "The model itself is not counted: the published figures were read with it loaded.",
                PUBLISHED,
            ),
            "perplexity": quantity(
                "quantizer",
                np.exp(losses),
                "perplexity of the completions",
                "The exponential of the loss.",
                PUBLISHED,
            ),
            "reading": (
                "quantizer",
                reading,
                {"units": "tokens per second, forward pass of one recorded batch"},
            ),
            "writing": (
                "quantizer",
                writing,
                {"units": "tokens per second, greedy generation of one prompt"},
            ),
        },
        coords={"quantizer": [one.name for one in found]},
        attrs={
            **(sweep_attributes(*results) if results else {}),
            "threads": torch.get_num_threads(),
            **text.attributes,
        },
    )


def _chosen(methods: list[str] | None, group: int) -> list[Method]:
    known = {method.name: method for method in METHODS}
    unknown = [name for name in methods or () if name not in known]
    if unknown or group < 1:
        what = f"there is no method {unknown[0]!r}" if unknown else "a group has at least 1 input"
        raise ValueError(f"{what}: choose among {', '.join(known)}" if unknown else what)
    return [known[name] for name in methods] if methods else list(METHODS)


def _copies(
    model: Model, blocks: list[Block], method: Method, group: int
) -> tuple[str, list[MadeWhenRun], float]:
    """Why a method cannot be used on this model here, or what stands in the blocks' places and how many bytes
    that takes."""
    reason = missing(method.package)
    stacked = [
        name
        for block in blocks
        for name, p in block.module.named_parameters()
        if name in _axes(model, block) and p.dim() == 3
    ]
    if method.package and not reason and stacked:
        reason = (
            f"it knows linear layers only, and {len(stacked)} of the model's matrices ({stacked[0]}, ...) are"
            " no such layers"
        )
    if reason:
        return reason, [], 0.0
    try:
        copies = method.copies(model, blocks, group)
        held = sum(held_bytes(one.block()) for one in copies) if method.packed else 0.0
    except REFUSALS as error:
        return " ".join(str(error).split()), [], 0.0
    return "", copies, held or sum(block_bytes(model, b, method.bits, group) for b in blocks)


def _axes(model: Model, block: Block) -> dict[str, int]:
    return matrix_axes(block, model.width)


@dataclass
class _Measured:
    """What one method gave; of its blocks nothing is kept. `turns` and `beside` are seconds of it and of the
    model as loaded."""

    name: str
    size: float
    result: SweepResult | None = None
    turns: list[tuple[float, float]] = field(default_factory=list)
    beside: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = float("nan")
    peak: float = float("nan")


def _one_method(
    model: Model, text: Evaluation, blocks: list[Block], method: Method, group: int
) -> _Measured | str:
    """Measure one method; why it is left out, where it cannot be used."""
    reason, copies, size = _copies(model, blocks, method, group)
    if reason:
        return reason
    result = _sweep(text, blocks, copies)
    if not np.isfinite(float(result.mean("loss")[0])):
        return f"its loss is not a number in {model.dtype}"
    one = _Measured(method.name, size, result)
    one.seconds, one.peak = _cost_of_quantizing(model, blocks, method, group)
    packing = Clock()
    standing = {
        block.module: PackedWhenTimed(made, packing) for block, made in zip(blocks, copies, strict=True)
    }
    inputs = text.recordings[0].inputs
    for _ in range(ROUNDS if method.packed else 0):
        one.beside.append(_turn(model, inputs))
        with model.held(), packed(standing):
            one.turns.append(_turn(model, inputs, packing))
    return one


def _cost_of_quantizing(model: Model, blocks: list[Block], method: Method, group: int) -> tuple[float, float]:
    """Seconds of quantizing every block once, and the most bytes held meanwhile beyond the model; each is
    let go before the next one, as on a route."""

    def made(place: int) -> None:
        method.copies(model, blocks, group)[place].block()

    if method.package == WHOLE_MODEL:  # it works on all blocks at once: one making is all of them
        started = time.perf_counter()
        peak = peak_bytes(lambda: method.copies(model, blocks, group), model.device)
        return time.perf_counter() - started, float(peak)
    started = time.perf_counter()
    for place in range(len(blocks)):
        made(place)
    seconds = time.perf_counter() - started
    largest = int(np.argmax([block_bytes(model, block, None) for block in blocks]))
    return seconds, float(peak_bytes(lambda: made(largest), model.device))


def _sweep(text: Evaluation, blocks: list[Block], copies: list[Callable[..., Any]]) -> SweepResult:
    places = {block.index: module for block, module in zip(blocks, copies, strict=True)}
    route = Route.replace(len(text.model.blocks), places)
    return sweep(text.recordings, [Variant(route=route)], [loss(), top1_agreement()])


class Clock:
    """Seconds spent on what a measurement is not about."""

    def __init__(self) -> None:
        self.seconds = 0.0


@dataclass(frozen=True, eq=False)
class PackedWhenTimed(Forward):
    """A block's forward while a method is timed: the block is packed while the clock of packing runs, and its
    packed copy computes.

    Each of its layers has run once by then: what libraries do at a layer's first call is a part of packing.
    """

    made: MadeWhenRun
    packing: Clock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the packed block computes."""
        started = _now()
        block, stream = self.made.block().eval(), main_tensor((args, kwargs))
        assert stream is not None
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer(stream.new_zeros(1, layer.in_features))
        self.packing.seconds += _now() - started
        return block.forward(*args, **kwargs)


def _turn(model: Model, inputs: dict[str, torch.Tensor], packing: Clock | None = None) -> tuple[float, float]:
    """Seconds of reading the inputs of a batch and of writing behind one prompt, without those of packing.

    What is read before writing is cut so that both fit into the model; where nothing fits, or it cannot
    generate, writing takes no time that could be told.
    """
    most = longest_input(model.hf.config) if not model.two_stacks else 0
    ids = inputs["input_ids"][:1, : max(1, most - WRITTEN) if most else None]
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    writes = isinstance(model.hf, GenerationMixin) and (not most or most > WRITTEN)
    with model.held():
        without = packing or Clock()
        reading = _seconds(lambda: model.hf(**inputs, **without_cache(model.hf)), without)
        return reading, _seconds(lambda: _write(model.hf, prompt), without) if writes else float("nan")


def _speeds(model: Model, text: Evaluation, found: Sequence[_Measured]) -> tuple[list[float], list[float]]:
    """Tokens per second of reading and of writing, of the model as loaded and of each method; NaN where there
    were no turns.

    A method's is the model's median over all rounds, in the proportion of the two in the method's own rounds:
    a machine that slows down between two methods slows both sides.
    """
    loaded = np.median(
        np.array([turn for one in found for turn in one.beside] or [_turn(model, text.recordings[0].inputs)]),
        axis=0,
    )
    rates = [np.array([int(text.recordings[0].mask_BT.sum()), WRITTEN]) / loaded]
    for one in found:
        slower = (
            np.median(np.array(one.turns) / np.array(one.beside), axis=0) if one.turns else np.full(2, np.nan)
        )
        rates.append(rates[0] / slower)
    reading, writing = np.array(rates).T.tolist()
    return reading, writing


def _write(hf: Any, prompt: dict[str, torch.Tensor]) -> None:
    hf.generate(**prompt, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False)


def _seconds(work: Callable[[], Any], packing: Clock) -> float:
    started, before = _now(), packing.seconds
    with torch.no_grad():
        work()
    return _now() - started - (packing.seconds - before)


def _now() -> float:
    """The time, behind all that a card still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

"""Path patching: what one part of the model tells another directly, with everything between them held still.

Shapes: L blocks, S senders of a block (its heads, its MLP), T positions, W width of what is tapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from torch import Tensor

from regraft.core.defaults import ANSWER, CLEAN_PROMPT, CORRUPT_PROMPT, WRONG_ANSWER
from regraft.core.progress import advance
from regraft.core.signatures import TextFile
from regraft.experiments.intervene.patch_cases import (
    PatchCase,
    chosen_cases,
    position_pairs,
    read_position,
)
from regraft.experiments.intervene.patch_grid import stack_blocks
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.sites import Site, SiteError
from regraft.sweeps.metrics import logit_difference
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Replace, Variant

METRIC = "logit_difference"
OUTPUTS = {"attn": "attn_out", "cross": "cross_out", "mixer": "mixer_out", "mlp": "mlp_out"}
"""What each kind of branch adds to the stream: what is held still."""
IN_SAME_BLOCK = {"attn": ("resid_mid", "mlp_act", "neuron", "resid_post"), "mlp": ("resid_post",)}
"""What a sender can reach in its own block."""


@dataclass(frozen=True)
class Sender:
    """A part that says something: a site, and the kind of branch that it is in."""

    block: Block
    column: str
    site: str
    kind: str


def paths(
    model: Model,
    receivers: list[str] | None = None,
    clean: str = CLEAN_PROMPT,
    corrupt: str = CORRUPT_PROMPT,
    answer: str = ANSWER,
    wrong: str = WRONG_ANSWER,
    through: Literal["nothing", "mlps"] = "nothing",
    direction: Literal["denoise", "noise"] = "denoise",
    pairs: TextFile = "",
    map: list[str] | None = None,
    count: int = 0,
) -> xr.Dataset:
    """Patch the direct paths from every head and MLP to the receivers, and measure the logit of the answer
    minus a wrong one's.

    Source: Wang et al., "Interpretability in the wild" (2022), and Goldowsky-Dill et al., "Localizing model
    behavior with path patching" (2023). The sender's activation of the other run is put in, and what every
    other branch behind it adds to the stream is held at its own run's value: what arrives at the receivers
    then came along the stream directly. That alone is put into them in a second run, in which everything
    behind them answers. The effect is (m_patched - m_target) / (m_source - m_target).

    Args:
        receivers: sites that listen, for example 9.q.2 (one head's query), 9.k, 9.v, 9.resid_pre, 9.mlp_act;
            by default the stream behind the last block, which the output matrix reads.
        clean: the prompt whose answer is `answer`.
        corrupt: a prompt of as many tokens whose answer is `wrong`.
        answer: one token.
        wrong: one token.
        through: whether MLPs between sender and receivers are held still, too, or answer.
        direction: denoise puts what the clean run says into the corrupted run, noise the other way round.
        pairs: a JSON list of cases of your own, each with clean, corrupt, answer and wrong; their effects are
            averaged.
        map: for prompts of unequal length, pairs CLEAN:CORRUPT of token positions that belong together.
        count: how many of the pairs of a file, the first ones; 0 for all.

    Raises:
        ValueError: prompts of unequal length without a map, a target that is not one token, or a receiver
            that does not exist, does not listen to the stream, or has no sender in front of it.

    Examples:
        >>> data = regraft.paths(model, receivers=["9.q.2"])
        >>> dict(data["logit_difference"].sizes), data["logit_difference"].attrs["units"]
        ({'block': 12, 'sender': 7}, 'logit of the answer minus logit of the wrong one')
    """
    if through not in ("nothing", "mlps") or direction not in ("denoise", "noise"):
        raise ValueError(
            f"through {through!r} and direction {direction!r}: choose nothing or mlps, and denoise or noise"
        )
    listening = _receivers(model, receivers)
    senders = [one for one in _senders(model) if any(_reaches(one, site) for site in listening)]
    if not senders:
        raise ValueError(f"no head or MLP stands in front of {', '.join(s.address for s in listening)}")
    cases = chosen_cases(model, PatchCase(clean, corrupt, answer, wrong), pairs, count)
    parts = []
    for case in cases:
        parts.append(_Case(model, case, direction, map).measured(senders, listening, through))
        advance("pairs", len(parts), len(cases))
    return _dataset(model, senders, listening, parts, through, direction)


def _receivers(model: Model, given: list[str] | None) -> list[Site]:
    """The sites that listen.

    Raises:
        ValueError: one does not listen to the stream of the blocks that read the prompt.
    """
    blocks = stack_blocks(model)
    found = [model.site(address) for address in given or [f"{blocks[-1].address}.resid_post"]]
    for site in found:
        if site.block is None or site.block > blocks[-1].index:
            raise SiteError(
                f"{site.address} is outside the blocks that read the prompt: name a site of one of them, or"
                f" {blocks[-1].address}.resid_post for what the output matrix reads"
            )
        if site.name in OUTPUTS.values() or site.name == "pattern":
            raise SiteError(
                f"{site.address} is what a branch answers, not what it is told: name q, k, v, z or head.N of"
                " an attention, mlp_act or neuron.N of an MLP, resid_pre, resid_mid or resid_post"
            )
    return found


def _senders(model: Model) -> list[Sender]:
    """Every head and every MLP of the blocks that read the prompt; a mixer, or an attention whose heads are
    not told, as a whole."""
    found = []
    for block in stack_blocks(model):
        exists = {name for name in ("z", *OUTPUTS.values()) if model.taps.exists(block.index, name)}
        heads = model.tap(f"{block.address}.z").heads if "z" in exists else 0
        found += [Sender(block, str(n), f"{block.address}.head.{n}", "attn") for n in range(heads)]
        for kind, column in (("attn", "attention"), ("mixer", "mixer"), ("mlp", "MLP")):
            if OUTPUTS[kind] in exists and not (kind == "attn" and heads):
                found.append(Sender(block, column, f"{block.address}.{OUTPUTS[kind]}", kind))
    return found


def _reaches(sender: Sender, receiver: Site) -> bool:
    """Whether a receiver stands behind a sender."""
    assert receiver.block is not None
    if receiver.block != sender.block.index:
        return receiver.block > sender.block.index
    kind = "mlp" if sender.kind == "mlp" or sender.block.parallel else "attn"
    return receiver.name in IN_SAME_BLOCK[kind]


@dataclass
class PathCells:
    """What one case gave for every sender: values and effects, the two runs' own values, and the sweeps."""

    value: np.ndarray
    effect: np.ndarray
    source_value: float
    target_value: float
    results: list[SweepResult]


class _Case:
    """Both runs of one case: where activations come from, and where they are put."""

    def __init__(self, model: Model, case: PatchCase, direction: str, given: list[str] | None):
        self.model = model
        clean, corrupt = model.record(case.clean), model.record(case.corrupt)
        places = position_pairs(clean, corrupt, given)
        self.source, self.target = clean, corrupt
        if direction == "noise":
            self.source, self.target, places = corrupt, clean, [(b, a) for a, b in places]
        self.froms, self.here = [a for a, _ in places], [b for _, b in places]
        read = read_position(model, self.source, self.target)
        self.metric = logit_difference(case.answer, case.wrong, read)
        self.still: dict[str, Replace] = {}

    def measured(self, senders: list[Sender], receivers: list[Site], through: str) -> PathCells:
        """Run every path; block by block of senders, so that few activations are held at once."""
        own = sweep(self.source, [], self.metric)
        source_value = float(own.clean[METRIC])
        results, values = [], []
        for block in dict.fromkeys(sender.block for sender in senders):
            group = [sender for sender in senders if sender.block is block]
            edits = [self._sent(one, receivers, through) for one in group]
            listening = [site.address for site in receivers]
            heard = sweep(self.target, [Variant(one) for one in edits], self.metric, read=listening)
            told = [
                Variant([
                    Replace(site.address, heard.reads[site.address][row])
                    for site in receivers
                    if _reaches(one, site)
                ])
                for row, one in enumerate(group)
            ]  # fmt: skip
            results.append(sweep(self.target, told, self.metric))
            values += results[-1].values[METRIC][:, 0].tolist()
            advance("senders", len(values), len(senders))
        target_value = float(results[0].clean[METRIC])
        if source_value == target_value:
            raise ValueError(
                "both prompts give the same logit difference, so there is no effect to carry over"
            )
        effect = (np.array(values) - target_value) / (source_value - target_value)
        return PathCells(np.array(values), effect, source_value, target_value, results)

    def _sent(self, sender: Sender, receivers: list[Site], through: str) -> list[Replace]:
        """The edits under which a sender speaks and every other branch up to the receivers is still."""
        last = max(site.block for site in receivers if site.block is not None)
        edits = [Replace(sender.site, self._said(sender.site), position=self.here)]
        for block in self.model.blocks[sender.block.index : last + 1]:
            for branch in block.branches:
                own = block is sender.block and branch.kind == sender.kind
                answers = through == "mlps" and branch.kind == "mlp"
                if not own and not answers:
                    edits.append(self._still(f"{block.address}.{OUTPUTS[branch.kind]}"))
        return edits

    def _said(self, address: str) -> Tensor:
        return self.source[address].flatten(2)[0, self.froms]

    def _still(self, address: str) -> Replace:
        if address not in self.still:
            self.still[address] = Replace(address, self.target[address])
        return self.still[address]


def _dataset(
    model: Model,
    senders: list[Sender],
    receivers: list[Site],
    parts: list[PathCells],
    through: str,
    direction: str,
) -> xr.Dataset:
    """The senders as a table of blocks and columns; NaN where a block has no such part."""
    rows = [block.address for block in stack_blocks(model)]
    columns = list(dict.fromkeys(sorted((s.column for s in senders), key=_order)))
    shape = (len(parts), len(rows), len(columns))
    value, effect = np.full(shape, np.nan), np.full(shape, np.nan)
    for number, sender in enumerate(senders):
        cell = rows.index(sender.block.address), columns.index(sender.column)
        for case, part in enumerate(parts):
            value[case][cell], effect[case][cell] = part.value[number], part.effect[number]
    mean = f", mean over {len(parts)} pairs" if len(parts) > 1 else ""
    dims = ("block", "sender")
    units = f"share of the difference between the runs{mean}"
    data: dict[str, Any] = {
        METRIC: (dims, value.mean(0), {"units": f"logit of the answer minus logit of the wrong one{mean}"}),
        "effect": (dims, effect.mean(0), {"units": units}),
    }
    if len(parts) > 1:
        error = effect.std(0, ddof=1) / np.sqrt(len(parts))
        data["effect_error"] = (dims, error, {"units": f"standard error over {len(parts)} pairs"})
        data["pair_effect"] = (("pair", *dims), effect, {"units": "share of the difference between the runs"})
    return xr.Dataset(
        data,
        coords={"block": rows, "sender": columns},
        attrs={
            **sweep_attributes(*(result for part in parts for result in part.results)),
            "receivers": ", ".join(site.address for site in receivers),
            "through": through,
            "direction": direction,
            "pairs": len(parts),
            "source_value": float(np.mean([part.source_value for part in parts])),
            "target_value": float(np.mean([part.target_value for part in parts])),
        },
    )


def _order(column: str) -> tuple[bool, int, str]:
    return (not column.isdigit(), int(column) if column.isdigit() else 0, column)

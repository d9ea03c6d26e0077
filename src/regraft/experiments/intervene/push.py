"""Push: activations of a charged question, put into a neutral text, and how far they push each answer.

Shapes: N pairs of a question and a baseline, C components, K targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.progress import advance
from regraft.core.signatures import TextFile
from regraft.data.own_texts import check_known, check_sayable, first_of
from regraft.data.text_files import read_pairs
from regraft.experiments.intervene.push_ranking import KINDS, beyond_quantities, looked_at, ranked_quantities
from regraft.model.model import Model
from regraft.sweeps.metrics import log_probability
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Replace, Variant

QUESTION, BASELINE = "Question: Is Madrid the capital of Spain? Answer:", "The day after Tuesday is"
OURS = "the English question, text and answers that ship with regraft"


@dataclass(frozen=True)
class Pair:
    """A charged question, and the neutral text that its activations are put into."""

    question: str
    baseline: str


@dataclass(frozen=True)
class PushedComponent:
    """What is put into another text: its addresses (a whole block's are all its branches'), its block's, its
    kind, and its number if it is a head."""

    addresses: tuple[str, ...]
    block: str
    kind: str
    head: int = -1

    @property
    def label(self) -> str:
        """MLP3, ATT3, BLOCK3 or L3H2."""
        words = {"mlp": "MLP", "attention": "ATT", "block": "BLOCK"}
        return f"L{self.block}H{self.head}" if self.kind == "head" else f"{words[self.kind]}{self.block}"


@dataclass
class Pushed:
    """What one pair gave: push (C, K), and log-probabilities of the targets on the baseline and on the
    question (K)."""

    push: np.ndarray
    clean: np.ndarray
    on_question: np.ndarray
    result: SweepResult


def push(
    model: Model,
    question: str = "Question: Is Madrid the capital of Spain? Answer:",
    baseline: str = "The day after Tuesday is",
    targets: list[str] | None = None,
    decoder_text: str = "",
    pairs: TextFile = "",
    prompts: list[str] | None = None,
    count: int = 0,
    minus: str = "",
) -> xr.Dataset:
    """Put each component's activation on a question into a neutral text and measure how far it pushes the
    answers.

    Components are every block's MLP output, every attention head, every attention as a whole and every block
    (its attention and its MLP together); each is stored at the question's last position and put in at the
    baseline's last position. Push: change of the log-probability of a target there, averaged over pairs of a
    question and a baseline where there are several; beside it what all pairs have in common. For each target
    the components are ranked, and the foremost heads are shown with what they look at.

    Args:
        question: the charged text.
        baseline: an unrelated, neutral text of any length.
        targets: the answers, one token each; by default " yes" and " no".
        decoder_text: what an encoder-decoder has written before the answer, in both runs; by default nothing.
        pairs: a JSON list of pairs of your own, each with question and baseline; their pushes are averaged.
        prompts: several charged texts in place of the one question, each put into the baseline; their pushes
            are averaged.
        count: how many of the pairs or prompts, the first ones; 0 for all.
        minus: a second question, whose push is subtracted: what is left is not owed to there being a
            question.

    Raises:
        ValueError: a target that is not one token, a model that predicts no next token, or pairs beside other
            texts.

    Examples:
        >>> data = regraft.push(model)
        >>> dict(data["push"].sizes), data["push"].attrs["units"]
        ({'component': 108, 'target': 2}, "nats: change of the target's log-probability")
    """
    wanted = list(targets) if targets else [" yes", " no"]
    if not model.causal:
        raise ValueError(
            f"{model.name} does not write text from left to right, so a text has no next token to push"
        )
    if not model.two_stacks and decoder_text:
        raise ValueError(f"{model.name} has no decoder of its own: what it goes on from is the text itself")
    chosen = first_of(_pairs(question, baseline, pairs, prompts), count, "pairs and prompts")
    if not targets and not pairs and not prompts:
        check_sayable(model, (question, baseline, *wanted), OURS)
    elif not targets:
        check_known(model, wanted, "the English answers that ship with regraft")
    if prompts and baseline == BASELINE:
        check_sayable(model, [baseline], "the English text that ships with regraft")
    components, lacking = _components(model)
    runs: list[Pushed] = []
    for pair in chosen:
        runs.append(_pushed(model, components, pair, wanted, decoder_text))
        advance("pairs", len(runs), len(chosen))
    found = _dataset(components, chosen, runs, wanted, lacking)
    push_NCK = np.stack([run.push for run in runs])
    labels, kinds = [one.label for one in components], [one.kind for one in components]
    found = found.assign(ranked_quantities(labels, kinds, push_NCK)).assign_coords(ranked_kind=list(KINDS))
    if minus:
        second = [_pushed(model, components, Pair(minus, p.baseline), wanted, decoder_text) for p in chosen]
        second_NCK = np.stack([run.push for run in second])
        found = found.assign(beyond_quantities(push_NCK, second_NCK)).assign_attrs(minus=minus)
    return looked_at(model, found, chosen[0].question, decoder_text if model.two_stacks else None)


def _pairs(question: str, baseline: str, file: str, prompts: list[str] | None) -> list[Pair]:
    """The pairs that are measured, from the one way in which they are given."""
    if file and prompts:
        raise ValueError("pairs and prompts both say which questions are asked: give one of them")
    if file and (question, baseline) != (QUESTION, BASELINE):
        raise ValueError(
            "pairs hold both questions and baselines: give no question and no baseline beside them"
        )
    if prompts and question != QUESTION:
        raise ValueError("question and prompts both say what is asked: give one of them")
    if not file:
        return [Pair(text, baseline) for text in prompts or [question]]
    return read_pairs(Path(file), Pair, "write a list of objects with question and baseline")


def _components(model: Model) -> tuple[list[PushedComponent], list[str]]:
    """What can be put into another text, and the addresses of what a block does not have."""
    found, lacking = [], []
    for block in model.main_blocks:
        address = block.address
        for kind, site in (("mlp", "mlp_out"), ("head", "z"), ("attention", "attn_out")):
            if not model.taps.exists(block.index, site):
                lacking.append(f"{address}.{site}")
            elif kind == "head":
                heads = range(model.tap(f"{address}.z").heads)
                found += [PushedComponent((f"{address}.head.{n}",), address, kind, n) for n in heads]
            else:
                found.append(PushedComponent((f"{address}.{site}",), address, kind))
        branches = [f"{branch.kind}_out" for branch in block.branches]
        if len(branches) > 1 and all(model.taps.exists(block.index, site) for site in branches):
            found.append(PushedComponent(tuple(f"{address}.{s}" for s in branches), address, "block"))
    if not found:
        raise ValueError(
            f"{model.name} has neither an MLP output nor heads that could be put into another text"
        )
    return found, lacking


def _pushed(
    model: Model, components: list[PushedComponent], pair: Pair, targets: list[str], decoder_text: str
) -> Pushed:
    """One pair: every component's activation at the question's end, put in at the baseline's."""
    behind = decoder_text if model.two_stacks else None
    charged, neutral = (model.record(text, behind) for text in (pair.question, pair.baseline))
    metrics = [log_probability(target) for target in targets]
    variants = [
        Variant([Replace(site, charged[site][0, -1], position=-1) for site in one.addresses])
        for one in components
    ]
    result, asked = sweep(neutral, variants, metrics), sweep(charged, [], metrics)
    values = np.stack([result.values[name][:, 0].numpy() for name in result.values], axis=1)
    clean, on_question = (
        np.array([float(one.clean[name][0]) for name in one.clean]) for one in (result, asked)
    )
    return Pushed(values - clean, clean, on_question, result)


def _dataset(
    components: list[PushedComponent],
    pairs: list[Pair],
    runs: list[Pushed],
    targets: list[str],
    lacking: list[str],
) -> xr.Dataset:
    """The means over the pairs, beside them what each pair gave."""
    push_NCK, clean_NK, on_question_NK = (
        np.stack([getattr(r, name) for r in runs]) for name in ("push", "clean", "on_question")
    )
    grid, mean = ("component", "target"), f", mean over {len(runs)} pairs" if len(runs) > 1 else ""
    change, there, asked = (
        "nats: change of the target's log-probability",
        "on the baseline itself",
        "on the question",
    )
    data: dict[str, Any] = {
        "push": (grid, push_NCK.mean(0), {"units": f"{change}{mean}"}),
        "clean": ("target", clean_NK.mean(0), {"units": f"nats: log-probability {there}{mean}"}),
        "on_question": ("target", on_question_NK.mean(0), {"units": f"nats: log-probability {asked}{mean}"}),
        "pair_clean": (("pair", "target"), clean_NK, {"units": f"nats: log-probability {there}"}),
        "pair_on_question": (("pair", "target"), on_question_NK, {"units": f"nats: log-probability {asked}"}),
    }
    if mean:
        data["pair_push"] = (("pair", *grid), push_NCK, {"units": change})
    stated = {name: [getattr(pair, name) for pair in pairs] for name in ("question", "baseline")}
    return xr.Dataset(
        data,
        coords={
            "component": [one.label for one in components],
            "kind": ("component", [one.kind for one in components]),
            "component_block": ("component", [one.block for one in components]),
            "head": ("component", [one.head for one in components]),
            "target": targets,
            "pair": np.arange(len(pairs)),
            **{name: ("pair", texts) for name, texts in stated.items()},
        },
        attrs={
            **sweep_attributes(*(run.result for run in runs)),
            **{name: texts[0] if len(set(texts)) == 1 else "" for name, texts in stated.items()},
            "pairs": len(runs),
            "without": ", ".join(lacking),
        },
    )

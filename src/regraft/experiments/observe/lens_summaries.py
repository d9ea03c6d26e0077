"""What the lens says over depth, over all tokens and for each kind of token and prompt.

Shapes: S depths (blocks + 1), N scored tokens, P prompts, k the ranks that count as found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.quantities import quantity

TOPS = (1, 5, 10)
"""How far up the true token must be to count as found, one accuracy for each."""
NEAR = 100
"""Ranks from which on a published hurt rate does not count a token: it was lost before."""
PUBLISHED = "logit-lens study of Qwen3-4B (hivaze/dl-experiments)"
LENS_PAPER = "nostalgebraist, interpreting GPT: the logit lens (2020)"

Summary = tuple[Callable[[xr.Dataset], np.ndarray], tuple[str, ...], str, str]
SUMMARIES: dict[str, Summary] = {
    "rank_median": (
        lambda d: np.median(d["rank"].values, axis=1),
        ("depth",),
        "tokens ahead of the true one, median over tokens",
        "Half of the tokens are found at this rank or better; 0 is first.",
    ),
    "rank_mean": (
        lambda d: d["rank"].values.mean(1),
        ("depth",),
        "tokens ahead of the true one, mean over tokens",
        "A mean far above the median is owed to few tokens that are still far from found.",
    ),
    "topk_accuracy": (
        lambda d: np.stack([(d["rank"].values < k).mean(1) for k in TOPS], axis=1),
        ("depth", "k"),
        "share of tokens within the first k",
        "A line that rises late says that the depths before it hold the token in another form, if at all.",
    ),
    "target_probability": (
        lambda d: d["probability"].values.mean(1),
        ("depth",),
        "mean probability of the true token",
        "It is low as long as the lens is unsure, even where the true token is first.",
    ),
    "entropy_mean": (
        lambda d: d["entropy"].values.mean(1),
        ("depth",),
        "nats, mean over tokens",
        "Near 0 the lens is sure of one token (right or not), at the logarithm of the vocabulary of none.",
    ),
    "kl_mean": (
        lambda d: d["kl_to_end"].values.mean(1),
        ("depth",),
        "nats from what the model says at the end to what the lens says here, mean over tokens",
        "What is still to come, as this lens sees it: 0 at the end.",
    ),
}
"""One number (or one for each k) at every depth: how it is made, of what shape, in what unit, how to read."""


def depth_summaries(data: xr.Dataset) -> dict[str, Any]:
    """Every summary over all tokens, and the gain of accuracy by block."""
    found = {
        name: quantity(dims, make(data), units, reading, PUBLISHED)
        for name, (make, dims, units, reading) in SUMMARIES.items()
    }
    first = (data["rank"].values == 0).mean(1)
    before, after = data["rank"].values[:-1], data["rank"].values[1:]
    return {
        **found,
        "accuracy_gain": quantity(
            "block",
            np.diff(first),
            "change of the share of tokens ranked first",
            "A bar upwards is a block behind which more tokens are ranked first than before it.",
            PUBLISHED,
            correlate="accuracy gain",
        ),
        "hurt_rate_top100": quantity(
            "block",
            ((after > before) & (before < NEAR)).mean(1),
            f"share of all tokens whose rank was below {NEAR} and got worse",
            "The hurt rate without tokens that were far from found before: what the block really took away.",
            PUBLISHED,
            correlate="hurt rate of the first 100",
        ),
        **_settling(data),
    }


def _settling(data: xr.Dataset) -> dict[str, Any]:
    """Middle and spread of the depths at which tokens settle, over the tokens that do."""
    found: dict[str, Any] = {}
    middle = "Half of the tokens that settle do so at this depth or before."
    spread = "Small: all tokens settle at one depth; large: some are found early, some at the end."
    for name in ("crystallization", "first_top1"):
        known = data[name].values[np.isfinite(data[name].values)]
        for suffix, of, reading in (("median", np.median, middle), ("std", np.std, spread)):
            value = float(of(known)) if len(known) else float("nan")
            found[f"{name}_{suffix}"] = quantity(
                (), value, "depth, over the tokens that settle", reading, PUBLISHED
            )
    gap = data.attrs["mean_first_top1"] - data.attrs["mean_crystallization"]
    found["crystallization_gap"] = quantity(
        (),
        gap,
        "depths between the mean of the first top-1 and the mean crystallization",
        "How many blocks the true token waits among the first ten before it is first.",
        PUBLISHED,
    )
    return found


def kind_summaries(data: xr.Dataset, by: str) -> dict[str, Any]:
    """The same for each kind of token or prompt, (kind, depth)."""
    kinds = np.unique(data[by].values)
    parts = [data.isel(token=data[by].values == kind) for kind in kinds]
    return {
        f"{name}_by_{by}": quantity(
            (f"by_{by}", *dims), np.stack([make(part) for part in parts]), units, reading, PUBLISHED
        )
        for name, (make, dims, units, reading) in SUMMARIES.items()
    }


def prompt_map(data: xr.Dataset) -> dict[str, Any]:
    """ln(1 + mean rank) of every prompt at every depth."""
    numbers = np.unique(data.prompt.values)
    mean = np.stack([data["rank"].values[:, data.prompt.values == n].mean(1) for n in numbers])
    return {
        "rank_by_prompt": quantity(
            ("of_prompt", "depth"),
            np.log1p(mean),
            "ln(1 + mean rank of the prompt's tokens)",
            "A row that stays high is a prompt whose continuation is found late; 0 is found everywhere.",
            PUBLISHED,
        )
    }


TUNED_PAPER = "Belrose et al., Eliciting Latent Predictions with the Tuned Lens (2023)"


def tuned_quantities(data: xr.Dataset, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """What a tuned lens reads at the same tokens, and the same summaries over depth."""
    dims = ("depth", "token")
    read = {
        name: quantity(
            dims, found[name], f"{data[name].attrs['units']} (tuned lens)",
            "Beside the plain lens: where the two part, the depth holds the token in a basis of its own.",
            TUNED_PAPER,
        )
        for name in ("rank", "probability", "entropy", "kl_to_end")
    }  # fmt: skip
    other = data.assign({name: (dims, found[name]) for name in read})
    summed = {
        f"tuned_{name}": quantity(dims_of, make(other), f"{units} (tuned lens)", reading, TUNED_PAPER)
        for name, (make, dims_of, units, reading) in SUMMARIES.items()
    }
    return {**{f"tuned_{name}": value for name, value in read.items()}, **summed}

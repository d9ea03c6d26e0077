"""Layer linearity: how far a block, its attention and its MLP are from linear maps, and what a linear map
would cost.

Shapes: N tokens, R directions, E step sizes, D width, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.progress import advance
from regraft.data.evaluation import evaluation
from regraft.data.generation import suited_prompts
from regraft.experiments.observe.block_functions import PARTS, Part, Token, plain_experts, sampled_tokens
from regraft.experiments.observe.jacobian import (
    RELIABLE,
    STEP,
    STEPS,
    consistency,
    differences,
    linearized,
    missed,
    order,
    spectral_norm,
    unit_directions,
)
from regraft.experiments.observe.linear_fit import LinearMap, fit_blocks
from regraft.experiments.observe.linearity_published import as_published, relation_quantities
from regraft.experiments.observe.token_states import observed
from regraft.model.model import Model
from regraft.model.parts import Stack
from regraft.sweeps.metrics import loss
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant

FELT = 1e-3
"""Nats that a knockout must cost before a share of it means anything."""
MEASURED = {
    "spectral_norm": "largest singular value of the Jacobian (5 power iterations)",
    "amplification": "mean length of J d for a unit direction d",
    "consistency": "mean cosine of J d at different tokens",
    "radial": "length of J along the stream / mean amplification",
    "difference_error": "central difference of 0.5% against exact derivative, relative",
}


def linearity(
    model: Model,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    sample: int = 16,
    directions: int = 16,
    jacobian: Literal["differences", "exact"] = "differences",
    stack: str = "",
    published: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how linear each block is around real states, and what the loss becomes with a linear map in its
    place.

    g(x) is what a part adds to the stream at a token whose vector is x, the rest of the context as recorded.
    Perturbation gap: |g(x+d) - g(x) - Jd| / |g(x+d) - g(x)| for random d of 5% of the length of x; order:
    slope + 1 of log gap against log step. All derivatives are taken in float64, whatever the weights' type.
    The linear map is fitted by ridge regression on other prompts; recovered is the share of the knockout's
    loss that it wins back.

    Args:
        prompts: texts to complete and look at; without them, prompts that suit the model.
        count: how many of the suiting prompts; the linear maps are fitted on those that are left.
        tokens: longest completion, in tokens.
        sample: how many tokens to differentiate at.
        directions: how many random directions at each of them.
        jacobian: take J d in the gap from central differences (as published) or from exact forward-mode
            derivatives.
        stack: encoder or decoder of a model with two stacks; by default the decoder.
        published: also measure as published: whole completions moved at once, along the data's own directions
            and off them, and linear maps of the whole output, of the normed input and of low rank.
        seed: of everything drawn at random.

    Raises:
        ValueError: too few tokens or directions, a stack that does not exist, or published asked of a model
            that does not write text with one stack.

    Examples:
        >>> data = regraft.linearity(model, count=1, tokens=4, sample=2, directions=4)
        >>> dict(data["gap"].sizes), data["gap"].attrs["units"]
        ({'part': 3, 'block': 12}, 'of the change, at a step of 5%')
    """
    if sample < 1 or directions < 1:
        raise ValueError(f"{min(sample, directions)} is too few: take at least one token and one direction")
    if published and (not model.causal or model.two_stacks or model.parts.head is None):
        raise ValueError(
            f"{model.name} does not write text with one stack: leave --published out, whose measures move the"
            " model's own completions"
        )
    seen = observed(model, prompts, count, tokens, stack)
    looked_at = sampled_tokens(model, seen, sample, seed)
    blocks = [block.index for block in seen.stack.blocks]
    shape = (len(PARTS), len(blocks))
    found: dict[str, np.ndarray] = {name: np.full(shape, np.nan) for name in MEASURED}
    gap = np.full((*shape, len(STEPS)), np.nan)
    for column, block in enumerate(blocks):
        for row, part in enumerate(PARTS):
            with model.held(), plain_experts(model.hf):
                measured = _measure(looked_at, block, part, (directions, seed), jacobian == "exact")
            if measured is not None:
                gap[row, column] = measured.pop("gap")
                for name, value in measured.items():
                    found[name][row, column] = value
        advance("blocks", column + 1, len(blocks))
    replaced = _replacement(model, seen.stack, prompts, count, tokens)
    data = _dataset(
        seen.stack,
        gap,
        found,
        replaced,
        {**seen.attributes, "sampled_tokens": len(looked_at), "jacobian": jacobian},
    )
    data = data.assign(relation_quantities(data))
    return as_published(model, data, evaluation(model, prompts, count, tokens), seed) if published else data


def _measure(
    looked_at: list[Token], block: int, part: Part, drawing: tuple[int, int], exact: bool
) -> dict[str, Any] | None:
    """All measures of one part of one block, averaged over tokens and so many directions, drawn with a
    seed."""
    directions, seed = drawing
    generator = torch.Generator().manual_seed(seed)
    gap, along, norms, radial, wrong = [], [], [], [], []
    drawn = None
    for token in looked_at:
        made = token.function(block, part)
        if made is None:
            return None
        g, x_D = made
        drawn = unit_directions(directions, len(x_D), generator, x_D) if drawn is None else drawn
        length = x_D.norm()
        rows_RD = torch.cat([drawn, x_D[None] / length])
        _, _, moved_RD = linearized(g, x_D.expand_as(rows_RD).contiguous(), rows_RD)
        jd, outwards = moved_RD[:directions], moved_RD[directions]
        moves_ERD, central_ERD = differences(g, x_D, drawn)
        exactly_ERD = torch.stack([step * length * jd for step in STEPS])
        gap.append(missed(moves_ERD, exactly_ERD if exact else central_ERD))
        wrong.append((central_ERD[0] / (STEPS[0] * length) - jd).norm() / jd.norm())
        norms.append(spectral_norm(g, x_D[None], generator)[0])
        radial.append(outwards.norm() / jd.norm(dim=1).mean())
        along.append(jd)
    along_NRD = torch.stack(along)
    return {
        "gap": torch.stack(gap).nanmean(dim=(0, 2)).double().cpu().numpy(),
        "spectral_norm": float(torch.stack(norms).mean()),
        "amplification": float(along_NRD.norm(dim=-1).mean()),
        "consistency": consistency(along_NRD),
        "radial": float(torch.stack(radial).nanmean()),
        "difference_error": float(torch.stack(wrong).nanmean()),
    }


def _replacement(
    model: Model, stack: Stack, prompts: list[str] | None, count: int, tokens: int
) -> dict[str, Any]:
    """Loss with each block skipped and with a linear map in its place, measured by the engine; or the reason
    why not."""
    if not model.causal or model.parts.head is None:
        return {"reason": "no linear map is put in a block's place: the model has no next-token loss"}
    if prompts and len(prompts) < 2:
        return {"reason": "no linear map is fitted: it is fitted on every other prompt, and one is given"}
    text = evaluation(model, prompts[::2] if prompts else None, count, tokens)
    if not prompts and model.tokenizer is None:
        return {
            "reason": "no linear map is fitted: without a tokenizer there are no other prompts to fit it on"
        }
    suited = prompts or [p.text for p in suited_prompts(model)]
    used = {c.prompt for c in text.flat}
    rest = list(prompts[1::2]) if prompts else [p for p in suited if p not in used]
    if not rest:
        return {
            "reason": (
                f"no linear map is fitted: all {len(suited)} prompts are measured on, leave some with --count"
            )
        }
    maps = fit_blocks(evaluation(model, rest, len(rest), tokens).recordings, stack)
    total = len(model.blocks)
    variants = [Variant(route=Route.skip(total, {block.index})) for block in stack.blocks]
    places: list[dict[int, Callable[..., Any]]] = [
        {b.index: m} for b, (m, _) in zip(stack.blocks, maps, strict=True)
    ]
    variants += [Variant(route=Route.replace(total, place)) for place in places]
    result = sweep(text.recordings, variants, loss())
    skipped, linear = result.mean("loss").chunk(2)
    clean = result.clean_mean("loss")
    return {
        "clean_loss": clean,
        "knockout_loss": skipped.numpy(),
        "linear_loss": linear.numpy(),
        "recovered": (
            (
                (skipped - linear) / (skipped - clean).where((skipped - clean).abs() > FELT, float("nan"))
            ).numpy()
        ),
        "linear_fit": np.array([fit for _, fit in maps]),
        "calibration_tokens": LinearMap.fitted_on(maps),
        "swept": sweep_attributes(result),
    }


def _marked(name: str) -> dict[str, str]:
    """Which quantities go into the correlation of all experiments."""
    chosen = ("spectral_norm", "amplification", "consistency", "radial", "recovered", "linear_fit")
    return {"correlate": name.replace("_", " ")} if name in chosen else {}


def _dataset(
    stack: Stack,
    gap: np.ndarray,
    found: dict[str, np.ndarray],
    replaced: dict[str, Any],
    attrs: dict[str, Any],
):
    dims = ("part", "block")
    slopes = np.array([[order(cell) for cell in row] for row in gap])
    nothing = np.full(len(stack.blocks), np.nan)
    units = {
        "knockout_loss": "nats per token, block skipped",
        "linear_loss": "nats per token, linear map in its place",
        "recovered": "share of the knockout's loss that the linear map wins back (none below 0.001 nats)",
        "linear_fit": "R squared on prompts held out while the ridge was chosen",
    }
    return xr.Dataset(
        {
            "gap": (
                dims,
                gap[..., STEPS.index(STEP)],
                {"units": "of the change, at a step of 5%", "correlate": "gap"},
            ),
            "gap_by_step": ((*dims, "step"), gap, {"units": "of the change"}),
            "order": (dims, slopes[..., 0], {"units": "2 for a quadratic", "correlate": "order"}),
            "order_fit": (dims, slopes[..., 1], {"units": "R squared"}),
            "order_reliable": (dims, slopes[..., 1] >= RELIABLE, {"units": f"R squared at least {RELIABLE}"}),
            **{
                name: (dims, found[name], {"units": unit, **_marked(name)}) for name, unit in MEASURED.items()
            },
            **{
                name: ("block", replaced.get(name, nothing), {"units": unit, **_marked(name)})
                for name, unit in units.items()
            },
        },
        coords={"part": list(PARTS), "block": [block.address for block in stack.blocks], "step": list(STEPS)},
        attrs={
            **attrs,
            **{name: replaced[name] for name in ("clean_loss", "calibration_tokens") if name in replaced},
            **replaced.get("swept", {"notes": replaced.get("reason", "")}),
        },
    )

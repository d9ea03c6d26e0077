"""Quantization sensitivity: what each block and each matrix loses with few bits, and which recipe of bits
loses least.

Shapes: L blocks, W widths in bits, R roles, Q recipes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from regraft.checkpoint.roles import ROLES
from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT, QUANTIZATION_GROUP
from regraft.core.files import keeping
from regraft.core.progress import advance
from regraft.core.registry import DOES_NOT_APPLY
from regraft.core.signatures import NewFolder, TextFile
from regraft.data.evaluation import Evaluation, evaluation
from regraft.experiments.intervene.quantization.packed_checkpoint import check_packable, write_packed
from regraft.experiments.intervene.quantization.published_quantities import (
    COORDINATES,
    RoundedLosses,
    published_quantities,
    sensitivity_quantities,
)
from regraft.experiments.intervene.quantization.recipes import (
    by_score,
    ends_at_eight,
    ends_protected,
    oracle,
    proportional,
    uniform,
    unit_scale,
)
from regraft.experiments.intervene.quantization.rounding import (
    FEWEST_BITS,
    MOST_BITS,
    block_bytes,
    quantized_block,
    rounded_when_run,
)
from regraft.experiments.running import measured, refused
from regraft.export.route_model import check_save, measured_route, route_of, save_blocks
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.weights import live_weights
from regraft.sweeps.metrics import loss
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant

WIDTHS = (8, 6, 4, 3, 2)
"""Widths that blocks are measured at where none are asked for."""
MATRIX_BITS = 3
"""Bits at which single matrices are compared: few enough for most of them to cost something."""


RECIPES = (
    "uniform", "ends protected", "oracle", "inverse", "rank-guided", "linearity-guided",
    "ends at eight", "proportional to rank", "proportional to gap", "combined", "proportional to sensitivity",
)  # fmt: skip


def quantize(
    model: Model,
    bits: list[int] | None = None,
    group: int = QUANTIZATION_GROUP,
    recipe: str = "",
    save: NewFolder = "",
    format: Literal["packed", "float"] = "packed",
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    corpus: TextFile = "",
    sample: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Round each block's weights to few bits, alone and all together, and measure the loss; then compare
    recipes of bits.

    Round to nearest, symmetric, one scale for each group along the inputs, by routes: the model is not
    changed. Recipes with a mean of 4 bits: uniform, first and last block protected, by the sensitivity
    measured here (oracle) and by its inverse, by effective rank, by perturbation gap; beside them the
    published ones: in proportion to rank, gap, both together and sensitivity at 2 bits, and one by role.
    Embedding and output matrix stay as they are.

    Args:
        bits: widths to measure each block at; by default 8, 6, 4, 3 and 2.
        group: how many inputs share a scale.
        recipe: with save, the recipe to write, and then nothing is measured but what it needs; by default all
            recipes are measured and the one with the lowest loss is written.
        save: folder to write the model to, its weights rounded as the recipe says.
        format: what is saved: integers packed into few bits, which transformers opens with the package
            compressed-tensors, or rounded numbers of the model's own type, which it opens without but which
            are not smaller.
        prompts: texts whose completions are scored; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        corpus: a text file on which the loss is measured as well, its first 4,096 tokens.
        sample: how many tokens the perturbation gap is taken at; 0 for as many as linearity takes by itself.
        seed: of everything drawn at random.

    Raises:
        ValueError: a width outside 2 to 16, an unknown recipe, or a model without a next-token loss.

    Examples:
        >>> data = regraft.quantize(model, bits=[4], count=1, tokens=4, sample=2)
        >>> dict(data["sensitivity"].sizes), data["sensitivity"].attrs["units"]
        ({'block': 12}, 'nats per token above clean at 3 bits')
    """
    widths = sorted(set(bits or WIDTHS) | {2, 3, 4, 6}, reverse=True)
    blocks = list(model.parts.stacks[-1].blocks)
    _check(model, blocks, widths, group, recipe, save, format)
    text = evaluation(model, prompts, count, tokens)
    read = {"prompts": prompts, "count": count, "seed": seed, **({"sample": sample} if sample else {})}
    if recipe:
        return _one_recipe(model, text, blocks, recipe, widths, group, save, format, read)
    dataset, best = _all_measured(model, text, blocks, widths, group, corpus, read)
    if save:
        plan = dataset.recipe_bits.sel(recipe=best).values.tolist()
        with keeping(dataset):
            written = _save(model, text, blocks, plan, best, group, save, format)
            dataset.attrs["saved"] = written.attrs["saved"]
    return dataset


def _all_measured(
    model: Model,
    text: Evaluation,
    blocks: list[Block],
    widths: list[int],
    group: int,
    corpus: str,
    read: dict[str, Any],
) -> tuple[xr.Dataset, str]:
    """Every loss, and the name of the recipe with the lowest."""
    losses = RoundedLosses(model, text, corpus)
    alone = _alone(model, blocks, widths, group, losses)
    clean = losses.clean
    roles, matrices = _matrices(model, blocks, group, losses)
    chosen, lacking = _recipes(model, blocks, alone - clean, widths, read)
    found = []
    for number, plan in enumerate(chosen.values()):
        found.append(float(losses([_all(model, blocks, plan, group)])[0]))
        advance("recipes", number + 1, len(chosen))
    whole = [float(losses([_all(model, blocks, [width] * len(blocks), group)])[0]) for width in widths]
    extra = published_quantities(model, blocks, widths, group, losses, chosen)
    extra |= sensitivity_quantities(model, blocks, alone - clean, widths, matrices - clean, roles, read)
    best = list(chosen)[int(np.nanargmin(found))]
    named = {
        "clean_loss": clean,
        "clean_bytes": sum(block_bytes(model, b, None) for b in blocks),
        "group": group,
    }
    named |= {"best_recipe": best, "saved": "", "without": "; ".join(lacking)}
    attrs = {**sweep_attributes(*losses.results), **named, **text.attributes}
    size = {
        "whole": [sum(block_bytes(model, b, w, group) for b in blocks) for w in widths],
        "recipe": [_bytes(model, blocks, plan, group) for plan in chosen.values()],
    }
    coords = {"block": [b.address for b in blocks], "bits": widths, "role": roles, "recipe": list(chosen)}
    dataset = _dataset(alone, matrices, (whole, found), size, list(chosen.values()), coords, attrs)
    dataset = dataset.assign(extra).assign(
        losses.of_corpus(len(blocks), len(widths), np.isfinite(matrices), len(chosen))
    )
    dataset = dataset.assign_coords(dict(COORDINATES))
    return dataset, best


def _alone(
    model: Model,
    blocks: list[Block],
    widths: list[int],
    group: int,
    losses: Callable[[list[dict[int, Callable[..., Any]]]], np.ndarray],
) -> np.ndarray:
    """The loss with one block rounded and no other, (L, W)."""
    alone = np.zeros((len(blocks), len(widths)))
    for row, block in enumerate(blocks):
        alone[row] = losses(
            [{block.index: rounded_when_run(model, block, width, group=group)} for width in widths]
        )
        advance("blocks", row + 1, len(blocks))
    return alone


def _one_recipe(
    model: Model,
    text: Evaluation,
    blocks: list[Block],
    recipe: str,
    widths: list[int],
    group: int,
    save: str,
    format: str,
    read: dict[str, Any],
) -> xr.Dataset:
    """Write one recipe and measure it alone, with what it is made from: losses of blocks only where it goes
    by these."""
    if recipe in ("oracle", "inverse", "proportional to sensitivity"):
        places = [
            {b.index: rounded_when_run(model, b, width, group=group)} for b in blocks for width in widths
        ]
        routes = [Route.replace(len(model.blocks), dict(place)) for place in places]
        result = sweep(text.recordings, [Variant(route=route) for route in routes], loss())
        increase = result.mean("loss").numpy().reshape(len(blocks), len(widths)) - result.clean_mean("loss")
    else:
        increase = np.zeros((len(blocks), len(widths)))
    plan = _plan(model, blocks, increase, widths, recipe, read)
    done = _save(model, text, blocks, plan, recipe, group, save, format)
    return done.assign_coords(recipe_bits=("block", plan), block=[b.address for b in blocks])


def _plan(
    model: Model,
    blocks: list[Block],
    increase: np.ndarray,
    widths: list[int],
    recipe: str,
    read: dict[str, Any],
) -> list[int]:
    """Bits of every block by one recipe; what it goes by is measured on the prompts that are read here."""
    addresses = [block.address for block in blocks]

    def rank() -> np.ndarray:
        return _mean_rank(model, read["seed"]).sel(block=addresses).values

    def gap() -> np.ndarray:
        return _gap(model, read).sel(block=addresses).values

    scored: dict[str, Callable[[], list[int]]] = {
        "rank-guided": lambda: by_score(rank()),
        "linearity-guided": lambda: by_score(gap()),
        "proportional to rank": lambda: proportional(rank()),
        "proportional to gap": lambda: proportional(gap()),
        "combined": lambda: proportional((unit_scale(rank()) + unit_scale(gap())) / 2),
    }
    if recipe in scored:
        return scored[recipe]()
    sensitivity = increase[:, widths.index(MATRIX_BITS)]
    two = increase[:, widths.index(FEWEST_BITS)]
    plans: dict[str, Callable[[], list[int]]] = {
        "uniform": lambda: uniform(len(blocks)),
        "ends protected": lambda: ends_protected(len(blocks)),
        "ends at eight": lambda: ends_at_eight(len(blocks)),
        "proportional to sensitivity": lambda: proportional(two),
        "oracle": lambda: oracle(increase, widths),
        "inverse": lambda: by_score(-sensitivity),
    }
    return plans[recipe]()


def _check(
    model: Model, blocks: list[Block], widths: list[int], group: int, recipe: str, save: str, format: str
) -> None:
    """Refuse what cannot be done before anything is measured."""
    if group < 1 or min(widths) < FEWEST_BITS or max(widths) > MOST_BITS:
        bits = f"{FEWEST_BITS} to {MOST_BITS} bits"
        raise ValueError(f"a group has at least 1 input, and a width is {bits}")
    if recipe and not save:
        raise ValueError("--recipe chooses what is written: name a folder with --save")
    if recipe and recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}: choose among {', '.join(RECIPES)}")
    check_save(save)
    if save and format == "packed":
        check_packable(blocks, model.width)


def _matrices(
    model: Model, blocks: list[Block], group: int, losses: Callable[..., Any]
) -> tuple[list[str], np.ndarray]:
    """Loss with one role's matrices of one block at three bits, (R, L); NaN where the block has none."""
    held = live_weights(model).matrices
    roles = [role for role in ROLES if any(m.role == role for m in held)]
    roles += sorted({m.role for m in held} - set(roles))
    table = np.full((len(roles), len(blocks)), np.nan)
    for column, block in enumerate(blocks):
        own = {role: [m for m in held if m.block == block.address and m.role == role] for role in roles}
        present = [role for role in roles if own[role]]
        copies = [
            {block.index: rounded_when_run(model, block, MATRIX_BITS, own[role], group)} for role in present
        ]
        for role, value in zip(present, losses(copies), strict=True):
            table[roles.index(role), column] = value
        advance("matrices", column + 1, len(blocks))
    return roles, table


def _recipes(
    model: Model, blocks: list[Block], increase: np.ndarray, widths: list[int], read: dict[str, Any]
) -> tuple[dict[str, list[int]], list[str]]:
    """Bits of every block for each recipe, and why those are left out that need an experiment which cannot
    run here."""
    found, lacking = {}, []
    for name in RECIPES:
        try:
            found[name] = _plan(model, blocks, increase, widths, name, read)
        except DOES_NOT_APPLY as error:
            if not refused(error, "quantize"):
                raise
            lacking.append(f"{name} is left out: {' '.join(str(error).split())}")
    return found, lacking


def _mean_rank(model: Model, seed: int) -> xr.DataArray:
    return measured(model, "spectra", seed).rank_ratio.mean("role")


def _gap(model: Model, read: dict[str, Any]) -> xr.DataArray:
    return measured(model, "linearity", **read).gap.sel(part="block")


def _all(model: Model, blocks: list[Block], plan: list[int], group: int) -> dict[int, Callable[..., Any]]:
    return {
        b.index: rounded_when_run(model, b, width, group=group) for b, width in zip(blocks, plan, strict=True)
    }


def _bytes(model: Model, blocks: list[Block], plan: list[int], group: int) -> float:
    return sum(block_bytes(model, block, width, group) for block, width in zip(blocks, plan, strict=True))


def _save(
    model: Model,
    text: Evaluation,
    blocks: list[Block],
    plan: list[int],
    name: str,
    group: int,
    folder: str,
    format: str,
) -> xr.Dataset:
    """Write the model with its blocks rounded as a recipe says; what it measures beside the whole one."""
    modules: list[Any] = [
        quantized_block(model, b, width, group=group) for b, width in zip(blocks, plan, strict=True)
    ]
    route = route_of(model, modules, list(range(len(modules))))
    done = measured_route(model, text, route, modules)
    done.attrs["change"] = (
        f"weights of the blocks rounded by the recipe {name}: {', '.join(map(str, plan))} bits in groups of"
        f" {group}, kept as {'packed integers' if format == 'packed' else 'numbers of the type of the model'}"
    )
    if format == "float":
        done.attrs["saved"] = save_blocks(model, modules, route, done, folder)
        return done

    def write(changed: Any, to: Path) -> None:
        write_packed(changed, to, blocks, plan, group)

    done.attrs["saved"] = save_blocks(model, blocks, route, done, folder, write)
    return done


def _dataset(
    alone: np.ndarray,
    matrices: np.ndarray,
    together: tuple[list[float], list[float]],
    size: dict[str, list[float]],
    plans: list[list[int]],
    coords: dict[str, Any],
    attrs: dict[str, Any],
) -> xr.Dataset:
    """`alone` (L, W), `matrices` (R, L), losses of all blocks at every width and by every recipe, and their
    bytes."""
    clean, units = attrs["clean_loss"], "nats per token"
    three = alone[:, coords["bits"].index(MATRIX_BITS)] - clean
    at_three = f"{units} above clean at {MATRIX_BITS} bits"
    whole, recipes = together
    return xr.Dataset(
        {
            "loss": (("block", "bits"), alone, {"units": f"{units}, this block alone"}),
            "increase": (("block", "bits"), alone - clean, {"units": f"{units} above clean"}),
            "perplexity_increase": (
                ("block", "bits"),
                np.exp(alone) - np.exp(clean),
                {"units": "perplexity above clean"},
            ),
            "sensitivity": ("block", three, {"units": at_three, "correlate": "sensitivity"}),
            "matrix_increase": (("role", "block"), matrices - clean, {"units": at_three}),
            "whole_loss": ("bits", whole, {"units": f"{units}, all blocks"}),
            "whole_bytes": ("bits", size["whole"], {"units": "bytes of the blocks"}),
            "recipe_loss": ("recipe", recipes, {"units": units}),
            "recipe_bytes": ("recipe", size["recipe"], {"units": "bytes of the blocks"}),
            "recipe_bits": (("recipe", "block"), plans, {"units": "bits"}),
        },
        coords=coords,
        attrs=attrs,
    )

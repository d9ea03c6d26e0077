"""A finding is written only where there is one: zero loss, nothing removed, ties, NaN, a single block,
nothing. By hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from regraft.reporting.figures.bit_figures import quantize_finding, quantizers_finding
from regraft.reporting.figures.component_figures import (
    ablate_figures,
    ablate_finding,
    push_figures,
    push_finding,
)
from regraft.reporting.figures.intervene_figures import (
    knockout_figures,
    knockout_finding,
    replacement_finding,
    swap_figures,
    swap_finding,
)
from regraft.reporting.figures.patch_figures import patch_figures, patch_finding

NAN, INF = float("nan"), float("inf")


def data(coords=None, attrs=None, **variables):
    return xr.Dataset(variables, coords or {}, attrs or {})


def blocks(count):
    return {"block": list("abcdefgh"[:count])}


def skipped(ratio, clean=2.0):
    values = np.array(ratio, dtype=float)
    attrs = {"clean_loss": clean}
    return data(
        blocks(len(values)),
        attrs,
        ratio=("block", values),
        loss=("block", values * (clean if clean >= 0.001 else 1)),
    )


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (skipped([1.25, 4.0, 1.5], clean=0.0), "Block b is the critical one: without it the loss is 4.000 nats per "
            "token, clean 0.000; "
         "without any other it is 1.250 to 1.500. Block a is missed least."),
        (skipped([3.0]), "Without block a, the only one, the loss is 3.0 times the clean 2.000 nats per token."),
        (skipped([3.0, 3.0]), "Without blocks a and b, each alone, the loss is 3.0 times the clean 2.000 nats per token."),
        (skipped([3.0, 3.0, 1.5]), "Blocks a and b are missed most: without any one of them the loss is 3.0 times the "
            "clean 2.000 nats "
         "per token; without any other it is 1.50 times."),
        (skipped([0.9, 0.8]), "No block is missed: without any one of them the loss is at most 0.90 times the clean "
            "2.000 nats per "
         "token."),
        (skipped([INF, 2.5, 1.5]), "Block b is the critical one: without it the loss is 2.5 times the clean 2.000 "
            "nats per token; "
         "without any other it is 1.50 times. Without block a the loss is not a finite number."),
        (skipped([NAN, NAN]), "Without blocks a and b the loss is not a finite number."),
    ],
)  # fmt: skip
def test_skipping(dataset, said):
    assert knockout_finding(dataset) == said
    knockout_figures(dataset)


def test_a_clean_loss_of_zero_is_no_measure():
    (caption, figure), = knockout_figures(skipped([1.0, 2.0], clean=0.0))  # fmt: skip
    assert list(figure.data[0].y) == [1.0, 2.0]
    assert figure.layout.yaxis.type == "linear"
    assert "relative" not in caption


def greedily(removed, clean=2.0):
    steps = np.arange(1, len(removed) + 1)
    return data(
        {"step": steps, **blocks(3)},
        {"limit": 1.5, "clean_loss": clean},
        removed=("step", np.array(removed, dtype=str)),
        ratio=("step", 1 + steps / 10),
        loss=("step", clean * (1 + steps / 10)),
    )


def test_removing_blocks_one_by_one():
    assert (
        knockout_finding(greedily([]))
        == "No block can go: without any one of them the loss passes 1.5 times the clean 2.000 nats per"
        " token."
    )
    assert knockout_finding(greedily(["b"])).startswith(
        "1 block of 3 can go within 1.5 times the clean 2.000 nats per token: b, in"
    )
    assert "no multiple of it" in knockout_finding(greedily(["b"], clean=0.0))
    for dataset in (greedily([]), greedily(["b"], clean=0.0)):
        assert len(knockout_figures(dataset)) == 1


def paired(synergy):
    square = np.array(synergy, dtype=float)
    coords = {**blocks(len(square)), "other": list("abcdefgh"[: len(square)])}
    return data(
        coords,
        {"clean_loss": 1.0},
        synergy=(("block", "other"), square),
        increase=(("block", "other"), square),
    )


def test_pairs():
    assert knockout_finding(paired([[NAN]])) == ""
    assert knockout_finding(paired([[NAN, 0.0], [0.0, NAN]])) == ""
    said = knockout_finding(paired([[NAN, 0.1, -0.5], [0.1, NAN, 0.0], [-0.5, 0.0, NAN]]))
    assert said.startswith(
        "Blocks a and c have most in common: skipped together they cost 0.500 nats per token less"
    )
    said = knockout_finding(paired([[NAN, 0.1, 0.5], [0.1, NAN, 0.0], [0.5, 0.0, NAN]]))
    assert said.startswith("Blocks a and c stand in most for each other: skipped together they cost 0.500")
    assert "more than the sum" in said
    knockout_figures(paired([[NAN]]))


def exchanged(cost, clean=1.0, pairs=None):
    square = np.array(cost, dtype=float)
    n = len(square)
    return data(
        {**blocks(n), "other": list("abcdefgh"[:n])},
        {
            "tolerance": 0.01,
            "interchangeable_pairs": "none",
            "pairs": pairs or n * (n - 1) // 2,
            "clean_loss": clean,
        },
        cost=(("block", "other"), square),
        mean_cost=("block", square.sum(1) / max(n - 1, 1)),
        leaf_order=("leaf", np.arange(n)),
        linkage=(("merge", "field"), np.zeros((0, 4))),
        distance_cost=("distance", [1.0]),
    )


def test_exchanging():
    rest = " Interchangeable within 1% of the clean loss: none of 1 pair."
    assert swap_finding(exchanged([[0.0]])) == "There are no two blocks whose exchange gives a finite loss."
    assert (
        swap_finding(exchanged([[0, NAN], [NAN, 0]]))
        == "There are no two blocks whose exchange gives a finite loss."
    )
    assert (
        swap_finding(exchanged([[0, 0.5], [0.5, 0]]))
        == f"Exchanging a with b costs +0.500 nats per token.{rest}"
    )
    alike = exchanged([[0, 1, 1], [1, 0, 1], [1, 1, 0]], clean=0.0)
    assert (
        swap_finding(alike)
        == "Each exchange costs the same: a with b, a with c and b with c +1.000 nats per token."
    )
    tied = swap_finding(exchanged([[0, 1, 1], [1, 0, 3], [1, 3, 0]]))
    assert tied.startswith(
        "The cheapest exchanges are a with b and a with c (+1.000 nats per token). Inter"
    ), tied
    swap_figures(exchanged([[0.0]]).assign_coords(distance=[1]))


def patched(effect, kind="position", target=-1.0, source=2.0):
    grid = np.array(effect, dtype=float)
    coords = {**blocks(len(grid)), kind: np.arange(grid.shape[1])}
    if kind == "position":
        coords["token"] = ("position", [" x", " y", " z"][: grid.shape[1]])
    attrs = {
        "target_value": target,
        "source_value": source,
        "attribution_correlation": NAN,
        "pairs": 1,
        "window": 1,
    }
    attrs |= {"site": "resid_pre", "direction": "denoise"}
    estimate = np.full(grid.shape, NAN)
    return data(coords, attrs, effect=(("block", kind), grid), attribution=(("block", kind), estimate))


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (patched([[NAN, NAN]] * 2, target=1, source=1), "+1.0 in both runs. The two runs do not differ in it: there "
            "is no difference that "
         "an activation could carry."),
        (patched([[1.0, 0.0], [0.2, 0.3]]), "At ' x' the patch works (effect above one half) up to block a and no "
            "more from block b on."),
        (patched([[0.3, 0.1], [0.0, 0.9]]), "In front of the first block no single token carries half of the difference."),
        (patched([[1.0], [1.0]]), "The effect stays with ' x'."),
        (patched([[1.0, 0.0]]), "the activations come from."),
        (patched([[0.7]], "head"), "Head 0 of block a carries 0.70 of the difference."),
        (patched([[0.0, -0.4]], "head"), "No head carries any of the difference alone."),
        (patched([[0.2, 0.4]], "neuron"), "N1@La carries most, 0.400 of the difference."),
    ],
)  # fmt: skip
def test_patching(dataset, said):
    assert patch_finding(dataset).endswith(said)
    patch_figures(dataset)


def test_changes():
    def changed(**everywhere):
        return data({"change": list(everywhere)}, everywhere=("change", list(everywhere.values())))

    assert replacement_finding(changed()) == ""
    assert replacement_finding(changed(relu=NAN)) == "No change in every block at once gives a finite loss."
    assert (
        replacement_finding(changed(relu=0.5)) == "In every block at once, relu costs +0.500 nats per token."
    )
    assert (
        replacement_finding(changed(a=0.5, b=0.5))
        == "In every block at once, a and b cost each +0.500 nats per token."
    )
    assert (
        replacement_finding(changed(own=0.0, silu=0.0))
        == "Own and silu in every block at once change nothing."
    )


def rounded(increase, recipes, sensitivity=None):
    n = len(increase)
    return data(
        {**blocks(n), "bits": [2], "recipe": list("xyz"[: len(recipes)])},
        {"clean_bytes": 100.0, "clean_loss": 1.0, "saved": ""},
        increase=(("block", "bits"), np.array(increase, dtype=float)[:, None]),
        sensitivity=("block", sensitivity or increase),
        recipe_loss=("recipe", recipes),
        recipe_bytes=("recipe", [50.0] * len(recipes)),
    )


def test_rounding():
    said = quantize_finding(rounded([0.5], [1.2, 1.2]))
    assert (
        said
        == "At 2 bits, block a alone costs +0.50 nats per token; at 3 bits, block a alone costs +0.500 nats"
        " per token. With a mean of 4 bits everywhere (50.0% of the blocks' bytes as loaded), x and y lose"
        " alike (1.200 nats per token, unrounded 1.000)."
    )
    said = quantize_finding(rounded([NAN, NAN], [NAN]))
    assert said.endswith(
        "no block alone leaves a finite loss. No recipe with a mean of 4 bits leaves a finite loss."
    )
    assert "nan" not in quantize_finding(rounded([NAN, 0.5, 0.7], [NAN, 1.5, 1.2]))
    tools = data(
        {"quantizer": ["none", "bad", "slow"]},
        {"without": ""},
        bytes=("quantizer", [100.0, 25.0, 50.0]),
        increase=("quantizer", [0.0, NAN, -0.0001]),
        writing=("quantizer", [0.0, 1.0, 1.0]),
    )
    assert (
        quantizers_finding(tools)
        == "bad leaves no finite loss; slow +0.000 nats per token at 50% of the bytes."
    )


def ablated(change, **attrs):
    values = np.array(change, dtype=float)
    known = {
        "prompt": "p",
        "target": "t",
        "clean_probability": 0.5,
        "large": 0,
        "threshold": 0.1,
        "flips": 0,
        **attrs,
    }
    dims = ("block", "neuron")
    return data(
        blocks(len(values)), known, change=(dims, values), top1_changed=(dims, np.zeros(values.shape))
    )


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (ablated([[0.0, 0.0001]]), "No neuron alone changes it by 0.001."),
        (ablated([[NAN, NAN]]), "No neuron could be measured."),
        (ablated([[0.01, -0.02]]), "Of 2 neurons, none changes it by more than 0.1 and none makes another token the "
            "most likely; N1@La "
         "changes it most, by -0.020."),
        (ablated([[0.2, 0.2]], large=2, flips=1), "Of 2 neurons, 2 change it by more than 0.1 and 1 makes another "
            "token the most likely."),
    ],
)  # fmt: skip
def test_neurons(dataset, said):
    assert ablate_finding(dataset) == f"“p” goes on with 't' at a probability of 0.500. {said}"
    ablate_figures(dataset)


def test_pushing():
    def pushed(push, kinds, on=-1.0):
        coords = {"component": [f"c{i}" for i in range(len(kinds))], "target": [" yes"]}
        places = {
            "component_block": ("component", ["a"] * len(kinds)),
            "head": ("component", np.arange(len(kinds))),
        }
        return data(
            coords, {"question": "q", "baseline": "b"},
            push=(("component", "target"), np.array(push, dtype=float)[:, None]),
            kind=("component", np.array(kinds, dtype=str)), on_question=("target", [on]), **places,
        )  # fmt: skip

    for dataset in (pushed([0.0, 0.001], ["mlp", "head"]), pushed([NAN], ["mlp"]), pushed([], [])):
        assert "no part pushes by a hundredth of a nat. Log" in push_finding(dataset)
        push_figures(dataset)
    assert push_finding(pushed([NAN, 0.5], ["mlp", "mlp"], on=NAN)).endswith("in nats: MLP layers c1 +0.50.")

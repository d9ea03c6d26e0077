"""What figures show where, from datasets of a few numbers: values, places, and what is read where the pointer
is."""

from __future__ import annotations

import numpy as np
import xarray as xr

from regraft.reporting.figures.component_figures import ablate_figures
from regraft.reporting.figures.intervene_figures import (
    knockout_figures,
    replacement_figures,
    swap_figures,
    swap_finding,
)
from regraft.reporting.figures.observe_figures import (
    by_type,
    completion_figures,
    crystallization,
    geometry_figures,
    hurt_rates,
)
from regraft.reporting.figures.route_figures import surgery_figures
from regraft.reporting.figures.text_figures import neuron_figures

NAN = float("nan")


def test_neurons_of_the_block_with_the_largest_change_on_a_square():
    data = xr.Dataset(
        {
            "change": (("block", "neuron"), [[0.1, -0.2, 0.0, 0.1, NAN], [0.3, 0.0, -0.6, 0.1, 0.2]]),
            "top1_changed": (("block", "neuron"), [[1, 0, 0, 0, 0], [0, 0, 1, 0, 1]]),
        },
        {"block": ["0", "1"]},
        {"target": "t", "target_id": 3},
    )
    (caption, square), (several, whole) = ablate_figures(data)
    assert caption == "Block 1: change of the probability of 't' (×: another answer)"
    shown = np.array(square.data[0].z, dtype=float)
    assert np.allclose(shown, [[0.3, 0.0, 0.6], [0.1, 0.2, NAN]], equal_nan=True)
    pointed = np.array(square.data[0].customdata, dtype=float)
    assert pointed[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.allclose(pointed[..., 1], [[0.3, 0.0, -0.6], [0.1, 0.2, NAN]], equal_nan=True)
    crosses = square.data[1]
    assert list(zip(map(int, crosses.x), map(int, crosses.y), strict=True)) == [(2, 0), (1, 3)]
    assert several == "Largest change by any one neuron of a block"
    assert list(whole.data[0].x) == ["0", "1"]
    assert np.allclose(whole.data[0].y, [0.2, 0.6])
    assert len(ablate_figures(data.isel(block=[1]))) == 1
    over = data.assign_attrs(prompts=1200, target_id=-1)
    assert (
        ablate_figures(over)[0][0]
        == "Block 1: mean change of the probability of the answers over 1,200 prompts (×: another answer in"
        " any of them)"
    )


def test_neurons_in_texts_as_shares_of_their_largest_activation():
    data = xr.Dataset(
        {
            "consistent": (("feature", "block"), [[1, 2, 3], [4, 5, 6]]),
            "activation": (("neuron", "text"), [[1.0, -4.0], [0.5, 0.25], [0.0, 0.0]]),
        },
        {
            "feature": ["a", "b"],
            "block": ["0", "1", "2"],
            "neuron": ["0.5", "1.2", "2.2"],
            "neuron_feature": ("neuron", ["a", "b", "b"]),
            "text_feature": ("text", ["a", "b"]),
            "prompt": ("text", ["one", "two"]),
            "place": [],
        },
    )
    (_, counts), (_, each) = neuron_figures(data)
    assert np.array(counts.data[0].z).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert list(counts.data[0].x) == ["0", "1", "2"]
    assert list(counts.data[0].y) == ["a", "b"]
    assert np.array(each.data[0].z).tolist() == [[0.25, -1.0], [1.0, 0.5], [0.0, 0.0]]
    assert list(each.data[0].x) == ["0: a", "1: b"]
    assert list(each.data[0].y) == ["0.5 (a)", "1.2 (b)", "2.2 (b)"]
    pointed = np.array(each.data[0].customdata)
    assert pointed[..., 0].tolist() == [["one", "two"]] * 3
    assert pointed[..., 1].tolist() == [["1.0", "-4.0"], ["0.5", "0.25"], ["0.0", "0.0"]]
    assert len(neuron_figures(data.isel(neuron=[]))) == 1


def test_a_block_is_the_dearest_only_where_moving_it_costs_more_than_another():
    def said(*mean):
        cost = np.array([[0.0, 0.5, 0.9], [0.5, 0.0, 0.1], [0.9, 0.1, 0.0]])
        variables = {"cost": (("block", "other"), cost), "mean_cost": ("block", list(mean))}
        attrs = {"tolerance": 0.01, "interchangeable_pairs": "none", "pairs": 3}
        return swap_finding(xr.Dataset(variables, {"block": ["a", "b", "c"]}, attrs))

    assert "block b is the dearest to move (+0.70 on average)" in said(0.2, 0.7, -0.1)
    assert "block b is the dearest" in said(NAN, 0.7, -0.1)
    for mean in ((-0.2, 0.0, -0.1), (0.7, 0.7, 0.1), (NAN, 0.7, NAN), (-0.1, -0.2, -0.3)):
        assert "dearest" not in said(*mean)


def bars_of(figure, trace=0):
    return list(figure.data[trace].x), [float(value) for value in figure.data[trace].y]


def shown(figure):
    one = next(trace for trace in figure.data if trace.type == "heatmap")
    return np.array(one.z, dtype=float).tolist(), list(one.x), list(one.y)


def test_bars_stand_over_the_blocks_that_they_are_of():
    blocks = {"block": ["0", "1", "2"]}
    lens = xr.Dataset({"hurt_rate": ("block", [0.1, 0.2, 0.3])}, blocks)
    assert bars_of(hurt_rates(lens)) == (["0", "1", "2"], [0.1, 0.2, 0.3])
    said = xr.Dataset({"completion_tokens": ("prompt", [4, 7])}, {"prompt": ["p", "q"]})
    assert bars_of(completion_figures(said)[0][1]) == (["p", "q"], [4, 7])
    single = xr.Dataset(
        {"loss": ("block", [1.0, 2.0, 3.0]), "ratio": ("block", [2.0, 4.0, 6.0])}, blocks, {"clean_loss": 0.5}
    )
    assert bars_of(knockout_figures(single)[0][1]) == (["0", "1", "2"], [2.0, 4.0, 6.0])
    low = knockout_figures(single.assign_attrs(clean_loss=0.0))
    assert bars_of(low[0][1]) == (["0", "1", "2"], [1.0, 2.0, 3.0])
    for name, values in (("loss", [1.0, 2.0]), ("distance", [0.0, 0.5])):
        changed = xr.Dataset(
            {name: ("state", values)}, {"state": ["before", "after"]}, {"change": "without block 1"}
        )
        ((caption, figure),) = surgery_figures(changed)
        assert caption.endswith(", without block 1")
        assert bars_of(figure) == (["before", "after"], values)


def test_depths_and_kinds_at_which_tokens_settle():
    data = xr.Dataset(
        {
            "crystallization": ("token", [0.0, 2.0, 2.0, NAN]),
            "first_top1": ("token", [1.0, 1.0, 1.0, 2.0]),
            "crystallization_by_type": ("by_type", [1.5, 2.0]),
            "first_top1_by_type": ("by_type", [0.5, 1.0]),
            "tokens_by_type": ("by_type", [3, 1]),
        },
        {"depth": [0, 1, 2], "by_type": ["a", "b"]},
    )
    figure = crystallization(data)
    assert [bars_of(figure, i) for i in (0, 1)] == [
        (["0", "1", "2"], [0.25, 0, 0.5]),
        (["0", "1", "2"], [0, 0.75, 0.25]),
    ]
    figure = by_type(data)
    assert [bars_of(figure, i) for i in (0, 1)] == [
        (["a (3)", "b (1)"], [1.5, 2.0]),
        (["a (3)", "b (1)"], [0.5, 1.0]),
    ]
    depths = {"depth": [0, 1], "other": [0, 1], "block": ["0"]}
    names = ("participation_ratio", "mean_norm", "cosine_raw", "cosine_centred", "persistence")
    cloud = {name: ("depth", [number + 0.25, number + 0.5]) for number, name in enumerate(names)}
    cka = (("depth", "other"), [[1.0, 0.2], [0.2, 1.0]])
    drawn = geometry_figures(xr.Dataset({**cloud, "update_size": ("block", [0.7]), "cka": cka}, depths))
    curves = [[(list(trace.x), list(trace.y)) for trace in figure.data] for _, figure in drawn[:3]]
    wanted = [([0, 1], [number + 0.25, number + 0.5]) for number in range(5)]
    assert curves == [wanted[:1], wanted[1:2], wanted[2:]]
    assert bars_of(drawn[3][1]) == (["0"], [0.7])
    assert shown(drawn[4][1]) == ([[1.0, 0.2], [0.2, 1.0]], ["0", "1"], ["0", "1"])


def test_pairs_of_blocks_and_blocks_removed_one_by_one():
    pairs = xr.Dataset(
        {
            "increase": (("block", "other"), [[1.0, 2.0], [3.0, 4.0]]),
            "synergy": (("block", "other"), [[0.0, 0.5], [-0.5, 0.0]]),
        },
        {"block": ["0", "1"], "other": ["a", "b"]},
    )
    (_, loss), (_, synergy) = knockout_figures(pairs)
    assert shown(loss) == ([[1.0, 2.0], [3.0, 4.0]], ["a", "b"], ["0", "1"])
    assert shown(synergy) == ([[0.0, 0.5], [-0.5, 0.0]], ["a", "b"], ["0", "1"])
    assert synergy.data[0].zmid == 0
    steps = xr.Dataset(
        {"ratio": ("step", [1.5, 3.0]), "loss": ("step", [0.3, 0.6]), "removed": ("step", ["2", "0"])},
        {"step": [1, 2]},
        {"clean_loss": 0.2},
    )
    for clean, start, rest in ((0.2, 1.0, [1.5, 3.0]), (0.0, 0.0, [0.3, 0.6])):
        ((_, figure),) = knockout_figures(steps.assign_attrs(clean_loss=clean))
        assert bars_of(figure) == ([0, 1, 2], [start, *rest])
        assert list(figure.data[0].text) == ["whole model", "- 2", "- 0"]
    change = xr.Dataset(
        {"increase": (("change", "block"), [[0.1, 10.0, 0.0]]), "everywhere": ("change", [2.5])},
        {"block": ["0", "1", "2"], "change": ["relu"]},
    )
    (_, each), (_, whole) = replacement_figures(change)
    assert shown(each) == ([[-1.0, 1.0, -4.0]], ["0", "1", "2"], ["relu"])
    assert np.array(each.data[0].customdata).tolist() == [[0.1, 10.0, 0.0]]
    assert bars_of(whole) == (["relu"], [2.5])


def test_a_matrix_of_exchanges_in_the_order_of_its_tree():
    cost = np.array([[0.0, 5.0, 1.0], [5.0, 0.0, 4.0], [1.0, 4.0, 0.0]])
    data = xr.Dataset(
        {
            "cost": (("block", "other"), cost),
            "leaf_order": ("leaf", [1, 0, 2]),
            "linkage": (("merge", "field"), [[0.0, 2.0, 1.0, 2.0], [1.0, 3.0, 4.5, 3.0]]),
            "distance_cost": ("distance", [4.5, 1.0]),
        },
        {"block": ["a", "b", "c"], "distance": [1, 2]},
    )
    (_, whole), (_, distance) = swap_figures(data)
    assert bars_of(distance) == (["1", "2"], [4.5, 1.0])
    assert shown(whole) == ([[0.0, 5.0, 4.0], [5.0, 0.0, 1.0], [4.0, 1.0, 0.0]], [0, 1, 2], [0, 1, 2])
    one = next(trace for trace in whole.data if trace.type == "heatmap")
    assert list(one.customdata[0]) == ["b and b", "b and a", "b and c"]
    branches = [(list(trace.x), list(trace.y)) for trace in whole.data if trace.type == "scatter"]
    assert branches == [([1, 1, 2, 2], [0, 1, 1, 0]), ([0, 0, 1.5, 1.5], [0, 4.5, 4.5, 1])]
    assert list(whole.layout.xaxis2.ticktext) == list(whole.layout.yaxis2.ticktext) == ["b", "a", "c"]

"""Charts of the other experiments: which numbers stand where, from datasets of a few numbers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from regraft.reporting.figures.bit_figures import quantize_figures, quantizers_figures
from regraft.reporting.figures.block_figures import correlation_finding, linearity_figures, spectra_figures
from regraft.reporting.figures.component_figures import push_figures, ranked
from regraft.reporting.figures.graft_figures import certificate_figures
from regraft.reporting.figures.patch_figures import patch_figures
from regraft.reporting.figures.rebuild_figures import rebuild_figures
from regraft.reporting.figures.route_figures import noise_figures, repeat_figures, shuffle_figures
from regraft.reporting.figures.text_figures import contexts, trajectory_figures
from regraft.reporting.figures.token_figures import tokenizer_figures, transplant_figures

NAN = float("nan")


def curves(figure):
    """Name, places and heights of every line or group of bars, from left to right or from top to bottom."""
    return {
        str(trace.name): (
            (list(trace.y), list(trace.x)) if trace.orientation == "h" else (list(trace.x), list(trace.y))
        )
        for trace in figure.data
        if trace.type != "heatmap" and trace.name is not None
    }


def only(figure):
    (trace,) = [trace for trace in figure.data if trace.type != "heatmap"]
    return (list(trace.y), list(trace.x)) if trace.orientation == "h" else (list(trace.x), list(trace.y))


def field(figure):
    (trace,) = [trace for trace in figure.data if trace.type == "heatmap"]
    return np.array(trace.z, dtype=float).round(9).tolist(), list(trace.x), list(trace.y)


def test_repetitions_noise_and_orders():
    data = xr.Dataset(
        {
            "increase": (("block", "times"), [[0.1, 10.0], [0.0, 1.0]]),
            "loss": (("block", "times"), [[1.1, 11.0], [1.0, 2.0]]),
            "update_length": (("block", "times"), [[0.5, 0.25], [2.0, 4.0]]),
        },
        {"block": ["0", "1"], "times": [2, 3]},
    )
    (_, loss), (_, length) = repeat_figures(data)
    assert field(loss) == ([[-1, 1], [-4, 0]], ["2", "3"], ["0", "1"])
    assert np.array(loss.data[0].customdata).tolist() == data.increase.values.tolist()
    assert curves(length) == {"block 0": ([2, 3], [0.5, 0.25]), "block 1": ([2, 3], [2.0, 4.0])}
    grid = ("block", "level")
    data = xr.Dataset(
        {"loss": (grid, [[1.0, 2.0], [3.0, 4.0]]), "ratio": (grid, [[0.1, 0.2], [0.3, 0.4]])},
        {"block": ["0", "1"], "level": [0.1, 0.3]}, {"clean_loss": 0.5},
    )  # fmt: skip
    (_, loss), (_, ratio) = noise_figures(data)
    assert (loss.layout.shapes[0].y0, loss.layout.legend.title.text) == (0.5, "noise / stream")
    assert curves(loss) == {"0.1": (["0", "1"], [1.0, 3.0]), "0.3": (["0", "1"], [2.0, 4.0])}
    assert curves(ratio) == {"0.1": (["0", "1"], [0.1, 0.3]), "0.3": (["0", "1"], [0.2, 0.4])}
    data = xr.Dataset(
        {
            "tau": ("method", [1.0, -0.5]),
            "loss": ("method", [2.0, 3.0]),
            "seconds": ("method", [0.5, 4.0]),
            "in_place": ("method", [1.0, 0.0]),
            "recovered": (("method", "place"), [["0", "2", "10"], ["10", "0", "2"]]),
            "shuffled": ("place", ["10", "0", "2"]),
        },
        {"method": ["a", "b"], "place": [0, 1, 2]},
    )
    (_, tau), (_, found) = shuffle_figures(data)
    assert only(tau) == (["a", "b"], [1.0, -0.5])
    assert list(tau.data[0].text) == ["1.000, loss 2.00, 0.5 s", "-0.500, loss 3.00, 4.0 s"]
    assert len(set(tau.data[0].marker.color)) == 2
    assert list(tau.layout.xaxis.range) == [-0.5, 1.0]
    assert tau.layout.height == found.layout.height == 240, "no lower than a legend needs"
    assert field(found) == ([[0, 1, 2], [2, 0, 1]], ["0", "1", "2"], ["a", "b"])


def test_bits_of_blocks_matrices_and_recipes():
    data = xr.Dataset(
        {
            "increase": (("block", "bits"), [[0.1, 10.0], [0.0, 1.0], [0.01, 100.0]]),
            "matrix_increase": (("role", "block"), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
            "whole_bytes": ("bits", [4e6, 2e6]),
            "whole_loss": ("bits", [1.5, 2.5]),
            "recipe_bytes": ("recipe", [3e6, 3e6]),
            "recipe_loss": ("recipe", [2.0, 1.75]),
            "recipe_bits": (("recipe", "block"), [[4, 4, 4], [6, 3, 3]]),
        },
        {"block": ["0", "1", "2"], "bits": [4, 2], "role": ["q", "k"], "recipe": ["even", "ends"]},
        {"best_recipe": "ends", "clean_loss": 1.25},
    )
    (_, alone), (_, matrices), (_, recipes), (_, curve) = quantize_figures(data)
    assert field(alone) == ([[-1, -4, -2], [1, 0, 2]], ["0", "1", "2"], ["4 bits", "2 bits"])
    assert np.array(alone.data[0].customdata).tolist() == data.increase.values.T.tolist()
    assert field(matrices) == ([[1, 2, 3], [4, 5, 6]], ["0", "1", "2"], ["q", "k"])
    bar = recipes.data[0]
    assert (list(bar.y), list(bar.x), list(bar.text)) == (["ends", "even"], [1.75, 2.0], ["1.750", "2.000"])
    assert list(bar.hovertext) == ["6 3 3", "4 4 4"]
    assert bar.marker.color[0] != bar.marker.color[1]
    assert recipes.layout.shapes[0].x0 == 1.25
    assert curves(curve) == {
        "all blocks alike": ([4.0, 2.0], [1.5, 2.5]),
        "recipes": ([3.0, 3.0], [2.0, 1.75]),
    }
    assert list(curve.data[1].text) == ["even", "ends"]


def test_bytes_and_speed_of_libraries():
    data = xr.Dataset(
        {
            "bytes": ("quantizer", [8e6, 1.01e6, 1e6]),
            "loss": ("quantizer", [1.0, 1.5, 1.5]),
            "reading": ("quantizer", [100.0, NAN, 150.0]),
            "writing": ("quantizer", [10.0, NAN, 5.0]),
        },
        {"quantizer": ["as loaded", "torchao int8", "NF4"]},
    )
    (_, plane), (_, speed) = quantizers_figures(data)
    assert only(plane) == ([8.0, 1.01, 1.0], [1.0, 1.5, 1.5])
    assert list(plane.data[0].text) == ["as loaded", "torchao int8", "NF4"]
    assert list(plane.data[0].textposition) == ["top center", "top center", "bottom center"], (
        "two lie together"
    )
    assert len(plane.data[0].marker.color) == 3
    assert curves(speed) == {"reading": (["NF4"], [1.5]), "writing": (["NF4"], [0.5])}
    assert [list(trace.customdata) for trace in speed.data] == [[150.0], [5.0]]
    assert speed.layout.height == 240


def test_the_strongest_correlation_of_two_experiments_that_is_significant():
    names = ["position in the model", "a: x", "a: y", "b: z"]

    def said(rho, p, significant=3):
        rho, p = (np.array(values) + np.array(values).T for values in (rho, p))
        found = {"rho": (("quantity", "other"), rho), "p_corrected": (("quantity", "other"), p)}
        return correlation_finding(
            xr.Dataset(found, {"quantity": names}, {"level": 0.05, "pairs": 6, "significant": significant})
        )

    def below(*rows):
        return [[*row, *[0.0] * (4 - len(row))] for row in rows]

    rho = below([], [0.9], [0.8, 0.95], [0.99, 0.3, -0.6])
    sure = below([], [0.01], [0.01, 0.01], [0.01, 0.01, 0.01])
    begun = "3 of 6 pairs of quantities go together beyond chance (p below 5% after correction)"
    assert said(rho, sure) == f"{begun}. Between two experiments the strongest is b: z with a: y: -0.60."
    assert said(rho, below([], [0.01], [0.01, 0.01], [0.01, 0.01, 0.05])).endswith("b: z with a: x: +0.30.")
    none = below([], [0.01], [0.01, 0.01], [0.01, 0.05, 0.06])
    assert said(rho, none) == f"{begun}, none of them between two different experiments."
    assert said(rho, none, 0) == begun.replace("3", "0", 1) + "."


def test_spectra_and_linear_maps():
    data = xr.Dataset(
        {
            "rank_ratio": (("role", "block"), [[0.5, 0.75], [0.25, 1.0]]),
            "matrix_block": ("matrix", ["0", "0", "1", "1"]),
            "matrix_role": ("matrix", ["q", "v", "q", "v"]),
            "singular_values": (
                ("matrix", "place"),
                [[4.0, 2.0, NAN], [3.0, 1.0, NAN], [8.0, 4.0, 2.0], [2.0, 1.0, NAN]],
            ),
            "energy_8": ("matrix", [0.1, 0.2, 0.3, 0.4]),
            "power_law": ("matrix", [1.0, 2.0, 3.0, 4.0]),
        },
        {"block": ["0", "1"], "role": ["q", "v"]},
    )
    (_, ranks), (caption, values), (_, energy), (_, law) = spectra_figures(data)
    assert field(ranks) == ([[0.5, 0.75], [0.25, 1.0]], ["0", "1"], ["q", "v"])
    assert "block 1" in caption
    assert curves(values)["q"] == ([1, 2, 3], [1.0, 0.5, 0.25])
    assert curves(values)["v"][1][:2] == [1.0, 0.5]
    assert curves(energy) == {"q": (["0", "1"], [0.1, 0.3]), "v": (["0", "1"], [0.2, 0.4])}
    assert curves(law) == {"q": (["0", "1"], [1.0, 3.0]), "v": (["0", "1"], [2.0, 4.0])}
    each = {name: (("part", "block"), [[number + 0.0, number + 1.0, number + 2.0], [NAN] * 3]) for number,
    name in
            enumerate(("gap", "spectral_norm", "consistency"))}  # fmt: skip
    steps = [[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[NAN] * 2] * 3]
    data = xr.Dataset(
        {
            **each,
            "gap_by_step": (("part", "block", "step"), steps),
            "recovered": ("block", [0.5, NAN, NAN]),
            "knockout_loss": ("block", [5.0, 6.0, 7.0]),
            "linear_loss": ("block", [3.0, 4.0, 5.0]),
        },
        {"block": ["0", "1", "2"], "part": ["block", "mlp"], "step": [0.01, 0.1]},
        {"clean_loss": 2.0},
    )
    drawn = [figure for _, figure in linearity_figures(data)]
    blocks = ["0", "1", "2"]
    assert [only(drawn[i]) for i in (0, 2, 3)] == [(blocks, [n, n + 1.0, n + 2.0]) for n in (0.0, 1.0, 2.0)]
    assert curves(drawn[1]) == {f"block {b}": ([0.01, 0.1], steps[0][b]) for b in range(3)}
    assert curves(drawn[4]) == {
        "skipped": (blocks, [5.0, 6.0, 7.0]), "linear map": (blocks, [3.0, 4.0, 5.0]),
        "whole model": (blocks, [2.0] * 3),
    }  # fmt: skip
    assert len(linearity_figures(data.assign(recovered=("block", [NAN] * 3)))) == 4


def test_pushes_of_layers_and_heads():
    data = xr.Dataset(
        {"push": (("component", "target"), [[1.0, 0.25], [-2.0, 1.0], [0.5, 2.0], [NAN, NAN]])},
        {
            "component": ["0.mlp", "0.h1", "1.h0", "1.mlp"],
            "kind": ("component", ["mlp", "head", "head", "mlp"]),
            "component_block": ("component", ["0", "0", "1", "1"]),
            "head": ("component", [-1, 1, 0, -1]),
            "target": ["a", "b"],
        },
    )
    (_, layers), (caption, heads) = push_figures(data)
    assert curves(layers)["'a'"][1][0] == 1.0
    assert curves(layers)["'b'"] == (["0.mlp", "1.mlp"], pytest.approx([0.25, NAN], nan_ok=True))
    assert caption == "Push of every head towards 'a' rather than 'b'"
    assert np.allclose(np.array(heads.data[0].z, dtype=float), [[NAN, -3.0], [-1.5, NAN]], equal_nan=True)
    assert (list(heads.data[0].x), list(heads.data[0].y)) == (["0", "1"], ["0", "1"])
    assert ranked(data, "head", 5) == [("0.h1", -3.0), ("1.h0", -1.5)]
    assert ranked(data, "mlp", 5) == [("0.mlp", 0.75)]
    alone = push_figures(data.isel(target=[0]).assign_attrs(pairs=1200))
    assert alone[1][0] == "Mean push of every head towards 'a', over 1,200 pairs of a question and a baseline"
    assert field(alone[1][1].update_traces(z=np.nan_to_num(alone[1][1].data[0].z)))[0] == [[0, -2], [0.5, 0]]


def test_effects_of_patching():
    data = xr.Dataset(
        {
            "effect": (("block", "position"), [[0.5, -3.0], [NAN, 1.0]]),
            "attribution": (("block", "position"), [[0.25, -1.0], [NAN, 4.0]]),
        },
        {"block": ["0", "1"], "position": [3, 4], "token": ("position", [" a", " "])},
        {"pairs": 2, "window": 3, "site": "resid_pre", "direction": "denoise"},
    )
    (caption, cells), (_, both) = patch_figures(data)
    assert caption == "Effect of patching resid_pre, denoise direction, mean over 2 pairs, 3 blocks at once"
    one = cells.data[0]
    assert (list(one.x), list(one.y), one.zmin, one.zmax) == (["a<br>3", "·<br>4"], ["0", "1"], -3.0, 3.0)
    line, points = both.data
    assert list(line.x) == list(line.y) == [-3.0, 4.0]
    assert list(points.x)[:2] == [0.25, -1.0]
    assert list(points.y)[:2] == [0.5, -3.0]
    assert list(points.text) == [
        "block 0, position 3",
        "block 0, position 4",
        "block 1, position 3",
        "block 1, position 4",
    ]
    plain = data.assign(attribution=(("block", "position"), np.full((2, 2), NAN))).assign_attrs(
        pairs=1, window=1
    )
    assert [caption for caption, _ in patch_figures(plain)] == [
        "Effect of patching resid_pre, denoise direction"
    ]


def test_stages_of_a_rebuilt_model_in_the_grid_of_blocks():
    stages = ["embed", "blocks.0.q", "blocks.0.k", "blocks.1.q", "logits"]
    data = xr.Dataset(
        {"decimals": ("stage", [5, 6, 7, 8, 9]), "largest": ("stage", [0.5, 0.4, 0.3, 0.2, 0.1])},
        {"stage": stages},
    )
    ((_, figure),) = rebuild_figures(data)
    one = figure.data[0]
    found = {
        (str(kind), str(block)): (one.z[i][j], one.customdata[i][j])
        for i, kind in enumerate(one.y)
        for j, block in enumerate(one.x)
        if np.isfinite(one.z[i][j])
    }
    assert sorted(found.values()) == [(5, 0.5), (6, 0.4), (7, 0.3), (8, 0.2), (9, 0.1)]
    assert [pair for (kind, _), pair in found.items() if kind == "q"] == [(6, 0.4), (8, 0.2)]
    assert len({block for kind, block in found if kind in ("embed", "logits")}) == 1


def test_trajectories_and_contexts():
    dims = ("relation", "place", "depth")
    means = {
        f"{name}_{part}": (dims, np.arange(8.0).reshape(2, 2, 2) + 10 * i + 100 * j)
        for i, name in enumerate(("cosine", "distance", "kl"))
        for j, part in enumerate(("mean", "low", "high"))
    }
    raw = {name: (dims, np.zeros((2, 2, 2))) for name in ("cosine", "distance")}
    data = xr.Dataset(
        {
            **means,
            **raw,
            "kl": (dims, np.full((2, 2, 2), NAN)),
            "cka": (dims, np.arange(8.0).reshape(2, 2, 2) / 8),
        },
        {"relation": ["synonym", "antonym"], "place": ["pivot", "completion"], "depth": [0, 1]},
    )
    drawn = trajectory_figures(data)
    assert len(drawn) == 4, "nothing is drawn of what is not known"
    for (_, figure), (add, place) in zip(drawn, ((0, 0), (0, 1), (10, 0)), strict=False):
        assert curves(figure) == {
            "synonym": ([0, 1], [add + 2 * place, add + 2 * place + 1]),
            "antonym": ([0, 1], [add + 4 + 2 * place, add + 5 + 2 * place]),
        }
        lows = [list(trace.y) for trace in figure.data if trace.name is None]
        assert lows[0] == [100 + add + 2 * place, 101 + add + 2 * place]
        assert lows[1] == [200 + add + 2 * place, 201 + add + 2 * place]
    assert curves(drawn[3][1]) == {"synonym": ([0, 1], [0.0, 0.125]), "antonym": ([0, 1], [0.5, 0.625])}
    places = xr.Dataset(
        {
            "context_activation": (("neuron", "context_place"), [[4.0, 1.0], [NAN, NAN]]),
            "context": (("neuron", "context_place"), [["a [b]", "c"], ["", ""]]),
        },
        {"neuron": ["0.5", "1.2"], "neuron_feature": ("neuron", ["x", "y"])},
    )
    figure = contexts(places)
    assert only(figure)[0] == ["0.5 (x)", "1.2 (y)"]
    assert only(figure)[1][0] == 4.0
    assert list(figure.data[0].text) == ["a [b]", ""]
    assert list(figure.data[0].hovertext) == ["a [b]<br>c", ""]
    assert list(figure.layout.xaxis.range) == [0.0, 4.0], "it ends where the data ends"


def test_grafts_and_vocabularies():
    costs = ("part_parameters", "parameters", "bytes", "forward", "forward_peak", "step", "step_peak")
    data = xr.Dataset(
        {
            "bits_per_byte_before": ("domain", [1.0, 2.0]),
            "bits_per_byte_after": ("domain", [1.5, 2.5]),
            "nmse": (("domain", "depth"), [[0.1, 0.2], [0.3, 0.4]]),
            "group_kl": ("group", [0.5, 0.6]),
            "group_excess": ("group", [0.7, 0.8]),
            **{name: ("state", [2.0, 3.0 + number]) for number, name in enumerate(costs)},
        },
        {"domain": ["x", "y"], "depth": [0, 1], "group": ["g", "h"], "state": ["before", "after"]},
    )
    (_, text), (_, depth), *others = certificate_figures(data)
    assert curves(text) == {"before": (["x", "y"], [1.0, 2.0]), "after": (["x", "y"], [1.5, 2.5])}
    assert curves(depth) == {"x": ([0, 1], [0.1, 0.2]), "y": ([0, 1], [0.3, 0.4])}
    found = [figure for _, figure in others]
    kinds = next(figure for figure in found if len(figure.data) == 2)
    assert curves(kinds) == {
        "behind such a token": (["g", "h"], [0.5, 0.6]),
        "such a token to come": (["g", "h"], [0.7, 0.8]),
    }
    ratios = only(next(figure for figure in found if len(figure.data) == 1))
    assert set(ratios[1]) <= {(3.0 + number) / 2 for number in range(7)}
    assert len(ratios[0]) == len(set(ratios[0])) == len(ratios[1])
    tokenizers = xr.Dataset(
        {
            "bytes_per_token": (("tokenizer", "domain"), [[3.0, 4.0], [5.0, 6.0]]),
            "tokens_per_word": (("tokenizer", "domain"), [[1.5, 1.25], [0.75, 0.5]]),
            "crossing": (("tokenizer", "domain"), [[0.0, 0.0], [0.25, 0.5]]),
            "text_by_words": (("tokenizer", "words"), [[0.25, 0.75], [0.5, 0.5]]),
            "vocabulary_by_words": (("tokenizer", "words"), [[0.1, 0.9], [0.2, 0.8]]),
            "overlap": (("tokenizer", "other"), [[1.0, 0.5], [0.25, 1.0]]),
            "crossing_count": (("tokenizer", "rank"), [[0, 0, 0], [9, 4, 0]]),
            "crossing_token": (("tokenizer", "rank"), [["", "", ""], ["a b", "c d", ""]]),
        },
        {"tokenizer": ["one", "two"], "domain": ["x", "y"], "other": ["1", "2"], "words": ["0", "1"]},
    )
    drawn = dict(tokenizer_figures(tokenizers))
    assert curves(drawn["Bytes of text for each token"]) == {
        "one": (["x", "y"], [3.0, 4.0]),
        "two": (["x", "y"], [5.0, 6.0]),
    }
    assert curves(drawn["Tokens for each word"])["two"] == (["x", "y"], [0.75, 0.5])
    crossing = "Share of the text's tokens that hold parts of two words"
    assert curves(drawn[crossing])["two"] == (["x", "y"], [0.25, 0.5])
    shared = drawn["Tokens that two vocabularies share, by their bytes"]
    assert field(shared) == ([[1.0, 0.5], [0.25, 1.0]], ["1", "2"], ["one", "two"])
    assert only(drawn["two: the most frequent tokens that cross words"]) == (["'a b'", "'c d'"], [9, 4])
    words_held = "Share of the text's tokens by the words that they hold"
    assert curves(drawn[words_held])["one"] == (["0", "1"], [0.25, 0.75])
    assert len(drawn) == 6
    apart = tokenizers.isel(tokenizer=[0], other=[0])
    kept = ["Bytes of text for each token", "Tokens for each word", words_held]
    assert list(dict(tokenizer_figures(apart))) == kept
    healed = xr.Dataset(
        {
            "bytes_per_token": (("state", "domain"), [[3.0, 4.0], [5.0, 6.0]]),
            "bits_per_byte": (("state", "domain"), [[1.0, 2.0], [1.25, 2.25]]),
            "bits_per_byte_unhealed": ("domain", [8.0, 9.0]),
            "healing_loss": ("step", [3.0, 2.0, 1.0]),
        },
        {"state": ["before", "after"], "domain": ["x", "y"]},
    )
    (_, bits), (_, length), (_, losses) = transplant_figures(healed)
    assert curves(bits) == {
        "before": (["x", "y"], [1.0, 2.0]), "after, not healed": (["x", "y"], [8.0, 9.0]),
        "after": (["x", "y"], [1.25, 2.25]),
    }  # fmt: skip
    assert curves(length) == {"before": (["x", "y"], [3.0, 4.0]), "after": (["x", "y"], [5.0, 6.0])}
    assert list(losses.data[0].y) == [3.0, 2.0, 1.0]
    moved = healed.drop_vars(["bits_per_byte", "bits_per_byte_unhealed", "healing_loss"])
    moved = moved.assign(distance=("domain", [0.1, 0.2]), apart=0.75)
    assert curves(transplant_figures(moved)[0][1]) == {
        "moved": (["x", "y"], [0.1, 0.2]), "two different texts": (["x", "y"], [0.75, 0.75]),
    }  # fmt: skip

"""Lists and zones of the interventions: pairs of blocks, exchanges, components that push, neurons, each by
hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster

from regraft.core.registry import experiments
from regraft.experiments.intervene.knockout_pairs import pair_quantities, removable_quantities
from regraft.experiments.intervene.listed_neurons import neurons_that_matter
from regraft.experiments.intervene.push_ranking import beyond_quantities, ranked_quantities
from regraft.experiments.intervene.swap import cluster
from regraft.experiments.intervene.swap_zones import flat_clusters, swap_quantities
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from small import opened

ABLATE, KNOCKOUT, PATCH, PUSH, SWAP = (
    partial(run_experiment, experiments()[name]) for name in ("ablate", "knockout", "patch", "push", "swap")
)
TEXTS = ["5 6 7 8", "9 10 11 12 13"]


def pairs_of(table):
    return [(i, j) for i in range(len(table)) for j in range(i + 1, len(table))]


def test_pairs_are_ranked_and_hubs_counted():
    synergy = np.full((4, 4), np.nan)
    for (i, j), value in zip(pairs_of(synergy), [3.0, 2.0, -1.0, 1.0, 0.5, -2.0], strict=True):
        synergy[i, j] = value
    found = pair_quantities(synergy, pairs_of(synergy), list("abcd"))
    assert found["superadditive_pair"][1] == ["a and b", "a and c", "b and c", "b and d"]
    assert found["subadditive_pair"][1] == ["c and d", "a and d"], "lowest first, and none that is above 0"
    counts = found["hub_count"][1]
    assert counts.tolist() == [3, 3, 2, 2]
    assert counts.sum() == 2 * 5, "a census: every pair has two blocks"


def test_hubs_of_a_model_are_a_census():
    data = KNOCKOUT(opened("llama"), mode="pairs", prompts=TEXTS, tokens=4)
    assert data.hub_count.values.sum() == 10
    upper = data.synergy.values[np.triu_indices(4, 1)]
    assert float(data.superadditive[0]) == pytest.approx(upper.max()) or upper.max() < 0
    assert len(drawing_of(data).folded(data)) >= 2


def test_removable_blocks():
    counts = removable_quantities(np.array([0.98, 1.08, 1.2, 1.04]), 2.0)["removable"][1]
    assert counts == [1, 2, 4, 4, 4], "a step that falls again does not count behind one that was too dear"
    stopped = removable_quantities(np.array([0.98, 1.08]), 1.3)["removable"][1]
    assert stopped[:3] == [1, 2, 2]
    assert np.isnan(stopped[3:]).all(), "beyond the limit nobody looked"
    data = KNOCKOUT(opened("llama"), mode="greedy", prompts=TEXTS, tokens=4)
    assert data.removable.values[-1] == data.sizes["step"]
    tight = KNOCKOUT(load("specimen:gpt2"), mode="greedy", count=2, tokens=4, limit=1.01)
    last = tight.sizes["step"]
    assert str(tight.stopped_block.values) in tight.block.values
    assert float(tight.stopped_loss) > 1.01 * tight.attrs["clean_loss"]
    assert str(tight.stopped_block.values) not in tight.removed.values[:last]


def test_maps_spread_and_ends_of_the_list():
    cost = np.array([[0.0, 1.0, 4.0], [1.0, 0.0, 1e-9], [4.0, 1e-9, 0.0]])
    found = swap_quantities(cost, cluster(cost, "ward"), list("abc"), pairs_of(cost), 0.5)
    assert found["cost_percent"][1][0, 1] == 200
    assert found["cost_log10"][1][0, 2] == pytest.approx(np.log10(4))
    assert found["cost_log10"][1][1, 2] == -6, "smaller costs are shown as 1e-6"
    assert found["cheapest_pair"][1] == ["b and c", "a and b", "a and c"]
    assert found["dearest_pair"][1] == ["a and c", "a and b", "b and c"]
    assert found["distance_cost_std"][1] == pytest.approx([0.5, 0.0])


def test_zones_are_wards_and_numbered_by_depth():
    rng = np.random.default_rng(0)
    places = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 9.0, 9.2, 20.0]) + rng.normal(0, 0.01, 8)
    cost = np.abs(places[:, None] - places[None])
    zones = flat_clusters(cluster(cost, "ward"), 8)
    assert zones[:, 1].tolist() == [1, 1, 1, 2, 2, 3, 3, 4]
    assert [len(set(column)) for column in zones.T] == [3, 4, 5, 6]
    assert all(np.bincount(column).sum() == 8 for column in zones.T), "a census: every block is in one zone"
    raw = fcluster(cluster(cost, "ward"), 4, criterion="maxclust")
    assert len(set(zip(raw, zones[:, 1], strict=True))) == 4
    rough = np.random.default_rng(1).random((9, 9))
    rough = rough + rough.T - np.diag(2 * np.diag(rough))
    one, other = (flat_clusters(cluster(rough, m), 9) for m in ("ward", "average"))
    assert not np.array_equal(one, other), "average linkage would give other zones"


def test_swaps_of_a_model():
    data = SWAP(opened("llama"), prompts=TEXTS, tokens=4)
    clean = data.attrs["clean_loss"]
    assert np.allclose(data.cost_percent, 100 * data.cost / clean)
    assert float(data.dearest_cost[0]) == pytest.approx(float(np.nanmax(data.cost)))
    diagonal = np.diagonal(data.cost.values, 1)
    assert float(data.distance_cost_std[0]) == pytest.approx(diagonal.std())
    assert len(drawing_of(data).folded(data)) == 6


def test_components_are_ranked_by_kind_and_target():
    push = np.array([[[1.0, -3.0], [0.5, 2.0], [-2.0, 0.1], [0.2, np.nan]]])
    found = ranked_quantities(["MLP0", "L0H0", "L0H1", "MLP1"], ["mlp", "head", "head", "mlp"], push)
    assert found["ranked"][1][0, 0, :2].tolist() == ["MLP0", "MLP1"]
    assert found["ranked"][1][0, 1, :3].tolist() == ["L0H1", "L0H0", ""]
    assert found["ranked"][1][1, 0, :2].tolist() == ["MLP0", ""], "what was not measured is in no list"
    assert found["ranked_push"][1][0, 1, :2].tolist() == [-2.0, 0.5]


def test_what_questions_have_in_common_and_what_one_has_beyond_another():
    one = np.array([[[3.0], [1.0], [-2.0]], [[2.0], [-1.0], [-5.0]]])
    found = ranked_quantities(["a", "b", "c"], ["mlp"] * 3, one)
    assert found["common_push"][1][:, 0].tolist() == [2.0, 0.0, -2.0]
    beyond = beyond_quantities(one, one - 0.5)
    assert np.allclose(beyond["push_beyond"][1], 0.5)


def test_what_a_head_looks_at_is_the_models_own_pattern():
    """Held to a model that was loaded with eager attention; the model itself is as it was before."""
    model = load("specimen:gpt2")
    before = model.hf.config._attn_implementation
    data = PUSH(model)
    assert model.hf.config._attn_implementation == before
    eager = load("specimen:gpt2", attention="eager")
    question = eager.record(data.attrs["question"])
    for row, name in enumerate(data.looking_head.values):
        block, head = str(name)[1:].split("H")
        pattern = question[f"{block}.pattern"][0, int(head), -1].detach().numpy()
        assert np.allclose(data.looks_at[row], pattern, atol=1e-5)
    assert np.allclose(data.looks_at.sum("question_position"), 1, atol=1e-5)
    strength = np.abs(data.push.values[data.kind.values == "head"]).max(1)
    assert len(data.looking_head) == 6
    first = str(data.component.values[data.kind.values == "head"][strength.argmax()])
    assert str(data.looking_head.values[0]) == first


def test_a_second_question_is_subtracted():
    model = load("specimen:gpt2")
    other = "Question: Is Berlin in Asia? Answer:"
    data, second = PUSH(model, minus=other), PUSH(model, question=other)
    assert np.allclose(data.minus_push, second.push, atol=1e-4)
    assert np.allclose(data.push_beyond, data.push - data.minus_push, atol=1e-6)
    assert data.attrs["minus"] == other
    same = PUSH(model, minus=data.attrs["question"])
    assert float(np.abs(same.push_beyond).max()) < 1e-4
    assert len(drawing_of(data).folded(data)) == 6


def test_the_answers_logit_alone():
    model = load("specimen:gpt2")
    data = PATCH(model, grid="block")
    clean, corrupt = (
        model.record(f"The time displayed is 9:00 {half}. Therefore, it is currently the")
        for half in ("am", "pm")
    )
    token = model.single_token(" morning")
    levels = [
        float(run.head(run.post(len(model.blocks) - 1)[:, -1:])[0, 0, token]) for run in (clean, corrupt)
    ]
    assert float(data.answer_source) == pytest.approx(levels[0], abs=1e-3)
    assert float(data.answer_target) == pytest.approx(levels[1], abs=1e-3)
    assert np.allclose(data.answer_logit, levels[0], atol=1e-2), "whole blocks carry everything over"
    assert np.allclose(data.answer_effect, 1, atol=1e-3)
    wrong = data.answer_logit.values - data.logit_difference.values
    assert np.ptp(wrong) < 1e-2
    assert np.isfinite(wrong).all()
    ((panel),) = drawing_of(data).folded(data)
    assert "levels of both runs" in panel.caption
    assert len(panel.figure.layout.shapes) == 2
    assert "answer's logit alone" in drawing_of(PATCH(model)).folded(PATCH(model))[0].caption


def test_the_position_that_is_read_alone_moves_from_one_level_to_the_other():
    """Whole streams at all positions give the source's level everywhere; at the last one alone the line shows
    at which block the information arrives there."""
    model = load()
    data = PATCH(model, grid="last", site="resid_post")
    line = data.answer_logit.values[:, 0]
    assert line[0] == pytest.approx(float(data.answer_target), abs=0.1)
    assert line[-1] == pytest.approx(float(data.answer_source), abs=0.1)
    effect = data.effect.values[:, 0]
    assert effect[5] < 0.2
    assert effect[6] > 0.8, "the time of day arrives behind block 6"
    by_position = PATCH(model, site="resid_post")
    assert np.allclose(effect, by_position.effect.values[:, -1], atol=1e-3)
    with pytest.raises(ValueError, match="reads its answer in the decoder"):
        PATCH(opened("t5"), grid="last", clean="5 6 7", corrupt="5 6 8", answer="9", wrong="10")
    with pytest.raises(ValueError, match="no pair of --map belongs to position"):
        PATCH(model, grid="last", map=["3:4"])


def test_a_decoder_beside_an_encoder_does_not_see_the_question():
    data = PUSH(opened("t5"), question="5 6 7", baseline="8 9", targets=["7"])
    assert "looks_at" not in data
    assert "does not see the question" in data.attrs["notes"]


def test_neurons_that_matter_are_listed_for_either_reason():
    change = np.array([[[0.02, -0.5, 0.3, 0.0]]])
    flips = np.array([[[1.0, 0.0, 1.0, 0.0]]])
    after = [[" a", " b", " c", " d"]]
    data, places = neurons_that_matter(["7"], change, flips, after, 0.1)
    assert data["listed_change"][1] == [-0.5, 0.3, 0.02]
    assert data["listed_top"][1].tolist() == [" b", " c", " a"]
    assert data["listed_condition"][1].tolist() == ["change", "both", "another token"]
    assert places["listed_neuron"][1].tolist() == [1, 2, 0]
    assert set(places["listed_block"][1]) == {"7"}
    nothing, _ = neurons_that_matter(["7"], change * 0, flips * 0, after, 0.1)
    assert nothing["listed_change"][1] == []


@torch.no_grad()
def test_the_token_after_is_the_models_own():
    model = opened("llama")
    with torch.no_grad():
        model.hf.lm_head.weight.mul_(30)
    model = load(model.hf, pack=False)
    data = ABLATE(model, prompt="5 6 7 8", layer="2", threshold=0.001)
    listed = data.sizes["listed"]
    assert listed > 3
    assert (np.diff(np.abs(data.listed_change.values)) <= 1e-9).all()
    ids = torch.tensor([[5, 6, 7, 8]])
    for row in range(min(listed, 6)):
        neuron = int(data.listed_neuron[row])
        handle = model.blocks[2].module.mlp.down_proj.register_forward_pre_hook(
            lambda m, a, n=neuron: (a[0].index_fill(-1, torch.tensor([n]), 0.0),)
        )
        try:
            top = int(model.hf(input_ids=ids).logits[0, -1].argmax())
        finally:
            handle.remove()
        assert str(data.listed_top.values[row]) == model.token_text(top)
    large = np.abs(data.change.values) > 0.001
    assert listed == int((large | (data.top1_changed.values > 0)).sum()), "a census of both conditions"

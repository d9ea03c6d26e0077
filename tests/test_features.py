"""Features: the pass beside a plain loop, the linear model beside its own values, graphs and their files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from regraft import load
from regraft.data.records import Records
from regraft.features.attribution import _Linear, attribute, pruned, salient
from regraft.features.feature_pass import feature_pass, regions_of
from regraft.features.feature_sources import adapter_features
from regraft.features.linear_model import RULES
from regraft.features.neighbour_files import cantor, write_graph
from regraft.features.running_histogram import RunningHistogram
from regraft.features.running_top import BEFORE, BEHIND, RunningSample, RunningTop
from regraft.modules.backbone import mlps_of
from regraft.modules.transcoder import beside
from small import ids
from transcoder_models import pair, trained


def test_the_largest_of_a_stream_are_those_of_all_of_it():
    torch.manual_seed(0)
    values = torch.relu(torch.randn(90, 7) - 0.3)
    values[:, 5] = 0.0
    rows = torch.arange(90) // 13
    top = RunningTop(7, 6)
    for first in range(0, 90, 20):
        some = slice(first, first + 20)
        top.add(values[some], values[some], rows[some], first)
    wanted = values.topk(6, dim=0)
    torch.testing.assert_close(top.values_Fk, wanted.values.T)
    real = wanted.values.T > 0
    assert torch.equal(top.places_Fk[real], wanted.indices.T[real])
    assert bool((top.places_Fk[~real] == -1).all())
    assert bool((top.places_Fk[5] == -1).all())
    for feature in (0, 3):
        for slot, place in enumerate(top.places_Fk[feature].tolist()):
            window = top.windows_FkW[feature, slot]
            for offset in range(-BEFORE, BEHIND + 1):
                at, piece = place + offset, place // 20
                inside = 20 * piece <= at < min(20 * piece + 20, 90) and rows[at] == rows[place]
                if inside:
                    assert float(window[BEFORE + offset]) == float(values[at, feature])
                else:
                    assert bool(window[BEFORE + offset].isnan())


def test_a_histogram_is_exact_whatever_the_order():
    """Beside numpy's, for values of very different sizes, in pieces; a dead feature has one empty bin."""
    draw = np.random.default_rng(0)
    values = np.maximum(draw.normal(size=(500, 5)), 0.0) * [1e-5, 1.0, 40.0, 1e4, 0.0]
    for order in (np.arange(500), np.argsort(values[:, 1]), np.argsort(-values[:, 2])):
        counted = RunningHistogram(5)
        for some in np.array_split(order, 7):
            counted.add(values[some])
        for feature in range(4):
            width, above = counted.width_F[feature], values[:, feature][values[:, feature] > 0]
            assert np.log2(width) % 1 == 0
            wanted = np.histogram(above, 64, (0, 64 * width))[0]
            assert counted.counts_FH[feature].tolist() == wanted.tolist()
            assert 32 <= len(counted.of(feature)) <= 64, "the larger half is used"
            assert counted.of(feature)[-1] > 0, "the last bin holds the largest"
            assert counted.of(feature).sum() == len(above)
        assert counted.of(4).tolist() == [0]


def test_a_sample_is_even_and_holds_what_is_above_zero():
    values = torch.zeros(400, 2)
    values[::2, 0] = torch.arange(200.0) + 1
    counts = np.zeros(400)
    for seed in range(300):
        sample = RunningSample(2, 5, seed)
        for first in range(0, 400, 100):
            some = slice(first, first + 100)
            sample.sample(values[some], torch.zeros(100, dtype=torch.long), first)
        places = sample.places_Fk[0].tolist()
        assert all(float(values[p, 0]) == float(v) for p, v in zip(places, sample.values_Fk[0], strict=True))
        counts[places] += 1
        assert sample.places_Fk[1].tolist() == [-1] * 5
    assert counts[1::2].sum() == 0
    quarters = counts.reshape(4, 100).sum(1)
    assert (abs(quarters - 375) < 75).all(), "no part of the stream is preferred"


def text_of(count, length=9):
    rows = np.array([ids(length, seed) for seed in range(count)], np.uint32)
    kinds = np.full_like(rows, 2, np.uint8)
    kinds[1, 6:] = 0
    return Records(rows, kinds, 0)


def test_a_pass_counts_what_a_plain_loop_finds():
    base, _ = pair("llama")
    graft, text = trained(base), text_of(20)
    found = feature_pass(base, adapter_features(base, graft), {"one": text, "two": text}, most=20, k=3)
    batch = text.rows(range(20))
    active = np.zeros((4, 24))
    largest = np.zeros((4, 24))
    every = [[[] for _ in range(24)] for _ in range(4)]
    with beside(base.hf, mlps_of(base), graft), graft.hearing() as heard, torch.no_grad():
        for row in batch:
            base.hf(row[:1, : int((row[1] > 0).sum())])
    for block in range(4):
        for _, values in heard[block]:
            for value in values[0]:
                above = value.numpy() > 0
                active[block] += above
                largest[block] = np.maximum(largest[block], value.numpy())
                for feature in np.nonzero(above)[0]:
                    every[block][feature].append(float(value[feature]))
    tokens = 19 * 9 + 6
    assert found.tokens == 2 * tokens
    for block in range(4):
        np.testing.assert_allclose(found.frequency_F(block), active[block] / tokens, atol=2 / tokens)
        np.testing.assert_allclose(found.blocks[block].largest_F, largest[block], rtol=1e-3, atol=1e-5)
        counted = found.blocks[block].histogram
        for feature, values in enumerate(every[block]):
            bins = np.histogram(values, 64, (0, 64 * counted.width_F[feature]))[0]
            difference = np.abs(counted.counts_FH[feature] - 2 * bins).sum()
            assert difference <= 8, "a value at an edge may fall either way"
    with pytest.raises(ValueError, match=r"there is no text|holds no token"):
        feature_pass(base, adapter_features(base, graft), {}, most=3)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_features_that_are_no_numbers_are_refused(value):
    """As half precision overflows: a histogram has no bin for them."""
    base, _ = pair("llama")
    graft = trained(base)
    with torch.no_grad():
        graft[2].enc.bias[3] = value
    source = adapter_features(base, graft)
    with pytest.raises(
        ValueError, match="features of block 2 are no numbers at some token of sequences 0 to 15"
    ):
        feature_pass(base, source, {"all": text_of(20)}, most=20)


class Spelled:
    def token_text(self, token):
        return ["What", " is", " it", "?", " <", "think", ">", " It", " is", " 3", " </", "think", ">", " 3"][
            token
        ]


def test_regions_are_told_by_the_text_however_markers_are_cut():
    assert regions_of(Spelled(), torch.arange(14)).tolist() == [0] * 4 + [1] * 3 + [2] * 4 + [3] * 3
    assert regions_of(Spelled(), torch.arange(4)).tolist() == [0] * 4


LINEAR = ["llama", "gpt2", "qwen3", "gpt_neox", "mistral"]


@pytest.mark.parametrize("name", LINEAR)
def test_the_parts_of_a_prediction_add_up_to_it(name):
    """Features, tokens and biases, the biases found by their own gradients."""
    base, _ = pair(name)
    graft = trained(base)
    prompt = ids(8, 3)
    with torch.no_grad(), beside(base.hf, mlps_of(base), graft):
        logits = base.hf(torch.tensor([prompt])).logits[0, -1]
    graph = attribute(base, graft, prompt, most_features=10_000)
    chosen = [node.index for node in graph.nodes if node.kind == "logit"]
    assert chosen == salient(logits.softmax(-1)).tolist()
    np.testing.assert_allclose(graph.scores, (logits[chosen] - logits.mean()).numpy(), rtol=1e-3, atol=1e-5)
    assert graph.left_over < 1e-4
    full = len([n for n in graph.nodes if n.kind == "feature"])
    assert full <= graph.active
    np.testing.assert_allclose(graph.completeness, 1.0, atol=2e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_what_a_feature_is_given_adds_up_to_what_its_encoder_says(name):
    """Earlier features, tokens and biases, for features of every block; nothing comes from later ones."""
    base, _ = pair(name)
    graft, prompt = trained(base), ids(6, 2)
    run = _Linear(base, graft, prompt)
    for block, position, feature in ((0, 2, 1), (1, 5, 7), (2, 3, 11), (3, 5, 20)):
        target = run.before[block][0, position, feature]
        features_LTF, tokens_T, biases = run.row(target)
        total = float(features_LTF.sum() + tokens_T.sum()) + biases
        assert total == pytest.approx(float(target.detach()), rel=1e-3, abs=1e-5), (block, position)
        assert not bool(features_LTF[block:].any())
        assert not bool(features_LTF[:, position + 1 :].any())
        assert bool(tokens_T[position] != 0)
    graph = attribute(base, graft, prompt, most_features=10_000)
    names = {(n.block, n.position, n.index): i for i, n in enumerate(graph.nodes) if n.kind == "feature"}
    for (block, position, _), target in names.items():
        for (other, place, _), source in names.items():
            if other >= block or place > position:
                assert graph.weights_nn[target, source] == 0.0, "nothing flows back"
    assert (graph.weights_nn[:, -len(graph.scores) :] == 0).all(), "logits are given to nothing"


def test_a_model_that_no_rule_makes_linear_is_refused(monkeypatch):
    base, _ = pair("gemma2")
    with pytest.raises(ValueError, match="has a function that no rule makes linear"):
        attribute(base, trained(base), ids(6, 2))
    half = load(pair("llama")[0].hf.to(torch.bfloat16), pack=False)
    with pytest.raises(ValueError, match="computes in half precision"):
        attribute(half, trained(half), ids(6, 2))


@pytest.mark.parametrize(
    "lacking", [torch.rsqrt, torch.nn.functional.silu, torch.nn.functional.scaled_dot_product_attention]
)
def test_a_rule_that_is_lacking_is_seen_by_what_is_left_over(lacking, monkeypatch):
    """Without one of the rules the parts no longer add up, and nothing is drawn."""
    base, _ = pair("llama")
    with torch.no_grad():
        for parameter in base.hf.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    model = load(base.hf, pack=False)
    graft = trained(model)
    attribute(model, graft, ids(6, 2), most_features=1)
    monkeypatch.delitem(RULES, lacking)
    with pytest.raises(ValueError, match="the parts of the prediction miss"):
        attribute(model, graft, ids(6, 2), most_features=1)


def test_pruning_keeps_what_matters_and_the_files_tell_it(tmp_path):
    base, _ = pair("llama")
    graph = attribute(base, trained(base), ids(8, 3), most_features=10_000)
    small = pruned(graph, 0.6, 0.9)
    count = [sum(n.kind == "feature" for n in g.nodes) for g in (graph, small)]
    assert 0 < count[1] < count[0]
    kept = {(n.block, n.index, n.position) for n in small.nodes if n.kind == "feature"}
    influence = graph.influence()
    best = max(range(count[0]), key=lambda i: influence[i])
    node = graph.nodes[best]
    assert (node.block, node.index, node.position) in kept
    whole = pruned(graph, 1.0, 1.0)
    assert sum(n.kind == "feature" for n in whole.nodes) <= count[0]
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="is a share of all influence"):
            pruned(graph, wrong)
    path = write_graph(small, tmp_path, "graph", "test", 0.6)
    told = json.loads(path.read_text())
    ids_of_nodes = {node["node_id"] for node in told["nodes"]}
    assert len(ids_of_nodes) == len(small.nodes)
    assert all(link["source"] in ids_of_nodes and link["target"] in ids_of_nodes for link in told["links"])
    assert len(told["links"]) == int((small.weights_nn != 0).sum())
    first = next(node for node in told["nodes"] if node["feature_type"] == "cross layer transcoder")
    layer, feature, place = first["node_id"].split("_")
    assert first["feature"] == cantor(int(layer), int(feature))
    assert first["ctx_idx"] == int(place)
    assert sum(node["is_target_logit"] for node in told["nodes"]) == 1
    assert all(0 <= node["influence"] <= 1 + 1e-9 for node in told["nodes"])
    assert json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"][0]["slug"] == "graph"
    assert cantor(0, 0) == 0
    assert len({cantor(b, f) for b in range(20) for f in range(50)}) == 1000


def test_salient_logits_are_those_of_most_of_the_probability_or_ten():
    assert salient(torch.tensor([0.1, 0.5, 0.04, 0.3, 0.06])).tolist() == [1, 3, 0, 4]
    assert salient(torch.tensor([0.96, 0.02, 0.02])).tolist() == [0]
    assert len(salient(torch.full((40,), 1 / 40))) == 10


def test_gradients_end_at_features():
    base, _ = pair("llama")
    graft = trained(base)
    graft.requires_grad_(False)
    with beside(base.hf, mlps_of(base), graft), graft.hearing(cuts=True) as heard:
        base.hf(torch.tensor([ids(5, 1)])).logits.sum().backward()
    assert all(own[0][1].is_leaf and own[0][1].grad is not None for own in heard)
    assert not any(adapter.cuts for adapter in graft)

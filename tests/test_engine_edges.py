"""The engine at its edges: unequal prompts, wrong variants, stale weights, and random routes and edits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.model.cpu_pack import packed_layer, packing_applies
from regraft.model.selfcheck import check
from regraft.sweeps.metrics import probability, rank
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Add, Apply, Noise, Replace, Scale, Variant, Zero
from small import METRIC, SHAPES, ids, opened, recorded, reference


def test_positions_of_unequal_prompts():
    """In both stacks a negative position counts from each prompt's own end, and padding cannot be edited."""
    model = opened("t5")
    together = recorded(model, 8, 5)
    alone = model.record([ids(5, 4)], [ids(4, 13)])
    for site in ("encoder.1.resid_pre", "encoder.2.mlp_act", "decoder.1.attn_out"):
        variant = Variant([Zero(site, position=-1)])
        ours, single = (sweep(r, [variant], METRIC).values["d"][0, -1] for r in (together, alone))
        assert float(ours) == pytest.approx(float(single), abs=1e-5)
        assert abs(float(ours) - float(sweep(alone, [], METRIC).clean["d"])) > 1e-5
    with pytest.raises(ValueError, match=r"position 6 .* outside the prompt of 5 tokens"):
        sweep(together, [Variant([Zero("encoder.1.resid_pre", position=6)])], METRIC)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "gpt2", "qwen3_5"])
def test_unequal_prompts_with_edits_everywhere(name):
    model = opened(name)
    recording, other = recorded(model, 9, 6, 4), recorded(model, 9, 6, 4, seed=40)
    sites = [
        f"{b}.{s}"
        for b in (0, 2, 3)
        for s in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        if model.taps.exists(b, s)
    ]
    variants = [Variant([Replace(s, other[s], position=p)]) for s in sites for p in (-1, -3, 2, [0, -2])]
    variants += [Variant([Scale(s, 0.5)]) for s in sites] + [Variant([Zero(sites[0])], Route.swap(4, 1, 2))]
    result = sweep(recording, variants, METRIC)
    assert torch.allclose(result.values["d"], reference(model, recording, variants), atol=1e-5)


def test_values_outside_the_blocks():
    model = opened("llama")
    recording, other = recorded(model, 7, 5), recorded(model, 7, 5, seed=40)
    variants = [
        Variant([Replace("final_norm", other["final_norm"])]),
        Variant([Add("logits", other["logits"], position=-1)]),
    ]
    result = sweep(recording, variants, METRIC)
    assert torch.allclose(result.values["d"], reference(model, recording, variants), atol=1e-5)
    with pytest.raises(ValueError, match="noise at final_norm is not offered"):
        sweep(recording, [Variant([Noise("final_norm", 0.1)])], METRIC)


def test_wrong_variants_get_a_sentence():
    model = opened("llama")
    recording = recorded(model, 7)
    donor = model.blocks[2].module
    for variant, words in (
        (
            Variant([Zero("1.attn_out")], Route.replace(4, {1: donor})),
            "inside a block that the route replaces",
        ),
        (Variant([Zero("1.attn_out", position=[])]), "names no position"),
        (Variant([Replace("1.attn_out", torch.zeros(5))]), "is 5 wide, the activation 32"),
    ):
        with pytest.raises(ValueError, match=words):
            sweep(recording, variant, METRIC)
    for wrong in (
        lambda: Route.skip(4, {40}),
        lambda: Route.skip(4, {-1}),
        lambda: Route.swap(4, 0, 4),
        lambda: Route.repeat(4, 9, 2),
    ):
        with pytest.raises(ValueError, match="there are 4 blocks, 0 to 3"):
            wrong()
    with pytest.raises(ValueError, match="there is no prompt"):
        model.record([])


def test_what_a_recording_hands_out_can_be_written_to():
    model = opened("llama")
    recording = recorded(model, 7)
    before = sweep(recording, [], METRIC).clean["d"]
    recording["3.resid_post"].zero_()
    recording["1.resid_pre"].zero_()
    assert torch.equal(sweep(recording, [], METRIC).clean["d"], before)


def test_weights_written_in_place_are_packed_anew_and_a_stale_recording_is_refused():
    model = opened("gpt2")
    model.packed = {m: packed_layer(m) for m in model.hf.modules() if packing_applies(m)}
    stale = recorded(model, 8)
    with torch.no_grad():
        model.hf.transformer.h[1].mlp.c_fc.weight.mul_(50.0)
    with pytest.raises(ValueError, match="have changed since this recording was made: record anew"):
        sweep(stale, [Variant([Zero("2.z")])], METRIC)
    fresh = recorded(model, 8)
    fast, stock = (sweep(fresh, [Variant([Zero("2.z")])], METRIC, exact=e).values["d"] for e in (False, True))
    assert torch.allclose(fast, stock, atol=1e-4)


def test_a_model_whose_kernels_depend_on_the_batch_is_run_row_by_row_and_says_so():
    model = opened("llama")
    inner = model.blocks[1].branch("mlp").projection
    whole = inner.forward
    inner.forward = lambda x: whole(x) * (1.0 + 0.05 * (x.shape[0] > 1))
    model.check = check(model)
    assert model.check.replay == 0.0
    assert model.check.batch > 1e-4
    recording = recorded(model, 8)
    variants = [Variant([Zero(f"{b}.head.{h}")]) for b in range(4) for h in range(2)]
    result = sweep(recording, variants, METRIC)
    assert "rows were run one at a time" in result.notes[0]
    assert torch.allclose(result.values["d"], reference(model, recording, variants), atol=1e-5)


def test_layers_with_a_forward_of_their_own_are_not_packed():
    class Tripled(torch.nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    assert packing_applies(torch.nn.Linear(4, 4))
    assert not packing_applies(Tripled(4, 4))


def test_several_metrics_of_one_kind():
    model = opened("llama")
    result = sweep(recorded(model, 8), [], [probability(7), probability(9), rank(7)])
    assert set(result.clean) == {"probability(7)", "probability(9)", "rank"}


def test_an_empty_completion_scores_nothing():
    model = opened("llama")
    recording = model.record([ids(6, 1), ids(6, 2)], [ids(3, 3), []])
    assert recording.scored_BT.sum(1).tolist() == [3, 0]


@st.composite
def random_sweep(draw):
    name = draw(st.sampled_from(SHAPES))
    seed = draw(st.integers(1, 3))
    chosen = []
    for _ in range(draw(st.integers(1, 4))):
        route = draw(st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=1, max_size=5)))
        edits = []
        for _ in range(draw(st.integers(0, 2))):
            site = draw(
                st.sampled_from(
                    ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_act"]
                )
            )
            position = draw(st.one_of(st.none(), st.integers(0, 5), st.just([0, -1])))
            kind = draw(st.sampled_from([Zero, Scale, Add]))
            edits.append((draw(st.integers(0, 3)), site, position, kind))
        chosen.append((route, edits))
    return name, seed, chosen


MODELS: dict = {}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_sweep())
def test_random_routes_and_edits_equal_the_naive_reference(drawn):
    name, seed, chosen = drawn
    if (name, seed) not in MODELS:
        MODELS[name, seed] = opened(name, seed)
    model = MODELS[name, seed]
    recording = recorded(model, 6, 6)
    blocks = model.main_blocks
    first = model.parts.stacks[-1].first
    variants = []
    for route, wanted in chosen:
        stops = None if route is None else [*range(first), *(first + b % len(blocks) for b in route)]
        edits = []
        for block, site, position, kind in wanted:
            part = blocks[block % len(blocks)]
            if not model.taps.exists(part.index, site) or (stops is not None and part.index not in stops):
                continue
            address = f"{part.address}.{site}"
            value = {Zero: (), Scale: (1.5,), Add: (0.3 * recording[address],)}[kind]
            edits.append(kind(address, *value, position=position))
        variants.append(Variant(edits, None if stops is None else Route.order(stops)))
    result = sweep(recording, variants, METRIC)
    assert torch.allclose(result.values["d"], reference(model, recording, variants), atol=1e-5)
    assert result.work.executed == result.work.planned


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "bert", "t5", "qwen3_5"])
def test_a_function_of_ones_own_is_what_it_computes(name):
    """At every kind of site, with the savings and without; beside the edit that says the same."""
    model = opened(name)
    recording = recorded(model, 7, 5)
    at = "decoder.1" if model.two_stacks else "1"
    shift = torch.randn(model.width, generator=torch.Generator().manual_seed(1))

    def moved(x):
        return x * 2 + shift

    def doubled(x):
        return x.mul_(2)

    pairs = [
        (
            [Apply(f"{at}.resid_post", moved, 2)],
            [Scale(f"{at}.resid_post", 2.0, 2), Add(f"{at}.resid_post", shift, 2)],
        ),
        ([Apply(f"{at}.mlp_out", moved)], [Scale(f"{at}.mlp_out", 2.0), Add(f"{at}.mlp_out", shift)]),
        ([Apply(f"{at}.mlp_act", doubled, [0, -1])], [Scale(f"{at}.mlp_act", 2.0, [0, -1])]),
        ([Apply(f"{at}.head.1", doubled)], [Scale(f"{at}.head.1", 2.0)]),
        ([Apply("logits", doubled)], [Scale("logits", 2.0)]),
    ]
    own, known = ([Variant(pair[side]) for pair in pairs] for side in (0, 1))
    for exact in (False, True):
        found = sweep(recording, own, METRIC, exact=exact).values["d"]
        assert torch.allclose(found, reference(model, recording, known), atol=2e-5), exact
    with pytest.raises(ValueError, match=r"of the edit at .*resid_post returned numbers that are not finite"):
        sweep(recording, Apply(f"{at}.resid_post", lambda x: x / 0), METRIC)
    with pytest.raises(ValueError, match=r"it must return the same shape"):
        sweep(recording, Apply(f"{at}.resid_post", lambda x: x[:1, :1]), METRIC)

"""The engine against the naive reference: corrections, suffixes, memory, metrics, several recordings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, log_softmax

import naive
from families import FAMILIES, VOCAB
from regraft.engine import replay
from regraft.engine.cone import cone_holds
from regraft.engine.metric import (
    LogitDifference,
    kl_to_clean,
    logit_difference,
    loss,
    probability,
    rank,
    token_logit,
    top1_agreement,
)
from regraft.engine.sweep import SweepError, sweep
from regraft.engine.variant import Add, Noise, Replace, Route, Scale, Variant, Zero
from regraft.model.load import load
from regraft.model.pack import packed_layer, packing_applies
from regraft.model.progress import listening
from regraft.model.selfcheck import check

METRIC = LogitDifference("d", "logits", tokens=(7, 9))
SHAPES = ("llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "bert", "t5", "qwen3_5")


def opened(name, seed=1):
    torch.manual_seed(seed)
    return load(FAMILIES[name]().eval(), pack=False)


def ids(length, seed):
    return torch.randint(5, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def recorded(model, *lengths, seed=3):
    prompts = [ids(n, seed + i) for i, n in enumerate(lengths)]
    return model.record(prompts, [ids(n - 1, seed + 9 + i) for i, n in enumerate(lengths)] if model.two_stacks else None)


def reference(model, recording, variants, score=lambda x: x[..., 7] - x[..., 9]):
    rows = torch.arange(recording.prompts)
    return torch.stack([score(naive.logits(model, recording, v)[rows, recording.lengths_B - 1]) for v in variants])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "bert", "bart"])
def test_every_neuron_and_head_by_correction_equals_hooks(name):
    model = opened(name)
    recording = recorded(model, 6)
    block = model.main_blocks[1]
    neurons = range(model.tap(f"{block.address}.mlp_act").module.weight.shape[-1 if name != "gpt2" else 0])
    variants = [Variant([Zero(f"{block.address}.neuron.{n}")]) for n in neurons]
    variants += [Variant([Zero(f"{block.address}.head.{h}")]) for h in range(4)]
    result = sweep(recording, variants, METRIC)
    assert torch.allclose(result.values["d"], reference(model, recording, variants), atol=1e-5)
    behind = len(model.main_blocks) - 2
    heads = 4 * recording.positions * (behind + (0 if block.parallel else 1))
    control = sum(recording.positions_of(b.index) for b in model.blocks)
    assert result.work.executed == control + len(neurons) * recording.positions * behind + heads


def test_neurons_with_no_room_for_error():
    """A wrong column of the projection would pass a loose tolerance on a near-zero neuron: take the largest ones."""
    model = opened("llama")
    recording = recorded(model, 6)
    acts = recording["1.mlp_act"][0].abs().amax(0)
    chosen = acts.topk(5).indices.tolist()
    variants = [Variant([Zero(f"1.neuron.{n}")]) for n in chosen]
    clean = sweep(recording, [], METRIC).clean["d"]
    ours, wrong = (
        sweep(recording, variants, METRIC).values["d"],
        reference(model, recording, [Variant([Zero(f"1.neuron.{n - 1}")]) for n in chosen]),
    )
    assert float((ours - clean).abs().min()) > 1e-5
    assert not torch.allclose(ours, wrong, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3", "mistral", "phi3", "cohere2", "gpt_oss", "bloom"])
def test_grids_on_suffixes_equal_full_forwards(name):
    model = opened(name)
    assert cone_holds(model)
    clean, corrupt = recorded(model, 8, 6), recorded(model, 8, 6, seed=70)
    variants = [
        Variant([Replace(f"{b}.{site}", clean[f"{b}.{site}"], position=p)])
        for b in range(4)
        for p in range(6)
        for site in ("resid_pre", "attn_out", "z")
    ]
    result = sweep(corrupt, variants, METRIC)
    assert result.work.preparation > 0
    assert result.work.executed == result.work.planned < 0.6 * result.work.naive
    assert torch.allclose(result.values["d"], reference(model, corrupt, variants), atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "t5", "qwen3_5", "mamba2"])
def test_suffixes_are_off_where_they_do_not_hold(name):
    assert not cone_holds(opened(name))


def test_an_off_by_one_position_is_seen():
    model = opened("llama")
    clean, corrupt = recorded(model, 8), recorded(model, 8, seed=70)
    right = [Variant([Replace("1.resid_pre", clean["1.resid_pre"], position=p)]) for p in range(7)]
    shifted = [Variant([Replace("1.resid_pre", clean["1.resid_pre"], position=p + 1)]) for p in range(7)]
    ours = sweep(corrupt, right, METRIC).values["d"]
    assert float((ours - reference(model, corrupt, shifted)).abs().min()) > 1e-4


def test_negative_positions_count_from_each_prompts_own_end():
    model = opened("llama")
    recording = recorded(model, 8, 5)
    ours = sweep(recording, [Variant([Zero("2.attn_out", position=-1)])], METRIC).values["d"][0]
    alone = recorded(model, 8), model.record([ids(5, 4)])
    single = [sweep(r, [Variant([Zero("2.attn_out", position=-1)])], METRIC).values["d"][0, 0] for r in alone]
    assert torch.allclose(ours, torch.stack(single), atol=1e-6)


@pytest.mark.parametrize("site", ["embed", "final_norm", "logits"])
def test_edits_outside_the_blocks(site):
    model = opened("llama")
    recording = recorded(model, 7, 7)
    variants = [Variant([Scale(site, 0.5)]), Variant([Zero(site, position=-1)]), Variant([Scale(site, 2.0, position=1)])]
    result = sweep(recording, variants, METRIC)
    assert torch.allclose(result.values["d"], reference(model, recording, variants), atol=1e-5)
    assert float((result.values["d"][0] - result.clean["d"]).abs().min()) > 1e-4


def test_identity_edits_change_nothing_and_a_full_patch_changes_all():
    model = opened("llama")
    clean, corrupt = recorded(model, 8), recorded(model, 8, seed=70)
    same = [Variant([Replace(f"{b}.{s}", corrupt[f"{b}.{s}"])]) for b in range(4) for s in ("resid_pre", "mlp_out", "z")]
    full = [Variant([Replace(f"{b}.resid_pre", clean[f"{b}.resid_pre"])]) for b in range(4)]
    result = sweep(corrupt, [*same, *full], METRIC)
    assert torch.allclose(result.values["d"][: len(same)], result.clean["d"].expand(len(same), -1), atol=2e-7)
    assert torch.equal(result.values["d"][len(same) :], sweep(clean, [], METRIC).clean["d"].expand(4, -1))


def test_noise_is_seeded_and_scaled_to_the_activation():
    model = opened("llama")
    recording = recorded(model, 8)
    noises = [Noise("2.resid_pre", s, seed) for s, seed in ((0.1, 0), (0.1, 0), (0.1, 1), (0.0, 0))]
    values = sweep(recording, [Variant([n]) for n in noises], METRIC)
    a, b, other, none = values.values["d"][:, 0].tolist()
    assert a == b != other
    assert none == pytest.approx(float(values.clean["d"]), abs=1e-7)
    drawn = torch.randn((1, 8, 32), generator=torch.Generator().manual_seed(0))
    stream = recording["2.resid_pre"]
    by_hand = stream + 0.1 * drawn * stream.pow(2).mean(-1, keepdim=True).sqrt()
    wanted = reference(model, recording, [Variant([Replace("2.resid_pre", by_hand)])])
    assert a == pytest.approx(float(wanted), abs=1e-5)


def test_a_module_in_a_blocks_place_and_repetition():
    model = opened("llama")
    recording = recorded(model, 8)
    routes = [
        Route.replace(4, {1: model.blocks[2].module}),
        Route.repeat(4, 2, 1),
        Route.repeat(4, 2, 2),
        Route.order([3, 1]),
        Route.order([]),
    ]
    result = sweep(recording, [Variant(route=r) for r in routes], METRIC)
    assert float(result.values["d"][1]) == float(result.clean["d"])
    assert torch.allclose(result.values["d"], reference(model, recording, [Variant(route=r) for r in routes]), atol=1e-5)


def test_metrics_against_their_definitions():
    model = opened("llama")
    recording = model.record([ids(6, 1), ids(4, 2)], [ids(3, 5), ids(4, 6)])
    variant = Variant([Scale("1.mlp_out", 3.0)])
    metrics = [loss(), kl_to_clean(), top1_agreement(), probability(9), rank(9), token_logit(9), logit_difference(9, 3)]
    result = sweep(recording, [variant], metrics)
    ours = naive.logits(model, recording, variant)
    clean = naive.logits(model, recording, Variant())
    nll, kl, agree = [], [], []
    for b in range(2):
        scored = recording.scored_BT[b].nonzero()[:, 0]
        nll.append(cross_entropy(ours[b, scored - 1], recording.ids_BT[b, scored]))
        lp, lq = log_softmax(clean[b, scored - 1], -1), log_softmax(ours[b, scored - 1], -1)
        kl.append((lp.exp() * (lp - lq)).sum(-1).mean())
        agree.append((lp.argmax(-1) == lq.argmax(-1)).float().mean())
    last = ours[torch.arange(2), recording.lengths_B - 1]
    assert recording.scored_BT.sum(1).tolist() == [3, 4]
    for name, wanted in {
        "loss": torch.stack(nll),
        "kl_to_clean": torch.stack(kl),
        "top1_agreement": torch.stack(agree),
        "probability": last.softmax(-1)[:, 9],
        "rank": (last > last[:, 9:10]).sum(-1).float(),
        "logit": last[:, 9],
        "logit_difference": last[:, 9] - last[:, 3],
    }.items():
        assert torch.allclose(result.values[name][0], wanted, atol=1e-5), name
    assert float(result.mean("loss")) == pytest.approx(float((torch.stack(nll) * torch.tensor([3, 4])).sum() / 7), abs=1e-6)
    assert float(result.clean["kl_to_clean"].max()) == pytest.approx(0.0, abs=1e-7)


def test_the_loss_of_an_encoder_is_that_of_the_masked_tokens():
    model = opened("bert")
    with pytest.raises(ValueError, match="no token is scored"):
        sweep(recorded(model, 8), [], loss())
    given, masked = ids(8, 3), torch.zeros(1, 8, dtype=torch.bool)
    masked[0, [2, 5]] = True
    recording = model.record([given], scored=masked)
    variant = Variant([Zero("1.attn_out")])
    ours = naive.logits(model, recording, variant)[0, [2, 5]]
    wanted = cross_entropy(ours, torch.tensor(given)[[2, 5]])
    assert float(sweep(recording, [variant], loss()).values["loss"]) == pytest.approx(float(wanted), abs=1e-5)


def test_padding_does_not_change_a_prompts_numbers():
    model = opened("llama")
    together = model.record([ids(6, 1), ids(4, 2)], [ids(3, 5), ids(2, 6)])
    variants = [Variant(route=Route.skip(4, {b})) for b in range(4)]
    joined = sweep(together, variants, loss())
    alone = [model.record([ids(6, 1)], [ids(3, 5)]), model.record([ids(4, 2)], [ids(2, 6)])]
    apart = sweep(alone, variants, loss())
    assert torch.allclose(joined.values["loss"], apart.values["loss"], atol=1e-5)
    assert torch.allclose(joined.mean("loss"), apart.mean("loss"), atol=1e-5)


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(monkeypatch):
    model = opened("llama")
    recording = recorded(model, 8)
    variants = [Variant([Zero(f"{b}.head.{h}")]) for b in range(4) for h in range(4)]
    wanted = sweep(recording, variants, METRIC)
    whole, refused = replay.Replay._call, []

    def tight(self, nodes):
        if len(nodes) > 3:
            refused.append(len(nodes))
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")
        return whole(self, nodes)

    monkeypatch.setattr(replay.Replay, "_call", tight)
    result = sweep(recording, variants, METRIC)
    assert refused
    assert torch.allclose(result.values["d"], wanted.values["d"], atol=1e-6)
    assert result.work.executed == result.work.planned

    def broken(self, nodes):
        raise RuntimeError("something else")

    monkeypatch.setattr(replay.Replay, "_call", broken)
    with pytest.raises(RuntimeError, match="something else"):
        sweep(recording, variants, METRIC)


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
    sites = [f"{b}.{s}" for b in (0, 2, 3) for s in ("resid_pre", "attn_out", "mlp_out", "resid_post") if model.taps.exists(b, s)]
    variants = [Variant([Replace(s, other[s], position=p)]) for s in sites for p in (-1, -3, 2, [0, -2])]
    variants += [Variant([Scale(s, 0.5)]) for s in sites] + [Variant([Zero(sites[0])], Route.swap(4, 1, 2))]
    result = sweep(recording, variants, METRIC)
    assert torch.allclose(result.values["d"], reference(model, recording, variants), atol=1e-5)


def test_values_outside_the_blocks():
    model = opened("llama")
    recording, other = recorded(model, 7, 5), recorded(model, 7, 5, seed=40)
    variants = [Variant([Replace("final_norm", other["final_norm"])]), Variant([Add("logits", other["logits"], position=-1)])]
    result = sweep(recording, variants, METRIC)
    assert torch.allclose(result.values["d"], reference(model, recording, variants), atol=1e-5)
    with pytest.raises(ValueError, match="noise at final_norm is not offered"):
        sweep(recording, [Variant([Noise("final_norm", 0.1)])], METRIC)


def test_wrong_variants_get_a_sentence():
    model = opened("llama")
    recording = recorded(model, 7)
    donor = model.blocks[2].module
    for variant, words in (
        (Variant([Zero("1.attn_out")], Route.replace(4, {1: donor})), "inside a block that the route replaces"),
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
    with pytest.raises(SweepError, match=r"the control row, which changes nothing, deviates by"):
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
    assert set(result.clean) == {"probability_1", "probability_2", "rank"}


def test_an_empty_completion_scores_nothing():
    model = opened("llama")
    recording = model.record([ids(6, 1), ids(6, 2)], [ids(3, 3), []])
    assert recording.scored_BT.sum(1).tolist() == [3, 0]


def test_chunks_of_a_large_sweep_join(monkeypatch):
    model = opened("llama")
    recording = recorded(model, 8)
    variants = [Variant([Zero(f"{b}.head.{h}")]) for b in range(4) for h in range(4)]
    wanted = sweep(recording, variants, METRIC)
    monkeypatch.setattr("regraft.engine.sweep._live_rows", lambda recording: 5)
    monkeypatch.setattr("regraft.engine.sweep.LOGITS_AT_ONCE", VOCAB * 2)
    result = sweep(recording, variants, METRIC)
    assert torch.allclose(result.values["d"], wanted.values["d"], atol=1e-6)
    assert result.work.executed == result.work.planned


def test_packed_layers_agree_with_stock_ones():
    model = opened("gpt2")
    model.packed = {m: packed_layer(m) for m in model.hf.modules() if packing_applies(m)}
    assert len(model.packed) == 4 * 4 + 1
    recording = recorded(model, 8)
    variants = [Variant([Zero(f"{b}.head.{h}")]) for b in range(4) for h in range(4)]
    fast, stock = sweep(recording, variants, METRIC), sweep(recording, variants, METRIC, exact=True)
    assert torch.allclose(fast.values["d"], stock.values["d"], atol=1e-5)
    assert not any("forward" in vars(m) for m in model.hf.modules())


def test_progress_counts_up_to_the_plan():
    model = opened("llama")
    heard = []
    with listening(lambda *words: heard.append(words)):
        sweep([recorded(model, 8), recorded(model, 5)], [Variant([Zero("0.z")])], METRIC)
    assert heard[-1] == ("variants", 1000, 1000)
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)


@st.composite
def random_sweep(draw):
    name = draw(st.sampled_from(SHAPES))
    seed = draw(st.integers(1, 3))
    chosen = []
    for _ in range(draw(st.integers(1, 4))):
        route = draw(st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=1, max_size=5)))
        edits = []
        for _ in range(draw(st.integers(0, 2))):
            site = draw(st.sampled_from(["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_act"]))
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

"""The engine against the naive reference: corrections, suffixes, memory, metrics, several recordings."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

import naive
from families import VOCAB
from regraft.core.progress import listening
from regraft.model.cpu_pack import packed_layer, packing_applies
from regraft.sweeps import executor as replay
from regraft.sweeps.metrics import (
    kl_to_clean,
    logit_difference,
    loss,
    probability,
    rank,
    token_logit,
    top1_agreement,
)
from regraft.sweeps.plan import keys_cost
from regraft.sweeps.prefix_cache import cone_holds
from regraft.sweeps.recorded_layout import key_share
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Noise, Replace, Scale, Variant, Zero
from small import METRIC, ids, opened, recorded, reference


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
    control = sum(recording.positions_of(b.index) for b in model.blocks)
    before = recording.positions - 1
    last = 1 + keys_cost(before, key_share(model)) if cone_holds(model) else recording.positions
    row = recording.positions * (behind - 1) + last
    heads = 4 * (row + (0 if block.parallel else recording.positions))
    assert result.work.executed == control + len(neurons) * row + heads


def test_neurons_with_no_room_for_error():
    """A wrong column of the projection would pass a loose tolerance on a near-zero neuron: take the largest
    ones."""
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


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gpt_neox", "gemma3", "mistral", "phi3", "cohere2", "gpt_oss", "bloom"]
)
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
    variants = [
        Variant([Scale(site, 0.5)]),
        Variant([Zero(site, position=-1)]),
        Variant([Scale(site, 2.0, position=1)]),
    ]
    result = sweep(recording, variants, METRIC)
    assert torch.allclose(result.values["d"], reference(model, recording, variants), atol=1e-5)
    assert float((result.values["d"][0] - result.clean["d"]).abs().min()) > 1e-4


def test_identity_edits_change_nothing_and_a_full_patch_changes_all():
    model = opened("llama")
    clean, corrupt = recorded(model, 8), recorded(model, 8, seed=70)
    same = [
        Variant([Replace(f"{b}.{s}", corrupt[f"{b}.{s}"])])
        for b in range(4)
        for s in ("resid_pre", "mlp_out", "z")
    ]
    full = [Variant([Replace(f"{b}.resid_pre", clean[f"{b}.resid_pre"])]) for b in range(4)]
    result = sweep(corrupt, [*same, *full], METRIC)
    noise = model.rounding * model.check.largest
    assert torch.allclose(
        result.values["d"][: len(same)], result.clean["d"].expand(len(same), -1), rtol=0, atol=noise
    )
    wanted = sweep(clean, [], METRIC).clean["d"].expand(4, -1)
    assert torch.allclose(result.values["d"][len(same) :], wanted, rtol=0, atol=noise)
    exact = sweep(corrupt, [*same, *full], METRIC, exact=True)
    assert torch.equal(exact.values["d"][: len(same)], exact.clean["d"].expand(len(same), -1))
    assert torch.equal(
        exact.values["d"][len(same) :], sweep(clean, [], METRIC, exact=True).clean["d"].expand(4, -1)
    )


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
    assert float(result.values["d"][1]) == pytest.approx(
        float(result.clean["d"]), abs=model.rounding * model.check.largest
    )
    assert torch.allclose(
        result.values["d"], reference(model, recording, [Variant(route=r) for r in routes]), atol=1e-5
    )


def test_metrics_against_their_definitions():
    model = opened("llama")
    recording = model.record([ids(6, 1), ids(4, 2)], [ids(3, 5), ids(4, 6)])
    variant = Variant([Scale("1.mlp_out", 3.0)])
    metrics = [
        loss(),
        kl_to_clean(),
        top1_agreement(),
        probability(9),
        rank(9),
        token_logit(9),
        logit_difference(9, 3),
    ]
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
    assert float(result.mean("loss")) == pytest.approx(
        float((torch.stack(nll) * torch.tensor([3, 4])).sum() / 7), abs=1e-6
    )
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


def test_chunks_of_a_large_sweep_join(monkeypatch):
    model = opened("llama")
    recording = recorded(model, 8)
    variants = [Variant([Zero(f"{b}.head.{h}")]) for b in range(4) for h in range(4)]
    wanted = sweep(recording, variants, METRIC)
    monkeypatch.setattr("regraft.sweeps.sweep.live_rows", lambda recording: 5)
    monkeypatch.setattr("regraft.sweeps.sweep.LOGITS_AT_ONCE", VOCAB * 2)
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

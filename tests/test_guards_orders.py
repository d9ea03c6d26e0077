"""What the methods that order blocks without text measure, each with numpy from the weights or by running
blocks one by one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from regraft.experiments.intervene.shuffle import order_loss, order_weights
from regraft.experiments.intervene.shuffle import order_weights as module
from regraft.experiments.intervene.shuffle.order_weights import (
    SCALES,
    Blocks,
    activation_flow,
    causal_pairwise,
    ensemble_rank,
    greedy_cosine,
    tensor_ensemble,
    weight_stats,
)
from regraft.experiments.intervene.shuffle.seriation import oriented, shortest_path
from small import opened


@pytest.fixture(scope="module")
def blocks():
    model = opened("llama")
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for number, block in enumerate(model.blocks):
            for parameter in block.module.parameters():
                parameter.add_((0.02 + 0.03 * number) * torch.randn(parameter.shape, generator=draw) + 0.001)
    return Blocks(model, list(model.blocks), 0)


def arrays(b):
    return [[p.detach().double().numpy() for p in block.module.parameters()] for block in b.blocks]


def apart(rows):
    return [[float(np.linalg.norm(np.array(one) - np.array(other))) for other in rows] for one in rows]


def test_statistics_of_every_tensor(blocks):
    every = arrays(blocks)
    rows = [
        [f for a in one for f in ((a**2).sum() ** 0.5, a.mean(), a.std(), max(a.max(), -a.min()))]
        for one in every
    ]
    assert np.allclose(module._tensor_distance(blocks), apart(rows), rtol=1e-9)
    assert blocks.total_norm == pytest.approx(
        [np.linalg.norm(np.concatenate([a.ravel() for a in one])) for one in every]
    )
    lows = Blocks(opened("llama"), list(blocks.blocks), 0)
    lows.tensors = [{"a": torch.tensor([-3.0, 1.0])}, {"a": torch.tensor([-1.0, 2.0])}]
    rows = [[10**0.5, -1, 2, 3], [5**0.5, 0.5, 1.5, 2]]
    assert np.allclose(module._tensor_distance(lows), apart(rows)), "the largest by size, whatever its sign"
    lows.alike = False
    for method in (module._tensor_distance, module._cosine_distance):
        with pytest.raises(ValueError, match="not of one make"):
            method(lows)


def test_weights_of_norms_and_angles_of_all_weights(blocks):
    every = arrays(blocks)
    norms = [np.concatenate([a for a in one if a.ndim == 1]) for one in every]
    assert np.allclose(module._norms_distance(blocks), apart(norms), rtol=1e-6)
    whole = [np.concatenate([a.ravel() for a in one]) for one in every]
    wanted = [[1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in whole] for a in whole]
    found = module._cosine_distance(blocks)
    assert np.allclose(found, wanted, atol=1e-12)
    assert np.diag(found).tolist() == [0.0] * 4
    chain = [int(np.mean(wanted, axis=1).argmax())]
    while len(chain) < 4:
        chain.append(min(set(range(4)) - set(chain), key=lambda i: wanted[chain[-1]][i]))
    assert greedy_cosine(blocks) in (chain, chain[::-1])
    bare = Blocks(opened("llama"), list(blocks.blocks), 0)
    for made in ([nn.Linear(2, 2)] * 2, [nn.LayerNorm(2), nn.LayerNorm(3)]):
        bare.blocks = [SimpleNamespace(module=one) for one in made]
        with pytest.raises(ValueError, match="no norm weights of one size"):
            module._norms_distance(bare)


def test_only_the_largest_singular_values_count(blocks, monkeypatch):
    monkeypatch.setattr(module, "TOP", 3)
    rows = []
    for block in blocks.blocks:
        own = block.module
        matrices = [own.self_attn.q_proj, own.self_attn.k_proj, own.self_attn.v_proj, own.mlp.gate_proj]
        rows.append(
            np.concatenate([np.linalg.svd(m.weight.detach().double().numpy())[1][:3] for m in matrices])
        )
    assert np.allclose(module._spectrum_distance(blocks), apart(rows), rtol=1e-5)


def test_two_blocks_are_run_in_both_orders(blocks):
    like = blocks.recording.pre(0)
    probes = [0.1 * torch.randn(like.shape, generator=torch.Generator().manual_seed(n)) for n in (0, 1)]
    assert torch.equal(blocks.probe(0, 0.1), probes[0])
    assert like.shape[1] == 32, "two probes of 32 positions"
    wins = np.zeros(4)

    def spread(later, earlier):
        return float(torch.cat([blocks.run(later, blocks.run(earlier, x)) for x in probes]).double().std())

    for i in range(4):
        for j in range(i):
            wins[j if spread(i, j) <= spread(j, i) else i] += 1
    found = causal_pairwise(blocks)
    chain = sorted(range(4), key=lambda i: (-wins[i], blocks.total_norm[i]))
    assert found == oriented(chain, blocks.total_norm)
    assert found in (chain, chain[::-1])


def test_what_blocks_add_to_four_probes_channel_by_channel(blocks, monkeypatch):
    seen = []
    own = module.euclidean
    monkeypatch.setattr(module, "euclidean", lambda rows: seen.append(rows) or own(rows))
    found = activation_flow(blocks)
    (rows,) = seen
    assert SCALES == (0.05, 0.1, 0.5, 1.0)
    for index in range(4):
        parts = []
        for number, scale in enumerate((0.05, 0.1, 0.5, 1.0)):
            x = scale * torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(number))
            added = (blocks.run(index, x) - x)[0].double().numpy()
            parts += [added.mean(0), added.std(0)]
        assert np.allclose(rows[index], np.concatenate(parts), atol=1e-6)
    assert found == oriented(shortest_path(np.array(apart(rows))), blocks.total_norm)


def test_an_ensemble_is_the_mean_place_and_ties_go_to_the_lighter_block(monkeypatch):
    chains = {
        "weight_stats": [2, 0, 1, 3],
        "norm_weights": [2, 1, 0, 3],
        "svd_spectrum": [0, 2, 1, 3],
        "full_weights": [2, 1, 3, 0],
    }
    monkeypatch.setattr(module, "tensor_stats", lambda b: [3, 2, 1, 0])
    for name, chain in chains.items():
        monkeypatch.setattr(module, name, lambda b, chain=chain: chain)
    place = {i: sum(chain.index(i) for chain in chains.values()) for i in range(4)}
    assert place == {0: 6, 1: 6, 2: 1, 3: 11}
    assert ensemble_rank(SimpleNamespace(total_norm=np.array([2.0, 1.0, 3.0, 0.0]))) == [2, 1, 0, 3]
    assert ensemble_rank(SimpleNamespace(total_norm=np.array([1.0, 2.0, 3.0, 0.0]))) == [2, 0, 1, 3]
    other = tensor_ensemble(SimpleNamespace(total_norm=np.array([2.0, 1.0, 3.0, 0.0])))
    assert other == [2, 1, 3, 0], "another chain of the four"


def test_four_numbers_of_all_weights_of_a_block(blocks, monkeypatch):
    seen = []
    own = module.euclidean
    monkeypatch.setattr(module, "euclidean", lambda rows: seen.append(rows) or own(rows))
    weight_stats(blocks)
    for row, tensors in zip(seen[0], blocks.tensors, strict=True):
        flat = torch.cat([t.double().reshape(-1) for t in tensors.values()])
        wanted = [
            float(flat.norm()),
            float(flat.mean()),
            float(flat.std(correction=0)),
            float(flat.abs().max()),
        ]
        assert row.tolist() == pytest.approx(wanted)
    assert len(seen[0][0]) == 4, "in one vector, not tensor by tensor"


def test_weights_are_compared_a_slice_at_a_time_and_no_second_model_is_held(monkeypatch):
    model = opened("llama")
    held = order_weights.Blocks(model, list(model.blocks), 0)
    own = {p.data_ptr() for p in model.hf.parameters()}
    assert all(t.data_ptr() in own and t.dtype == torch.float32 for one in held.tensors for t in one.values())
    flat = [torch.cat([t.double().reshape(-1) for t in one.values()]) for one in held.tensors]
    wanted = torch.stack([torch.stack([one @ other for other in flat]) for one in flat]).numpy()
    assert np.allclose(held.total_norm, np.sqrt(np.diag(wanted)), rtol=1e-12)
    for at_once in (1 << 16, 7):
        monkeypatch.setattr(order_weights, "AT_ONCE", at_once)
        assert np.allclose(order_weights._gram(held.tensors), wanted, rtol=1e-11)


def test_annealing_takes_what_is_no_worse_and_now_and_then_what_is_a_little_worse(monkeypatch):
    """Of orders that all cost the same every proposal is taken, so each is measured alone; far above none
    is."""
    monkeypatch.setattr(order_loss, "PROPOSALS", 60)
    for worse, alone in ((0.0, True), (50.0, False)):
        sizes = []

        def losses(orders, worse=worse, sizes=sizes):
            sizes.append(len(orders))
            return torch.tensor([10.0 if order == list(range(4)) else 10.0 + worse for order in orders])

        order_loss.simulated_annealing(losses, list(range(4)), np.random.default_rng(0))
        assert (set(sizes) == {1}) == alone

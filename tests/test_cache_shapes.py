"""Caches in fewer numbers: rotations undone, heads merged by what is asked, one latent for all heads."""

from __future__ import annotations

import pytest
import torch

import regraft
from families import FAMILIES
from regraft.sweeps.prefix_cache import Cone
from regraft.systems import rotation
from regraft.systems.cache_past import Past
from regraft.systems.cache_run import kept_of, pasts_of, suffix_streams
from regraft.systems.cache_strategies import keep, strategy
from regraft.systems.rotation import Rotation, RotationError, rotation_of
from tools.small_architectures import tiny

LENGTH, PREFIX = 40, 24


def recorded(name):
    torch.manual_seed(0)
    model = regraft.load(FAMILIES[name]())
    ids = torch.randint(5, 90, (2, LENGTH), generator=torch.Generator().manual_seed(1)).tolist()
    return model.record(ids, attention_mask="all")


@pytest.fixture(scope="module")
def text():
    return recorded("llama")


def far(one, other):
    return float(((one - other).abs().max() / other.abs().max()).detach())


def by_hand(module, recording, block):
    """Keys before they are rotated: the projection of the normed stream, and nothing else."""
    normed = module.input_layernorm(recording.pre(block))
    keys = module.self_attn.k_proj(normed)
    return keys.unflatten(-1, (-1, module.self_attn.head_dim)).transpose(1, 2)


@pytest.mark.parametrize("block", [0, 2])
def test_undone_keys_are_those_of_the_projection(text, block):
    with torch.no_grad():
        wanted = by_hand(text.model.blocks[block].module, text, block)[:, :, :PREFIX]
    past = pasts_of(text, PREFIX)[block]
    turn = past.rotation()
    assert turn.halves
    assert far(turn.undone(past.keys_BGPK), wanted) <= text.model.rounding
    assert far(turn.done(wanted), past.keys_BGPK) <= text.model.rounding
    assert far(past.keys_BGPK, wanted) > 0.1


@pytest.mark.parametrize("halves", [True, False])
def test_a_turn_of_neighbours_or_halves_is_a_product_of_complex_numbers(halves):
    drawn = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 2, 5, 10, generator=drawn, dtype=torch.float64)  # two of ten numbers do not turn
    angles = torch.randn(1, 5, 4, generator=drawn, dtype=torch.float64)
    both = torch.cat([angles, angles], -1) if halves else angles.repeat_interleave(2, -1)
    turn = Rotation(1.5 * both.cos(), 1.5 * both.sin(), halves)
    pairs = (keys[..., :4], keys[..., 4:8]) if halves else (keys[..., :8:2], keys[..., 1:8:2])
    turned = torch.complex(*pairs) * torch.polar(torch.full_like(angles, 1.5), angles)[:, None]
    parts = (turned.real, turned.imag)
    wanted = torch.cat(parts, -1) if halves else torch.stack(parts, -1).flatten(-2)
    assert torch.allclose(turn.done(keys), torch.cat([wanted, keys[..., 8:]], -1))
    assert torch.allclose(turn.undone(turn.done(keys)), keys)


@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_keys_whose_rotation_is_not_known_are_refused(name):
    with pytest.raises(RotationError, match="leave latent and rotation=undone out"):
        rotation_of(recorded(name), 0)


@pytest.mark.parametrize("name", ["smollm3", "cohere2", "glm", "qwen3", "ernie4_5", "gpt_oss"])
def test_every_blocks_keys_are_undone_in_its_own_way(name):
    """Some blocks do not rotate, some turn neighbours: held to what the projection (and norm) gives."""
    model = regraft.load(tiny("causal", name))
    text = model.record([[*range(5, 5 + LENGTH)]], attention_mask="all")
    turned = set()
    for block, past in enumerate(pasts_of(text, PREFIX)):
        attention = model.blocks[block].module.self_attn
        made = []
        name_of = "k_norm" if hasattr(attention, "k_norm") else "k_proj"
        handle = getattr(attention, name_of).register_forward_hook(lambda m, args, out: made.append(out))
        with torch.no_grad():
            model.run(input_ids=text.ids_BT)
        handle.remove()
        width = past.keys_BGPK.shape[-1]
        wanted = made[0].reshape(1, LENGTH, -1, width).transpose(1, 2)[:, :, :PREFIX]
        assert far(past.rotation().undone(past.keys_BGPK), wanted) <= model.rounding, block
        turned.add(far(past.keys_BGPK, wanted) > 0.01)
    assert turned == ({True, False} if name in ("smollm3", "cohere2") else {True})


def test_a_turn_that_does_not_make_one_token_alike_everywhere_is_not_believed(text, monkeypatch):
    monkeypatch.setitem(text.model.proved, "rotation of block 0", float("nan"))
    with pytest.raises(RotationError, match="in a way that is not known"):
        rotation_of(text, 0)


def test_keys_that_no_way_of_turning_makes_alike_are_refused(monkeypatch):
    text = recorded("llama")
    noise = torch.randn(1, 2, rotation.PLACES, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Cone, "keys_of", lambda self, block, stream: noise)
    with pytest.raises(RotationError, match="in a way that is not known"):
        rotation_of(text, 0)


@pytest.mark.parametrize("words", ["rank:r=99", "rank:r=99,rotation=undone", "latent:r=999"])
def test_all_directions_lose_nothing(text, words):
    found = suffix_streams(text, [kept_of(strategy(words), pasts_of(text, PREFIX))], PREFIX)[0]
    assert far(found, text.post(3)[:, PREFIX:]) <= text.model.rounding


def test_a_latent_holds_one_row_a_token_and_its_directions_once(text):
    kept = keep(strategy("latent:r=5"), pasts_of(text, PREFIX)[1])
    width = 2 * kept.keys_BGPK.shape[1] * kept.keys_BGPK.shape[3]
    assert kept.nbytes == 4 * (2 * PREFIX * 5 + 5 * width)


def test_few_directions_lose_less_where_the_rotation_is_undone():
    """Keys of one direction before they turn are of two behind it, as many as turn together."""
    angles = torch.linspace(0, 9, 30, dtype=torch.float64)[None, :, None].expand(1, 30, 4)
    turn = Rotation(angles.cos(), angles.sin(), halves=True)
    drawn = torch.Generator().manual_seed(0)
    line = torch.randn(1, 1, 30, 1, generator=drawn, dtype=torch.float64) * torch.ones(4, dtype=torch.float64)
    past = Past(turn.done(line), line, lambda last: line[..., 0], rotation=lambda: turn)
    undone, as_kept = (keep(strategy(f"rank:r=1,rotation={how}"), past) for how in ("undone", "kept"))
    assert far(undone.keys_BGPK, past.keys_BGPK) < 1e-12
    assert far(as_kept.keys_BGPK, past.keys_BGPK) > 0.1


def test_a_merged_key_is_the_nearest_to_what_the_queries_ask():
    drawn = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(1, 2, 12, 6, generator=drawn, dtype=torch.float64) for _ in range(2))
    queries = torch.randn(1, 4, 12, 6, generator=drawn, dtype=torch.float64)
    queries[:, :2] *= 10  # the first key head is asked far more
    past = Past(keys, values, lambda last: keys[..., 0], queries=lambda: queries)

    def off(kept):
        wrong = (kept.keys_BGPK - keys).detach()
        return float(sum((queries[0, h] @ wrong[0, h // 2].T).square().sum() for h in range(4)))

    fitted, mean = (keep(strategy(f"heads:merge=2,fit={how}"), past) for how in ("queries", "mean"))
    assert off(fitted) < 0.1 * off(mean)
    for step in (1e-3, -1e-3):  # a minimum: nothing near it is better
        moved = keep(strategy("heads:merge=2,fit=queries"), past)
        moved.keys_BGPK[..., 2] += step
        assert off(moved) > off(fitted)
    assert torch.equal(fitted.values_BGPK, mean.values_BGPK)
    assert fitted.nbytes == mean.nbytes


def test_where_no_query_asks_a_merged_key_is_the_mean():
    drawn = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(1, 2, 12, 6, generator=drawn, dtype=torch.float64) for _ in range(2))
    queries = torch.randn(1, 4, 12, 6, generator=drawn, dtype=torch.float64)
    queries[..., 0] = 0
    past = Past(keys, values, lambda last: keys[..., 0], queries=lambda: queries)
    found = keep(strategy("heads:merge=2,fit=queries"), past).keys_BGPK
    assert torch.allclose(found[0, 0, :, 0], keys[0, :, :, 0].mean(0))
    assert not torch.allclose(found[0, 0, :, 1], keys[0, :, :, 1].mean(0))


def test_heads_that_are_alike_merge_into_themselves_however(text):
    past = pasts_of(text, PREFIX)[0]
    same = Past(past.keys_BGPK[:, :1].expand(-1, 2, -1, -1), past.values_BGPK, past.attention,
                queries=past.queries)  # fmt: skip
    for how in ("queries", "mean"):
        assert far(keep(strategy(f"heads:merge=2,fit={how}"), same).keys_BGPK, same.keys_BGPK) <= 1e-5
    assert past.queries().shape[2] == PREFIX

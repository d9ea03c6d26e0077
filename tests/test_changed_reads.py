"""What a sweep reads in changed runs, beside the live model under the same changes; single heads' queries,
keys and values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import naive
from regraft.model.parts import in_width
from regraft.model.sites import SiteError
from regraft.sweeps import changed_reads
from regraft.sweeps.metrics import kl_to_clean, stream_distance
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Add, Replace, Scale, Variant, Zero
from small import ids, opened

SITES = (
    "0.resid_post",
    "1.resid_pre",
    "1.resid_mid",
    "1.attn_out",
    "2.mlp_out",
    "2.z",
    "1.v",
    "1.q.0",
    "2.mlp_act",
)
FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "mixtral", "bert", "qwen3_5"]


def there(model, sites):
    found = []
    for site in sites:
        try:
            model.site(site)
        except SiteError:
            continue
        found.append(site)
    return found


def changes(model):
    shift = torch.randn(model.width, generator=torch.Generator().manual_seed(1))
    return [
        Variant([Add("1.resid_pre", shift, -1)]),
        Variant([Add("1.resid_post", shift, 1)]),
        Variant([Scale("0.mlp_out", 0.0), Add("2.resid_post", shift)]),
        Variant([Zero("1.resid_mid", 0)] if there(model, ["1.resid_mid"]) else [Zero("1.resid_post", 0)]),
        Variant(),
    ]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("exact", [False, True])
def test_reads_are_those_of_the_live_model_under_the_same_changes(name, exact):
    model, texts = opened(name), [ids(6, 20), ids(4, 21)]
    sites = there(model, SITES)
    assert len(sites) >= 6
    variants = changes(model)
    recording = model.record(texts, attention_mask="all")
    result = sweep(recording, variants, stream_distance(), exact=exact, read=sites)
    for number, variant in enumerate(variants):
        live = model.activations(texts, sites, variant=variant)
        for site in sites:
            read = result.reads[site][number]
            assert read.shape == recording[site].shape
            real = torch.cat([read[row, : len(text)] for row, text in enumerate(texts)])
            torch.testing.assert_close(
                real, torch.from_numpy(live[site].values), atol=3e-5, rtol=1e-4, msg=f"{site} {variant}"
            )
    for site in sites:
        assert torch.equal(result.reads[site][-1], recording[site]), "what is not run is the clean run's"
    plain = sweep(recording, variants, stream_distance(), exact=exact)
    torch.testing.assert_close(
        plain.values["stream_distance"], result.values["stream_distance"], atol=1e-5, rtol=1e-4
    )


def test_a_route_is_read_where_a_block_comes_last():
    model = opened("llama")
    recording = model.record([ids(5, 20)])
    way = Route.order([0, 2, 2])
    result = sweep(recording, way, stream_distance(), read="2.resid_post")
    with torch.no_grad():
        stream = recording.pre(0)
        for block in (0, 2, 2):
            stream = recording.run_block(block, stream, 1)
    torch.testing.assert_close(result.reads["2.resid_post"][0], stream)
    with pytest.raises(ValueError, match=r"1\.z is never reached in variant 1: its route does not pass"):
        sweep(recording, [Variant(), Variant(route=way)], stream_distance(), read=["1.z"])
    other = Route.replace(len(model.blocks), {1: model.blocks[0].module})
    with pytest.raises(ValueError, match=r"1\.z is inside a block that the route of variant 0 replaces"):
        sweep(recording, other, stream_distance(), read=["1.z"])
    read = sweep(recording, other, stream_distance(), read=["1.resid_post"]).reads["1.resid_post"][0]
    torch.testing.assert_close(
        read, recording.run_block(1, recording.pre(1), 1, module=model.blocks[0].module)
    )


def test_both_stacks_are_read():
    model, texts, answers = opened("t5"), [ids(6, 1), ids(3, 2)], [ids(4, 3), ids(2, 4)]
    recording = model.record(texts, answers, attention_mask="all")
    change = Variant([Scale("encoder.1.mlp_out", 2.0)])
    sites = ["encoder.1.resid_post", "decoder.0.attn_out", "decoder.1.cross_out"]
    result = sweep(recording, change, kl_to_clean(), read=sites)
    for site in sites[::2]:
        live = model.activations(texts, site, completions=answers, variant=change)[site].values
        lengths = [len(t) for t in texts] if site.startswith("encoder") else [len(a) + 1 for a in answers]
        real = torch.cat([result.reads[site][0][row, :length] for row, length in enumerate(lengths)])
        torch.testing.assert_close(real, torch.from_numpy(live), atol=3e-5, rtol=1e-4)


def test_recordings_are_joined_and_what_is_too_much_is_refused(monkeypatch):
    model = opened("llama")
    parts = [model.record([ids(5, 1)]), model.record([ids(3, 2), ids(3, 3)])]
    result = sweep(parts, [Zero("0.attn_out"), Variant()], stream_distance(), read=["1.z"])
    heads = model.tap("1.z").heads
    assert result.reads["1.z"].shape == (2, 3, 5, heads, in_width(model.tap("1.z").module) // heads)
    assert bool(result.reads["1.z"][:, 1:, 3:].isnan().all())
    assert torch.equal(result.reads["1.z"][1, 1:, :3], parts[1]["1.z"])
    numbers = 3 * 5 * model.width
    monkeypatch.setattr(changed_reads, "MOST_FLOATS", numbers)
    sweep(parts[0], [Variant(), Variant()], stream_distance(), read=["1.resid_pre"])
    monkeypatch.setattr(changed_reads, "MOST_FLOATS", numbers - 1)
    with pytest.raises(ValueError, match=rf"3 rows at 1 sites are {numbers:,} numbers, more than"):
        sweep(parts[0], [Variant(), Variant()], stream_distance(), read=["1.resid_pre"])
    for outer in ("logits", "embed"):
        with pytest.raises(SiteError, match=f"{outer} cannot be read from a sweep"):
            sweep(parts[0], [Variant()], stream_distance(), read=[outer])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", ["q", "k", "v"])
def test_one_heads_query_key_or_value(name, kind):
    """Read and written as its share of the whole, wherever the projection is packed; grouped heads by their
    own number."""
    model = opened(name)
    recording = model.record([ids(6, 5)])
    whole = recording[f"1.{kind}"]
    heads = model.tap(f"1.{kind}").heads
    for head in range(heads):
        torch.testing.assert_close(recording[f"1.{kind}.{head}"], whole[:, :, head], rtol=1e-5, atol=1e-6)
    changed = whole.clone()
    changed[:, :, 1] = 0.5
    one = Variant([Replace(f"1.{kind}.1", torch.full((whole.shape[-1],), 0.5))])
    all_of_it = Variant([Replace(f"1.{kind}", changed.flatten(2))])
    result = sweep(recording, [one, all_of_it], stream_distance())
    values = result.values["stream_distance"][:, 0]
    assert float(values[0]) > 1e-4
    torch.testing.assert_close(values[0], values[1], rtol=1e-3, atol=1e-6)
    wanted = naive.logits(model, recording, all_of_it)
    live = model.activations([ids(6, 5)], "logits", variant=one)["logits"].values
    np.testing.assert_allclose(live, wanted[0].numpy(), atol=2e-5)
    with pytest.raises(
        SiteError, match=f"1.{kind}.{heads} does not exist here: this block has {heads} heads"
    ):
        recording[f"1.{kind}.{heads}"]
    with pytest.raises(SiteError, match=r"head\.N, q\.N, k\.N, v\.N and neuron\.N"):
        model.site("1.z.0")

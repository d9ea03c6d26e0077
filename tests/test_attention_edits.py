"""Edges of attention that are cut: what a query may not read does not reach it, and nothing else is
changed."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import regraft
from families import FAMILIES
from regraft.model import attention_mask
from regraft.model.attention_mask import mask_argument
from regraft.model.sites import SiteError
from tools.small_architectures import tiny

IDS = [7, 11, 13, 17, 19, 23, 29, 31, 37, 41]
OTHER = [7, 11, 13, 43, 19, 23, 29, 31, 37, 41]
KEY = 3
PLAIN = ("llama", "gpt2", "qwen3", "gpt_neox", "olmo2", "phi3", "gptj", "smollm3", "qwen3_moe")
"""Decoders without a window that take position ids: positions and mask are all that tells what is read."""
ATTENDING = sorted(set(FAMILIES) - {"mamba2", "qwen3_5"})


@functools.cache
def opened(name):
    torch.manual_seed(0)
    return regraft.load(FAMILIES[name]())


def recorded(model, *rows):
    return model.record(list(rows), list(rows) if model.two_stacks else None, attention_mask="all")


def cuts(model, **places):
    """The same edges in every block of every stack."""
    return regraft.Variant([regraft.CutAttention(b.address, **places) for b in model.blocks])


def end(recording, variant, exact=False):
    """The stream behind the last block, (B, T, D)."""
    site = f"{recording.model.blocks[-1].address}.resid_post"
    return regraft.sweep(recording, variant, regraft.stream_distance(), exact=exact, read=site).reads[site][0]


def apart(one, other):
    return float((one - other).detach().abs().max() / other.detach().abs().max())


@pytest.mark.parametrize("name", ATTENDING)
def test_a_token_that_nobody_may_read_is_felt_nowhere_else(name):
    model = opened(name)
    if model.two_stacks:  # the decoder reads the encoder's token by cross-attention: only its own is another
        rows = [model.record([IDS], [ids], attention_mask="all") for ids in (IDS, OTHER)]
        behind = [
            p for p in range(rows[0].positions) if int(rows[0].ids_BT[0, p]) == int(rows[1].ids_BT[0, p])
        ]
        key = next(p for p in range(rows[0].positions) if p not in behind)
        first = model.parts.stacks[1].first
        edits = [regraft.CutAttention(b.address, keys=key) for b in model.blocks[first:]]
        variant = regraft.Variant(edits)
    else:
        rows, variant = [recorded(model, ids) for ids in (IDS, OTHER)], cuts(model, keys=KEY)
        behind = [p for p in range(len(IDS)) if p != KEY]
    cut = [end(one, variant)[:, behind] for one in rows]
    free = [one.post(len(model.blocks) - 1)[:, behind] for one in rows]
    assert apart(*cut) <= model.rounding
    assert apart(*free) > 20 * model.rounding


@pytest.mark.parametrize("name", PLAIN)
def test_closed_to_all_but_a_few_keys_is_a_run_on_those_positions(name):
    """The last query may read itself and the first token: as a text of the two, where they stand."""
    model = opened(name)
    last, between = len(IDS) - 1, list(range(1, len(IDS) - 1))
    found = end(recorded(model, IDS), cuts(model, position=last, keys=between))[0, last]
    ids, places = torch.tensor([[IDS[0], IDS[last]]]), torch.tensor([[0, last]])
    seen = []
    handle = model.blocks[-1].module.register_forward_hook(lambda m, a, out: seen.append(out))
    both = torch.ones_like(ids)  # without a mask, a gap between positions means another text
    with torch.no_grad():
        model.hf.eval()(ids, position_ids=places, attention_mask=both, use_cache=False)
    handle.remove()
    wanted = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert apart(found, wanted[0, -1]) <= model.rounding


@pytest.mark.parametrize("name", ATTENDING)
def test_the_live_model_says_what_the_sweep_does(name):
    model = opened(name)
    recording = recorded(model, IDS)
    last = model.blocks[-1].index
    edits = [
        regraft.CutAttention(model.blocks[last].address, position=[-1, -2], keys=[6, 7]),
        regraft.CutAttention(model.blocks[last - 1].address, position=-1, keys=[0, 4]),
    ]
    seen = []
    handle = model.blocks[-1].module.register_forward_hook(lambda m, a, out: seen.append(out))
    with regraft.changed(model, edits):
        model.run(**recording.inputs)
    handle.remove()
    live = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
    found = end(recording, regraft.Variant(edits))
    assert apart(live, found) <= model.rounding
    assert apart(found, recording.post(last)) > 20 * model.rounding


def test_prompts_of_several_lengths_and_rows_of_several_kinds_go_together():
    model = opened("llama")
    recording = recorded(model, IDS, IDS[:6])
    variants = [
        regraft.Variant([regraft.CutAttention(2, position=-1, keys=[1, 2])]),
        regraft.Variant([regraft.Zero("2.mlp_out", position=-1)]),
        regraft.Variant([regraft.CutAttention(2, position=-1, keys=0), regraft.Scale("3.head.1", 0.5)]),
        regraft.Variant([regraft.CutAttention(2, position=0, keys=5)]),  # behind the query: never read
    ]
    read = "3.resid_post"
    metric = regraft.stream_distance()
    together = regraft.sweep(recording, variants, metric, read=read)
    for number, variant in enumerate(variants):
        alone = regraft.sweep(recording, variant, metric, exact=True, read=read).reads[read][0]
        assert apart(together.reads[read][number], alone) <= model.rounding
        for prompt, ids in enumerate((IDS, IDS[:6])):
            one = end(recorded(model, ids), variant)[0]
            assert apart(together.reads[read][number][prompt, : len(ids)], one) <= model.rounding
    assert apart(together.reads[read][3], recording.post(3)) <= model.rounding


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2", "gpt_oss"])
def test_cuts_on_suffixes_are_those_of_whole_rows(name):
    model = opened(name)
    ids = torch.randint(5, 90, (48,), generator=torch.Generator().manual_seed(3)).tolist()
    recording = recorded(model, ids)
    variants = [
        regraft.Variant([regraft.CutAttention(b, position=[44, 46], keys=key)])
        for b in (1, 2)
        for key in (20, 43, [0, 45])
    ]
    metric = [regraft.loss(), regraft.kl_to_clean()]
    quick, slow = (regraft.sweep(recording, variants, metric, exact=exact) for exact in (False, True))
    assert quick.work.executed < slow.work.executed / 2
    for one in quick.values:
        assert torch.allclose(quick.values[one], slow.values[one], atol=1e-5)


def test_the_pattern_is_the_clean_one_without_what_was_cut_by_hand():
    """The output of one attention against weights set to 0 and divided by their sum."""
    torch.manual_seed(0)
    model = regraft.load(FAMILIES["llama"](), attention="eager")
    recording = recorded(model, IDS)
    weights_HTT = recording["1.pattern"][0].clone()
    z = recording["1.z"][0]
    values = recording["1.v"][0].repeat_interleave(2, dim=1)
    assert torch.allclose(torch.einsum("hts,shd->thd", weights_HTT, values), z, atol=1e-5)
    weights_HTT[:, -1, [1, 2]] = 0
    weights_HTT[:, -1] /= weights_HTT[:, -1].sum(-1, keepdim=True)
    z[-1] = torch.einsum("hs,shd->hd", weights_HTT[:, -1], values)
    wanted = end(recording, regraft.Replace("1.z", z.flatten(1)[None]))
    found = end(recording, regraft.CutAttention(1, position=-1, keys=[1, 2]))
    assert apart(found, wanted) <= 1e-5


def test_text_is_written_without_reading_what_is_cut():
    model = regraft.load()
    prompt = "The capital of France is"
    edits = [regraft.CutAttention(b, position="new", keys="prompt") for b in range(12)]
    free = model.generate(prompt, tokens=6)
    cut = model.generate(prompt, tokens=6, edits=edits)
    rows = model.tokenizer(prompt)["input_ids"]
    written, ahead = [], []
    for token in cut.ids[0]:  # the same without a cache, by sweeps: what was written is likeliest there too
        ids = rows + written
        new = list(range(len(rows), len(ids)))
        keys = list(range(len(rows)))
        variant = [regraft.CutAttention(b, position=new, keys=keys) for b in range(12)] if new else []
        clean = model.record([ids], attention_mask="all")
        last = end(clean, regraft.Variant(variant)) if new else clean.post(11)
        logits = clean.head(last)[0, -1]
        ahead.append(float((logits.max() - logits[token]) / logits.abs().max()))
        written.append(token)
    assert max(ahead) <= model.rounding
    assert cut.texts != free.texts


@pytest.mark.parametrize(
    ("name", "block", "why"),
    [
        ("mamba2", 1, "this block has no attention"),
        ("qwen3_5", 0, "linear attention forms no pattern"),
    ],
)
def test_blocks_without_edges_are_refused_with_the_reason(name, block, why):
    recording = recorded(opened(name), IDS)
    with pytest.raises(SiteError, match=why):
        regraft.sweep(recording, regraft.CutAttention(block, keys=1), regraft.loss())
    with pytest.raises(SiteError, match="CutAttention forbids"):
        regraft.sweep(recorded(opened("llama"), IDS), regraft.Zero("1.pattern"), regraft.loss())


def test_positions_that_are_not_there_and_queries_without_a_key_are_refused():
    recording = recorded(opened("llama"), IDS)
    for edit, why in (
        (regraft.CutAttention(1, keys=10), "position 10 .* is outside the prompt of 10 tokens"),
        (regraft.CutAttention(1, position=-11), "position -11 .* is outside"),
        (regraft.CutAttention(1, position=4, own=True), "takes every key from a query"),
    ):
        with pytest.raises(ValueError, match=why):
            regraft.sweep(recording, edit, regraft.loss())


class Leaky(nn.Module):
    """An attention beside which every position also gets a share of the sum of those before it."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, hidden_states, **kwargs):
        out, *rest = self.own(hidden_states=hidden_states, **kwargs)
        return (out + 0.1 * hidden_states.cumsum(1), *rest)


def test_a_block_that_reads_keys_in_another_way_as_well_is_refused():
    torch.manual_seed(0)
    hf = FAMILIES["llama"]()
    hf.model.layers[2].self_attn = Leaky(hf.model.layers[2].self_attn)
    model = regraft.load(hf)
    assert mask_argument(model, 1).dtype == torch.bool
    with pytest.raises(SiteError, match="still reads the key in another way"):
        mask_argument(model, 2)


def test_a_mask_that_is_no_argument_is_refused(monkeypatch):
    monkeypatch.setattr(attention_mask, "NAME", "another_name")
    with pytest.raises(SiteError, match="the mask is no argument of this model's blocks"):
        mask_argument(regraft.load(FAMILIES["llama"]()), 1)


def test_attention_beside_a_scan_is_refused_where_the_scan_reads_on():
    model = regraft.load(tiny("causal", "falcon_h1"))
    with pytest.raises(SiteError, match="in another way"):
        mask_argument(model, 0)

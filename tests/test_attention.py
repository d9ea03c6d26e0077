"""The survey of attention: state by formula and counted, patterns head by head, recall."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest
import torch
import xarray as xr
from transformers.modeling_utils import AttentionInterface

import regraft
from families import FAMILIES
from regraft.core.structure import walk_tensors
from regraft.experiments.observe.head_patterns import MEASURES, PatternReading, measured_patterns, twice
from regraft.experiments.observe.recall_tasks import TEXTS, _asked, _repeated, recall_dataset
from regraft.model import attention_patterns
from regraft.model.attention_patterns import read_patterns
from regraft.model.sites import SiteError
from regraft.reporting.drawings import drawing_of
from regraft.reporting.figures.attention_figures import attention_panels
from regraft.reporting.headlines import headline_of
from regraft.systems import state_bytes
from regraft.systems.mixer_work import decode_macs, prefill_macs
from regraft.systems.mixers import mixers_of
from regraft.systems.state_bytes import block_states
from tools.small_architectures import tiny

KINDS = {
    "gpt2": {"full"},
    "qwen3": {"grouped"},
    "falcon": {"single-key"},
    "mistral": {"windowed grouped"},
    "gpt_oss": {"grouped", "windowed grouped"},
    "gemma2": {"grouped", "windowed grouped"},
    "llama4_text": {"grouped", "windowed grouped"},
    "deepseek_v2": {"latent"},
    "deepseek_v3": {"latent"},
    "deepseek_v32": {"indexed latent"},
    "diffllama": {"differential"},
    "rwkv": {"RWKV + token shift"},
    "lfm2": {"short convolution", "grouped"},
    "bamba": {"selective scan", "grouped"},
    "jamba": {"selective scan", "grouped"},
    "qwen3_5_text": {"gated delta", "grouped"},
    "olmo_hybrid": {"gated delta", "grouped"},
    "minimax": {"lightning", "grouped"},
    "mamba": {"selective scan"},
    "mamba2": {"selective scan"},
    "falcon_h1": {"selective scan + grouped"},
    "bloom": {"full"},
    "gpt_bigcode": {"single-key"},
    "phi3": {"windowed grouped"},
}
"""A family of every kind, and the kinds of its blocks."""
IDS = [7, 11, 13, 17, 19, 23, 29, 31, 37, 41]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_state_by_formula_is_what_the_models_own_cache_holds(name):
    model = regraft.load(tiny("causal", name))
    states, why = block_states(model)
    assert why == ""
    assert {state.kind for state in states} == KINDS[name]
    for state in states:
        assert state.counted == tuple(state.bytes_at(t) for t in state.counted_at)
        assert sum(state.counted) > 0
        assert len(set(state.counted_at)) == len(state.counted_at) >= 2


@pytest.mark.parametrize("name", ["qwen3_5_text", "mamba2", "mamba", "minimax", "rwkv", "falcon_h1", "gpt2"])
def test_states_that_are_kept_wide_are_counted_wide_in_half_precision(name):
    model = regraft.load(tiny("causal", name).to(torch.bfloat16))
    states, _ = block_states(model)
    assert all(state.agrees for state in states)
    assert states[0].itemsize == 2


def test_a_window_stops_the_growth_and_one_token_more_is_counted():
    states, _ = block_states(regraft.load(FAMILIES["mistral"]()))
    window = states[0].mixers[0].window
    assert window == 5
    assert states[0].counted_at[-1] > window
    per_token = states[0].bytes_at(1)
    assert [states[0].bytes_at(t) for t in (3, 4, 5, 100)] == [per_token * t for t in (3, 4, 4, 4)]


@pytest.mark.parametrize("name", ["mistral", "modernbert", "gpt2", "bert"])
def test_pairs_are_those_that_the_models_own_mask_allows(name):
    model = regraft.load(FAMILIES[name]())
    text = model.record(
        [[7, *range(20, 59)], [7, *range(20, 58)]], attention_mask="all"
    )  # padded: written out
    for block in model.blocks:
        (mixer,) = mixers_of(block, model.hf.config)
        call = text.taken.calls[block.index]
        allowed = next(t for _, t in walk_tensors(call.nested()) if t.dim() == 4 and t.dtype == torch.bool)
        matrices = prefill_macs([mixer], 1, model.causal) - mixer.pair
        pairs = (prefill_macs([mixer], 40, model.causal) - 40 * matrices) // mixer.pair
        assert pairs == int(allowed[0].sum())


def test_an_encoder_keeps_nothing_and_a_fixed_state_counts_against_the_weights():
    model = regraft.load(FAMILIES["bert"]())
    data = regraft.attention(model, prompts=["5,6,7,8,9"])
    assert not data.state.values.any()
    assert np.isnan(data.decode_work.values).all()
    assert "they keep nothing" in drawing_of(data).finding(data)
    mixed = regraft.load(tiny("causal", "falcon_h1"))
    data = regraft.attention(mixed, prompts=["5,6,7,8,9"], tokens=2)
    weights = sum(p.numel() * 4 for p in mixed.hf.parameters())
    fixed, per_token = data.state_fixed.values.sum(), data.state_per_token.values.sum()
    assert fixed > 0
    assert data.attrs["passes_weights"] == pytest.approx((weights - fixed) / per_token)


def test_what_holds_its_state_elsewhere_is_told_and_not_counted():
    states, why = block_states(regraft.load(tiny("causal", "recurrent_gemma")))
    assert "in its own modules" in why
    assert all(state.counted is None and not state.agrees for state in states)
    assert {"gated recurrence", "windowed grouped"} == {state.kind for state in states}
    _, why = block_states(regraft.load(FAMILIES["bert"]()))
    assert "encoder keeps nothing" in why
    _, why = block_states(regraft.load(FAMILIES["t5"]()))
    assert "keeps the encoder's keys as well" in why


def test_work_is_that_of_every_pair_and_every_matrix():
    block = regraft.load(FAMILIES["mistral"]()).blocks[0]
    (mixer,) = mixers_of(block, regraft.load(FAMILIES["mistral"]()).hf.config)
    matrices = 32 * 32 + 2 * 32 * 16 + 32 * 32
    pairs = sum(min(t, 5) for t in range(1, 21))
    assert prefill_macs([mixer], 20) == 20 * matrices + pairs * 4 * 8 * 2
    assert decode_macs([mixer], 20) == matrices + 5 * 4 * 8 * 2
    assert decode_macs([mixer], 2) == matrices + 3 * 4 * 8 * 2


@pytest.mark.parametrize(
    "name",
    ["gpt2", "mistral", "qwen3", "gemma2", "gpt_oss", "bert", "t5", "bart", "gptj", "bloom", "modernbert"],
)
def test_weights_head_by_head_are_those_that_attention_returns(name):
    torch.manual_seed(0)
    hf = FAMILIES[name]()
    model = regraft.load(hf)
    before = hf.config._attn_implementation
    text = model.record([IDS], [IDS] if model.two_stacks else None, attention_mask="all")
    found = []
    for block in model.blocks:
        heads = []
        read_patterns(text, block.index, lambda head, weights, heads=heads: heads.append(weights))
        found.append(torch.stack(heads, dim=1))
    assert hf.config._attn_implementation == before
    eager = regraft.load(hf, attention="eager")
    again = eager.record([IDS], [IDS] if model.two_stacks else None, attention_mask="all")
    for block, weights in zip(eager.blocks, found, strict=True):
        assert torch.allclose(again.attention_weights(block.index), weights, atol=1e-5)


def test_weights_that_do_not_give_the_blocks_output_are_not_believed(monkeypatch):
    text = regraft.load(FAMILIES["llama"]()).record([IDS], attention_mask="all")
    monkeypatch.setattr(attention_patterns, "_masked", lambda scores, mask, head, causal: scores)
    with pytest.raises(SiteError, match="do not give the block's own output"):
        read_patterns(text, 1, lambda head, weights: None)
    text = regraft.load(FAMILIES["mamba2"]()).record([IDS], attention_mask="all")
    with pytest.raises(SiteError, match="this block has no attention"):
        read_patterns(text, 1, lambda head, weights: None)


def test_weights_are_as_wide_as_the_model_and_its_function_is_its_own_again():
    model = regraft.load(FAMILIES["qwen3"]().double())
    text = model.record([IDS], attention_mask="all")
    before = dict(AttentionInterface._global_mapping)
    rows = []
    read_patterns(text, 1, lambda head, weights: rows.append(weights))
    assert rows[0].dtype == torch.float64
    assert dict(AttentionInterface._global_mapping) == before


def test_two_models_in_two_threads_hear_their_own_heads():
    texts = [regraft.load(FAMILIES[n]()).record([IDS], attention_mask="all") for n in ("llama", "gpt2")]
    heard = [[], []]
    inside = threading.Barrier(2, timeout=60)

    def hear(number):
        def listen(head, weights):
            if head == 0:
                inside.wait()  # both functions are in their places now
            heard[number].append(weights)

        read_patterns(texts[number], 1, listen)

    threads = [threading.Thread(target=hear, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text, rows in zip(texts, heard, strict=True):
        alone = []
        read_patterns(text, 1, lambda head, weights, alone=alone: alone.append(weights))
        assert len(rows) == len(alone) == 4
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(rows, alone, strict=True))


def test_differential_heads_are_counted_once():
    model = regraft.load(tiny("causal", "diffllama"))
    found, _, why = measured_patterns(model.record([IDS], attention_mask="all"), {"first": MEASURES["first"]})
    assert not why
    assert found["first"].shape[:2] == (4, 4)


def test_no_pattern_is_kept_whole():
    text = regraft.load(FAMILIES["llama"]()).record([IDS], attention_mask="all")
    shapes = []
    read_patterns(text, 1, lambda head, weights: shapes.append(tuple(weights.shape)))
    assert shapes == [(1, 10, 10)] * 4


def test_measures_of_patterns_that_are_known():
    ids = torch.tensor([[5, 6, 7, 5, 6, 7]])
    places = torch.arange(6)
    reading = PatternReading(ids, places[:, None] - places[None], {})
    hard = torch.zeros(1, 6, 6)
    for query, key in enumerate((0, 0, 1, 1, 2, 3)):
        hard[0, query, key] = 1
    uniform = torch.ones(6, 6).tril()
    uniform = (uniform / uniform.sum(1, keepdim=True))[None]
    told = {name: measure(hard, reading)[0].tolist() for name, measure in MEASURES.items()}
    assert told["entropy"] == [0] * 6
    assert told["distance"] == [0, 1, 1, 2, 2, 2]
    assert told["first"] == [1, 1, 0, 0, 0, 0]
    assert told["previous"] == [0, 1, 1, 0, 0, 0]
    assert told["induction"] == [0, 0, 0, 1, 1, 1]
    assert told["duplicate"] == [0] * 6
    assert MEASURES["entropy"](uniform, reading)[0].tolist() == pytest.approx(
        [math.log(t + 1) for t in range(6)]
    )
    assert MEASURES["duplicate"](uniform, reading)[0].tolist() == pytest.approx(
        [0, 0, 0, 1 / 4, 1 / 5, 1 / 6]
    )


def test_regions_divide_the_attention_of_every_query():
    model = regraft.load()
    text = model.record("It is dark", regions=[["a", "a", "b"]])
    found, _, _ = measured_patterns(text, {})
    assert set(found) == {"region outside", "region a", "region b"}
    assert np.allclose(sum(found.values()), 1, atol=1e-5)
    assert np.allclose(found["region b"][..., :2], 0)


def test_the_survey_of_a_specimen_names_its_induction_head():
    model = regraft.load()
    data = regraft.attention(model, count=2, tokens=4, heads=["6.2", "0.1"], lengths=[100, 1000])
    assert data.attrs["agrees"] == data.attrs["blocks"] == 12
    assert list(data.chosen.values) == ["6.2", "0.1"]
    text = model.record(twice(model, 24, 4, 0), attention_mask="all")
    with torch.no_grad():
        eager = regraft.load(attention="eager").record(twice(model, 24, 4, 0), attention_mask="all")
    weights = eager["6.pattern"][:, 2]
    wanted = []
    for row, ids in zip(weights, text.ids_BT.tolist(), strict=True):
        for query in range(24, 48):
            keys = [k for k in range(1, query + 1) if ids[k - 1] == ids[query]]
            wanted.append(float(row[query, keys].sum()))
    assert float(data.induction.sel(block="6", head=2)) == pytest.approx(np.mean(wanted), abs=1e-5)
    assert np.allclose(data.pattern.sum("key").values, 1, atol=1e-5)
    per_token = data.state_per_token.values.sum()
    weights_bytes = sum(p.numel() * 4 for p in model.hf.parameters())
    assert data.attrs["passes_weights"] == pytest.approx(weights_bytes / per_token)
    assert list(data.state.sum("block").values) == [100 * per_token, 1000 * per_token]


def test_a_model_without_patterns_is_surveyed_and_heads_are_refused():
    model = regraft.load(tiny("causal", "mamba"))
    data = regraft.attention(model, recall=True)
    assert "induction" not in data
    assert set(data.kind.values) == {"selective scan"}
    assert np.isinf(data.attrs["passes_weights"])
    with pytest.raises(ValueError, match=r"3\.head\.0 does not exist here"):
        regraft.attention(model, heads=["3.0"])
    with pytest.raises(ValueError, match=r"write BLOCK\.HEAD"):
        regraft.attention(regraft.load(), heads=["first"])
    with pytest.raises(ValueError, match="less than one token"):
        regraft.attention(regraft.load(), lengths=[0])


def test_a_model_in_which_nothing_mixes_tokens_is_refused(monkeypatch):
    monkeypatch.setattr(state_bytes, "mixers_of", lambda block, config: [])
    with pytest.raises(ValueError, match="there is no attention to survey"):
        regraft.attention(regraft.load(FAMILIES["llama"]()))


def test_a_headline_names_a_head_that_copies_and_none_that_hardly_does():
    data = xr.Dataset(
        {"induction": (("block", "head"), [[0.1, 0.29], [0.2, 0.31]])},
        coords={"block": ["0", "1"]},
        attrs={"experiment": "attention"},
    )
    assert headline_of(data).startswith("Head 1 of block 1 copies what came next last time: 31%")
    data.induction.values[1, 1] = 0.29
    assert headline_of(data) == ""


def test_hybrids_say_which_blocks_form_no_pattern():
    data = regraft.attention(regraft.load(FAMILIES["qwen3_5"]()), prompts=["5,6,7,8,9"], tokens=2)
    assert set(json.loads(data.attrs["no_pattern"])) == {"0", "2"}
    assert np.isfinite(data.entropy.sel(block="1")).all()
    assert np.isnan(data.entropy.sel(block="0")).all()


# recall
# ----------------------------------------------------------------------------------------------------


def test_questions_hold_their_answers_where_they_say():
    drawn = torch.Generator().manual_seed(0)
    question = _asked(96, 4, 6, drawn)
    key = question.ids[-1]
    assert question.ids[question.ids.index(key) + 1] == question.answer
    assert len(question.ids) == 2 * 4 + 6 + 1
    assert question.ids[:-1].count(key) == 1
    assert question.answer in question.choices
    assert len(set(question.choices)) == 4
    again = _repeated(96, 5, drawn)
    assert again.ids[:4] == again.ids[5:]
    assert again.ids[4] == again.answer


class Copies(torch.nn.Module):
    """Logits that say what followed the same token earlier."""

    def forward(self, input_ids, **kwargs):
        logits = torch.zeros(*input_ids.shape, 96)
        for row, ids in enumerate(input_ids.tolist()):
            at = next((k for k in range(len(ids) - 1) if ids[k] == ids[-1]), None)
            if at is not None:
                logits[row, -1, ids[at + 1]] = 1
        return type("Out", (), {"logits": logits})()


def test_who_copies_is_always_right_and_who_guesses_is_as_right_as_chance(monkeypatch):
    model = regraft.load(FAMILIES["llama"]())
    data = recall_dataset(model, 0)
    assert list(data.repeat_size.values) == [4, 16, 64], (
        "two times 256 tokens are more than it has positions for"
    )
    for name in ("repeat", "pair", "far"):
        many = (
            data[f"recall_{name}_chance"].values < 0.2
        )  # of sixteen texts, a share by chance stays under a half
        assert many.any()
        assert (data[f"recall_{name}_among"].values[many] < 0.5).all()
    monkeypatch.setattr(type(model), "run", lambda self, **inputs: Copies()(**inputs))
    data = recall_dataset(model, 0)
    for name in ("repeat", "pair", "far"):
        assert (data[f"recall_{name}"] == 1).all()
        assert data[f"recall_{name}"].attrs["units"].startswith(f"share right of {TEXTS}")


# several models
# ----------------------------------------------------------------------------------------------------


def test_models_side_by_side_are_each_what_they_are_alone(tmp_path):
    few = {"count": 1, "tokens": 2, "lengths": [64, 4096]}
    data = regraft.attention(regraft.load(), beside=["specimen:gpt2", "specimen:tuned"], **few)
    assert data.surveyed.values.tolist() == ["specimen:qwen3", "specimen:gpt2", "specimen:tuned"]
    for number, name in enumerate(data.surveyed.values.tolist()):
        alone = regraft.attention(regraft.load(name), **few)
        one = data.isel(surveyed=number)
        assert one.beside_state.values.tolist() == alone.state.sum("block").values.tolist()
        assert one.beside_mixing_share.values == pytest.approx(alone.mixing_share.values)
        assert float(one.beside_passes_weights) == alone.attrs["passes_weights"]
        assert int(one.beside_weights) == alone.attrs["weights_bytes"]
        assert float(one.beside_agrees) == 1
    assert data.surveyed_kinds.values[0] == "12 grouped"
    captions = [one.caption for one in attention_panels(data)]
    assert sum("specimen:gpt2: 4 full" in caption for caption in captions) == 1
    mib = float(data.beside_state[1, 1]) / 2**20
    assert f"4,096 tokens keeps 24.0 MiB in specimen:qwen3, {mib:,.1f} MiB in" in drawing_of(data).finding(
        data
    )
    with pytest.raises(ValueError, match="no specimen"):
        regraft.attention(regraft.load(), beside=["specimen:gpt3"], **few)

"""Facts that a cache must hold, transformers' own caches, and the specimen that was trained to recall."""

from __future__ import annotations

import json
import random
from importlib import resources

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, QuantizedCache

import regraft
from families import FAMILIES
from regraft.checkpoint import continued, locate
from regraft.checkpoint.locate import CheckpointError
from regraft.core.caching import without_cache
from regraft.experiments.intervene import cache_needles
from regraft.experiments.intervene.cache_needles import DEPTHS, needles, prefix_lengths
from regraft.reporting.figures.cache_figures import cache_figures, cache_finding, cache_panels
from regraft.specimens import almanac
from regraft.specimens.long_pages import page
from regraft.systems.cache_peers import peer_caches
from regraft.systems.cache_run import kept_of, pasts_of
from regraft.systems.cache_strategies import strategy


@pytest.fixture(scope="module")
def recaller():
    return regraft.load("specimen:recall")


@pytest.fixture(scope="module")
def hidden(recaller):
    return needles(recaller, "", 96, 3, 0)


# facts
# ----------------------------------------------------------------------------------------------------


def test_a_fact_stands_at_its_depth_and_the_text_ends_with_its_answer(recaller, hidden):
    tokenizer, prefix = recaller.tokenizer, hidden.prefix
    for row, (ids, count) in enumerate(zip(hidden.recording.ids_BT.tolist(), hidden.answers, strict=True)):
        answer = tokenizer.decode(ids[-count:]).strip()
        before = tokenizer.decode(ids[:prefix])
        name = tokenizer.decode(ids[prefix:-count]).rpartition("What has ")[2].rstrip("?")
        assert f"{name} has {answer}." in before
        at = len(tokenizer(before.partition(f" {name} has {answer}.")[0])["input_ids"])
        assert at == pytest.approx(DEPTHS[row // 3] * (prefix - 9), abs=3)
    assert len({len(row) for row in hidden.recording.ids_BT.tolist()}) == 1


def test_what_is_told_again_is_what_the_model_writes(recaller, hidden):
    """The slow way: text written token by token behind the question, one row at a time."""
    hits = []
    for ids, count in zip(hidden.recording.ids_BT.tolist(), hidden.answers, strict=True):
        written = recaller.generate([ids[:-count]], tokens=count).ids[0]
        hits.append(list(written[:count]) == ids[-count:])
    found = hidden.right(strategy("whole"))
    # one near tie of fifteen facts may fall to the other side in another batch
    off = found - np.array(hits, float).reshape(len(DEPTHS), -1).mean(1)
    assert np.abs(off).sum() <= 1 / 3 + 1e-9
    assert found.mean() >= 0.6, "the specimen recalls most facts"


def test_a_fact_that_was_dropped_is_lost_and_one_that_is_kept_is_not(hidden):
    last = hidden.right(strategy("window:budget=50%"))
    assert last[:2].max() == 0, "what stood at a tenth and three tenths is gone"
    assert last[-1] >= hidden.right(strategy("whole"))[-1] - 0.4
    # eight bits may turn one near tie of fifteen facts
    off = hidden.right(strategy("int8")) - hidden.right(strategy("whole"))
    assert np.abs(off).sum() <= 1 / 3 + 1e-9


def test_an_answer_counts_only_where_all_of_its_tokens_are_right(hidden):
    kept = kept_of(strategy("whole"), hidden.pasts)
    assert len(kept) == len(hidden.pasts)
    ids = hidden.recording.ids_BT
    before, hidden_ids = hidden.right(strategy("whole")), ids.clone()
    ids[:, -1] = 5  # the last digit is another one now
    try:
        assert hidden.right(strategy("whole")).max() == 0 < before.max()
    finally:
        ids.copy_(hidden_ids)


def test_prefixes_that_are_tried_hold_a_fact():
    assert prefix_lengths(448) == [112, 224, 448]
    assert prefix_lengths(96) == [24, 48, 96]
    assert prefix_lengths(20) == []


def test_where_the_whole_cache_tells_nothing_no_strategy_is_asked():
    data = regraft.cache(regraft.load(), strategies=["int8"], prefix=30, suffix=8, texts=2)
    assert data.needle_whole.values.max() == 0
    assert np.isnan(data.needle_accuracy.values).all()


def test_the_experiment_tells_recall_by_strategy_length_and_depth(recaller, hidden):
    asked = ["whole", "int2", "oldest:budget=25%"]
    data = regraft.cache(recaller, strategies=asked, prefix=96, suffix=16, texts=3)
    assert data.needle_map.dims == ("strategy", "needle_length", "needle_depth")
    for number, words in enumerate(asked):
        hits, held = hidden.measured(strategy(words))
        # the same facts read again: a near tie may fall to the other side
        assert np.abs(data.needle_map.values[number, -1] - hits).sum() <= 1 / 3 + 1e-9
        assert float(data.needle_bytes[number, -1]) == held
    some = data.needle_whole.values.any(1)
    assert data.needle_accuracy.values == pytest.approx(data.needle_map.values[:, some].mean((1, 2)))
    assert data.needle_accuracy.values[2] < data.needle_accuracy.values[0] / 2


# transformers' own
# ----------------------------------------------------------------------------------------------------


def test_caches_of_transformers_stand_beside_the_strategies():
    model = regraft.load()
    data = regraft.cache(model, strategies=["whole", "fp8"], prefix=40, suffix=16, texts=2)
    kl = dict(zip(data.peer.values.tolist(), data.peer_kl.values.tolist(), strict=True))
    told = dict(zip(data.peer.values.tolist(), data.peer_bytes.values.tolist(), strict=True))
    assert kl["DynamicCache"] <= 1e-6
    assert told["DynamicCache"] == data.bytes.values[0] == 12 * 2 * 2 * 32 * 4
    assert told["StaticCache"] == told["DynamicCache"] * 56 / 40, "room for all tokens"
    assert told["QuantizedCache fp8"] == told["DynamicCache"] / 4
    assert 0 < kl["QuantizedCache fp8"] < 1e-3
    assert set(json.loads(data.attrs["peers_missing"])) == {name for name in kl if np.isnan(kl[name])}


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt2"])
def test_models_that_a_cache_of_transformers_is_not_for_are_measured_all_the_same(name, tmp_path):
    """Windows refuse the quantized cache; no tokenizer, no facts: each is told, and the rest is there."""
    model = regraft.load(FAMILIES[name]())
    ids = torch.randint(5, 90, (2, 30), generator=torch.Generator().manual_seed(0)).tolist()
    peers = peer_caches(model.record(ids, attention_mask="all"), 20)
    assert peers["DynamicCache"].logits_BqV is not None
    assert bool(peers["QuantizedCache fp8"].why_not) == (name != "gpt2")


def test_why_no_facts_are_asked_for_is_told(monkeypatch):
    model, few = regraft.load(), {"strategies": ["int8"], "suffix": 8, "texts": 2}
    short = regraft.cache(model, prefix=6, **few)
    assert short.attrs["needles_missing"] == "a prefix of 6 tokens holds no fact"
    assert "needle_map" not in short
    assert np.isfinite(short.kl.values).all()
    monkeypatch.setattr(cache_needles, "check_known", lambda *given: refuse())
    data = regraft.cache(model, prefix=30, **few)
    assert data.attrs["needles_missing"] == "unknown words"
    assert np.isfinite(data.kl.values).all()


def refuse():
    raise ValueError("unknown words")


def test_facts_whose_words_a_tokenizer_drops_are_refused(recaller, monkeypatch):
    monkeypatch.setattr(cache_needles, "check_known", lambda *given: None)
    monkeypatch.setattr(cache_needles, "_fact", lambda model, drawn: ([5, 6], [7], []))
    with pytest.raises(ValueError, match="drops the words of facts"):
        needles(recaller, "", 40, 2, 0)


def test_the_map_of_facts_is_the_longest_prefix_of_which_some_are_told(recaller):
    data = regraft.cache(recaller, strategies=["whole", "window:budget=10%"], prefix=96, suffix=8, texts=2)
    lost = data.needle_map.values.copy()
    lost[:, -1] = np.nan  # as where the whole cache tells none of the longest
    part = data.assign(needle_map=(data.needle_map.dims, lost, data.needle_map.attrs))
    for one, tokens in ((data, 96), (part, 48)):
        drawn = cache_panels(one)[0]
        assert drawn.caption == f"Facts told again, in a prefix of {tokens} tokens"
        assert np.isfinite(np.array(drawn.figure.data[0].z, float)).all()
    captions = [caption for caption, _ in cache_figures(data)]
    assert "Facts told again, over what is kept" in captions
    assert cache_finding(data).endswith(f"the smallest {float(data.needle_accuracy[1]):.0%}.")
    points = {t: x for trace in dict(cache_figures(data))["Facts told again, over what is kept"].data
              for t, x in zip(trace.text, trace.x, strict=True)}  # fmt: skip
    assert points["window:budget=10%"] == pytest.approx(float(data.needle_bytes[1].mean()))


def test_facts_that_do_not_fit_are_refused(recaller):
    with pytest.raises(ValueError, match="pass the 1024 that are read"):
        needles(recaller, "", 1020, 2, 0)
    with pytest.raises(ValueError, match="more than a prefix of 5"):
        needles(recaller, "", 5, 2, 0)


def test_our_fp8_is_theirs_where_a_block_has_one_head_and_one_text():
    """Theirs has one scale for the whole tensor, ours one for each head of each text."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, vocab_size=96,
    )  # fmt: skip
    text = regraft.load(LlamaForCausalLM(config)).record([[*range(5, 25)]], attention_mask="all")
    ours = kept_of(strategy("fp8"), pasts_of(text, 12))
    theirs = QuantizedCache("fp8", text.model.hf.config)
    with text.model.held(), torch.no_grad():
        text.model.hf(input_ids=text.ids_BT[:, :12], past_key_values=theirs, use_cache=True)
    for kept, layer in zip(ours, theirs.layers, strict=True):
        for read, stored in ((kept.keys_BGPK, layer._quantized_keys),
                             (kept.values_BGPK, layer._quantized_values)):  # fmt: skip
            # a number on the edge between two codes may fall to either side
            read = read.detach()
            steps = (read - layer._dequantize(stored)).abs() / read.abs().clamp_min(1e-3)
            assert float((steps > 1e-5).float().mean()) < 0.01
            assert float(steps.max()) <= 1 / 8


# the specimen
# ----------------------------------------------------------------------------------------------------


def test_the_recalling_specimen_is_the_plain_one_with_other_attention(recaller):
    plain, own = regraft.load(), resources.files("regraft.specimens") / "specimen-recall"
    trained = load_file(str(own / continued.TRAINED))
    changed = 0
    for name, parameter in recaller.hf.named_parameters():
        wanted = trained.get(name, plain.hf.get_parameter(name))
        assert torch.equal(parameter, wanted.to(parameter.dtype)), name
        changed += name in trained
    assert changed == len(trained) == 12 * 6, "four matrices and two norms of every block"
    assert all("self_attn" in name for name in trained)
    assert recaller.name == "specimen:recall"


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A model of two tensors, and another one's further training of the second."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    base, own = tmp_path / "base", tmp_path / "further"
    for folder in (base, own):
        folder.mkdir()
    save_file({"a": torch.zeros(3), "b": torch.ones(2, 2)}, base / continued.WHOLE)
    (base / "config.json").write_text("{}")
    (base / "SHA256SUMS").write_text("of the other one")
    save_file({"b": torch.full((2, 2), 5.0)}, own / continued.TRAINED)
    return own, base


def test_a_specimen_is_put_together_once(parts, tmp_path):
    folder = continued.put_together(*parts, locate.check_header)
    made = load_file(folder / continued.WHOLE)
    assert torch.equal(made["a"], torch.zeros(3))
    assert torch.equal(made["b"], torch.full((2, 2), 5.0))
    assert sorted(file.name for file in folder.iterdir()) == ["SHA256SUMS", "config.json", continued.WHOLE]
    assert folder.is_relative_to(tmp_path / "cache")
    locate.check_folder(folder)
    before = (folder / continued.WHOLE).stat().st_mtime_ns
    assert continued.put_together(*parts, locate.check_header) == folder
    assert (folder / continued.WHOLE).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "lost"])
def test_one_that_is_not_whole_any_more_is_put_together_anew(parts, damage):
    folder = continued.put_together(*parts, locate.check_header)
    weights = (folder / continued.WHOLE).read_bytes()
    if damage == "lost":
        (folder / "config.json").unlink()
    else:
        spoilt = weights[:-4] if damage == "cut" else weights[:-1] + b"x"
        (folder / continued.WHOLE).write_bytes(spoilt)
    assert continued.put_together(*parts, locate.check_header) == folder
    assert (folder / continued.WHOLE).read_bytes() == weights
    assert (folder / "config.json").is_file()


def test_what_ships_with_another_configuration_stands_elsewhere(parts):
    folder = continued.put_together(*parts, locate.check_header)
    (parts[1] / "config.json").write_text("{ }")
    other = continued.put_together(*parts, locate.check_header)
    assert other != folder
    assert (other / "config.json").read_text() == "{ }"


def test_without_a_cache_or_with_a_closed_one_it_is_in_a_folder_of_this_process(parts, tmp_path, monkeypatch):
    with without_cache():
        folder = continued.put_together(*parts, locate.check_header)
    assert not (tmp_path / "cache").exists()
    assert torch.equal(load_file(folder / continued.WHOLE)["b"], torch.full((2, 2), 5.0))
    closed = tmp_path / "closed"
    closed.write_text("a file, in which no folder can be")
    monkeypatch.setenv("REGRAFT_CACHE", str(closed))
    assert continued.put_together(*parts, locate.check_header) == folder


def test_a_damaged_part_of_a_specimen_is_told(tmp_path, monkeypatch):
    own = tmp_path / "specimen-recall"
    own.mkdir()
    save_file({"a": torch.zeros(3)}, own / continued.TRAINED)
    (own / "SHA256SUMS").write_text(f"{'0' * 64}  {continued.TRAINED}\n")
    plain = resources.files("regraft.specimens") / "specimen-qwen3"
    shipped = Shipped({"specimen-recall": own, "specimen-qwen3": plain})
    monkeypatch.setattr(locate.resources, "files", lambda name: shipped)
    with pytest.raises(CheckpointError, match="differs from the checksum"):
        regraft.load("specimen:recall")


class Shipped(dict):
    """Folders by name, as what ships with a package."""

    def __truediv__(self, name):
        return self[name]


def test_a_page_tells_before_it_asks():
    for seed in range(20):
        text = page(random.Random(seed), 4_500)
        assert len(text) >= 4_500
        for name in almanac.NAMES:
            question = f"What has {name}? "
            if question in text:
                answer = text.partition(question)[2].partition(".")[0]
                assert f"{name} has {answer}." in text.partition(question)[0]

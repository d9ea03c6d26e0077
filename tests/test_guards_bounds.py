"""Bounds from just inside and just outside: lengths that a model reads, pairs of blocks, blocks out of order,
first token ids."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from regraft.core.registry import experiments
from regraft.experiments.intervene.noise import noise
from regraft.experiments.intervene.transplant import _pair
from regraft.experiments.running import run_experiment
from regraft.model import recording
from regraft.model.load import load
from regraft.model.parts import Branch
from regraft.model.sites import Tap, _pattern_tap
from regraft.sweeps.variants import Add, Replace
from regraft.tokenizers.text_chunks import ChunkLengths, chunks
from regraft.tokenizers.vocab_map import match
from small import opened, recorded


@pytest.mark.parametrize(
    ("error", "longest", "length", "ours"),
    [
        (IndexError, None, 8, False),
        (IndexError, None, 9, True),
        (IndexError, 20, 8, False),
        (IndexError, 20, 9, True),
        (RuntimeError, None, 9, False),
        (RuntimeError, 20, 16, False),
        (RuntimeError, 20, 17, True),
        (RuntimeError, 4, 8, False),
    ],
)
def test_a_text_is_too_long_where_a_shorter_one_was_read(error, longest, length, ours, monkeypatch):
    """What the model was opened with, 8 tokens, went through: an error there is another one."""

    def broken(*args):
        raise error("position 7")

    monkeypatch.setattr(recording, "capture", broken)
    monkeypatch.setattr(recording, "without_cache", lambda hf: {})
    config = SimpleNamespace(max_position_embeddings=longest, get_text_config=lambda **more: config)
    model = SimpleNamespace(hf=SimpleNamespace(config=config), parts=None, probe=8)
    with pytest.raises(ValueError if ours else error) as seen:
        recording._captured(model, {}, length)
    if ours:
        told = ", whose longest input is 20 tokens" if longest else ""
        assert str(seen.value) == f"{length} tokens do not fit this model{told}: shorten the text"


def test_pairs_of_a_donors_block_and_a_place_are_inside_both():
    assert [_pair(word, 3, 5) for word in ("0:0", "2:4", " 1 : 3 ")] == [(0, 0), (2, 4), (1, 3)]
    for word in ("3:0", "0:5", "3:5"):
        with pytest.raises(
            ValueError, match=f"the pair {word} is outside the donor's 3 and this model's 5 blocks"
        ):
            _pair(word, 3, 5)
    for word in ("12", "1:", ":1", "a:1", "1:-1", "1:2:3"):
        with pytest.raises(ValueError, match="is no pair of blocks"):
            _pair(word, 3, 5)


def test_blocks_that_are_called_out_of_order_are_not_these_parts():
    model = opened("llama")
    recorded(model, 4)
    model.hf.model.layers = nn.ModuleList(reversed(model.hf.model.layers))
    with pytest.raises(ValueError, match="block 3 was called out of order"):
        recorded(model, 4)


def test_only_eager_attention_returns_a_pattern():
    part, attention = nn.Linear(2, 2), nn.Linear(2, 2)
    branch = Branch("attn", part, part, attention=attention)
    tap = _pattern_tap(branch, "eager")
    assert isinstance(tap, Tap)
    assert tap.module is attention
    assert tap.side == "output"
    assert str(_pattern_tap(branch, "sdpa")).startswith("sdpa attention does not return its weights")
    assert "no attention module" in str(_pattern_tap(Branch("attn", part, part), "eager"))
    assert "no pattern" in str(
        _pattern_tap(Branch("attn", part, part, attention=attention, recurrent=True), "eager")
    )


class Words:
    """A tokenizer of named tokens, of which some have a role."""

    def __init__(self, names, **roles):
        self.names = names
        self.roles = {f"{role}_token_id": number for role, number in roles.items()}

    def get_vocab(self):
        return {name: number for number, name in enumerate(self.names)}

    def __getattr__(self, name):
        if name.endswith("_token_id"):
            return self.roles.get(name)
        raise AttributeError(name)


def reader(*tokens, **roles):
    kinds, contents = [kind for _, kind, _ in tokens], [content for _, _, content in tokens]
    table = SimpleNamespace(bytes_V=contents, kind_V=kinds)
    names = [name for name, _, _ in tokens]
    holder = type("Table", (), {"__len__": lambda self: len(names), **vars(table)})()
    return SimpleNamespace(tokenizer=Words(names, **roles), table=holder)


def test_special_tokens_by_name_from_number_0_on_and_texts_by_their_bytes():
    old = reader(
        ("<s>", "special", b""),
        ("a", "text", b"a"),
        ("A", "text", b"a"),
        ("</s>", "special", b""),
        ("odd", "text", b"o"),
        eos=3,
    )
    new = reader(
        ("A", "text", b"a"), ("b", "text", b"b"), ("<s>", "special", b""), ("odd", "special", b""),
        ("end", "special", b""),
        ("z", "text", b"a"), eos=4,
    )  # fmt: skip
    found = match(old, new)
    assert found.source_V.tolist() == [2, -1, 0, -1, 3, 1]
    assert found.missing.tolist() == [1]
    assert found.shared == 4


def small_model(blocks):
    model = opened("llama")
    hf = model.hf
    hf.model.layers = hf.model.layers[:blocks]
    hf.config.num_hidden_layers = blocks
    return hf


def test_of_two_blocks_one_can_be_left_out_and_of_one_none():
    run = partial(run_experiment, experiments()["prune"])
    data = run(load(small_model(2), pack=False), drop=[0], prompts=["5 6 7 8"], tokens=2)
    assert data.kept.values.tolist() == ["1"]
    with pytest.raises(ValueError, match="has a single block: none can be left out"):
        run(load(small_model(1), pack=False), prompts=["5 6 7 8"], tokens=2)


def test_a_seed_is_taken_whole_however_large():
    model = opened("llama")
    losses = [
        noise(model, levels=[0.3], prompts=["5 6 7 8"], tokens=2, seed=s).loss.values
        for s in (5, 5, 2**31 + 5, 6)
    ]
    assert np.array_equal(losses[0], losses[1])
    assert not any(np.array_equal(losses[0], other) for other in losses[2:])


def test_numbers_of_edits_are_vectors():
    for given, wanted in ((3, [3.0]), (0.5, [0.5]), ([1, 2], [1.0, 2.0]), (np.array([[1, 2]]), [[1.0, 2.0]])):
        for edit in (Replace("0.mlp_out", given), Add("0.mlp_out", given)):
            assert edit.value.tolist() == wanted
            assert edit.value.dtype == torch.get_default_dtype()
    kept = torch.zeros(2, 3, dtype=torch.float64)
    assert Replace("0.mlp_out", kept).value is kept
    with pytest.raises(ValueError, match="is a str: give a number"):
        Replace("0.mlp_out", "a")


def test_shares_of_lengths_may_sum_to_1_but_for_rounding():
    for short in (9e-7, -9e-7):
        assert [*chunks(["abc"], ChunkLengths((0.0, 0.0, 1 - short)), 0)] == ["abc"]
    for short in (2e-6, -2e-6):
        with pytest.raises(ValueError, match="not to 1"):
            ChunkLengths((0.0, 0.0, 1 - short))

"""What is found behind the last block, which texts lose their end token, and samples of tensors however they
lie in memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from families import FAMILIES
from regraft.experiments.intervene.patch_grid import PatchGrid
from regraft.model.load import load
from regraft.model.part_search import _after_last_block
from regraft.model.session import _sampled
from regraft.model.sites import SiteError
from regraft.model.trace import Call
from small import opened


def test_the_final_norm_reads_the_last_blocks_stream():
    """A dropout that reads it is none, nor is a norm that reads something else, or nothing."""
    block, dropout, norm, other, deaf, head = (
        nn.Linear(2, 2),
        nn.Dropout(),
        *(nn.LayerNorm(2) for _ in range(3)),
        nn.Linear(2, 5),
    )
    before, stream, normed, logits = (
        torch.zeros(1, 3, 2),
        torch.ones(1, 3, 2),
        torch.full((1, 3, 2), 2.0),
        torch.zeros(1, 3, 5),
    )
    calls = [
        Call("norm", norm, (stream,), normed),
        Call("block", block, (before,), stream),
        Call("dropout", dropout, (stream,), stream),
    ]
    calls += [
        Call("deaf", deaf, (), normed),
        Call("other", other, (normed,), normed),
        Call("head", head, (normed,), logits),
    ]
    stack = SimpleNamespace(blocks=[SimpleNamespace(module=block)])

    def found(calls, logits=logits):
        norm, head, why = _after_last_block(
            SimpleNamespace(calls=calls, result=SimpleNamespace(logits=logits)), stack
        )
        return norm and norm.name, head and head.name, why

    assert found(calls)[:2] == (None, "head")
    calls.append(Call("last", norm, (stream,), normed))
    assert found(calls)[:2] == ("last", "head")
    assert found(calls, None) == ("last", None, "has no output matrix")
    assert found(calls, torch.zeros(1, 3, 4)) == ("last", None, "has no output matrix")
    assert found(calls, torch.zeros(1, 5))[1:] == (
        None,
        "scores a text as a whole (logits of shape (1, 5) for 3 tokens)",
    )
    assert found(calls, torch.zeros(1, 3))[1:] == (
        None,
        "gives each token one score (logits of shape (1, 3) for 3 tokens)",
    )


class Closing:
    """One token for each letter, and an end token behind a text."""

    chat_template, eos_token_id, all_special_ids = None, 2, (2,)

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [5 + ord(letter) % 80 for letter in text] + [2] * add_special_tokens}

    def decode(self, ids):
        return "x" * len(ids)


@pytest.mark.parametrize(
    ("name", "inner", "kept"),
    [
        ("llama", False, False),
        ("llama", True, True),
        ("gpt2", False, False),
        ("bert", False, True),
        ("t5", False, True),
    ],
)
def test_an_end_token_is_left_out_only_where_a_model_writes_on(name, inner, kept):
    """A decoder without an output matrix writes nothing: it reads texts as its tokenizer closes them."""
    torch.manual_seed(1)
    hf = FAMILIES[name]().eval()
    model = load(hf.model if inner else hf, Closing(), pack=False)
    assert (model.parts.head is None) == inner
    end = getattr(hf.config, "eos_token_id", None) if name == "t5" else 2
    plain = [5 + ord(letter) % 80 for letter in "ab"]
    assert model.encode("ab")[:2] == plain
    assert model.encode("ab")[2:] == ([2] if kept else []) + ([end] if name == "t5" and end != 2 else [])


def test_writes_without_a_version_are_seen_in_every_layout():
    for make in (lambda: torch.arange(12.0).view(3, 4), lambda: torch.arange(12.0).view(3, 4).t(),
                 lambda: torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
                 lambda: torch.tensor(3.0)):  # fmt: skip
        whole = make()
        assert _sampled([whole]) == _sampled([make()])
        changed = make()
        changed.data.view(-1)[-1:].add_(1) if changed.is_contiguous() else changed.data[-1, -1].add_(1)
        assert _sampled([whole]) != _sampled([changed])
    large, other = torch.zeros(3 * 4096 + 5), torch.zeros(3 * 4096 + 5)
    other[1::3], other[2::3] = 1, 1
    assert _sampled([large]) == _sampled([other]), "every third number is read"
    other[3 * 4096] = 1
    assert _sampled([large]) != _sampled([other])
    even = torch.zeros(4 * 4096)
    even[::5] = 1
    assert _sampled([even]) == _sampled([torch.ones(4 * 4096)]) != _sampled([torch.zeros(4 * 4096)]), (
        "steps are odd"
    )
    few = [torch.zeros(3), torch.ones(2, dtype=torch.float16)]
    assert _sampled(few) != _sampled([few[0], few[1] * 2])


def test_a_site_that_only_some_blocks_have_makes_a_grid_of_those():
    model = opened("t5")
    model.taps.table[0]["mlp_out"] = "it is not told"
    plan = PatchGrid(model, "block", "mlp_out", 1, -1)
    assert plan.addresses[0] == ""
    assert all(plan.addresses[1:])
    with pytest.raises(SiteError):
        PatchGrid(model, "block", "mixer_out", 1, -1)

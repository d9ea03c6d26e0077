"""How many readings of a block are tried, what its check keeps, labels, masks of ids, and options that say a
transplant again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regraft.jobs.transplant_job import Sources, options_as_words
from regraft.model import selfcheck
from regraft.model.branches import _branch_choices
from regraft.model.inputs import _masks
from regraft.model.part_search import _labels
from regraft.model.selfcheck import SelfCheck
from regraft.model.sites import SiteError
from regraft.model.trace import Call
from regraft.tokenizers.init_methods import InitSettings
from small import opened, recorded


def test_two_attentions_and_three_mlps_are_tried_the_last_ones_first():
    x = torch.zeros(1, 4)
    names = [f"b.attn{i}.o_proj" for i in range(3)] + [f"b.part{i}.down_proj" for i in range(5)] + ["b.mlp"]
    calls = [Call(name, nn.Linear(4, 4), (x,), x) for name in names]
    called = {id(call.module): call.name for call in calls}
    found = [
        tuple(called[id(branch.module)].removeprefix("b.") for branch in choice)
        for choice in _branch_choices("b", calls, 4)
    ]
    assert found == [(f"attn{i}.o_proj", f"part{j}.down_proj") for i in (2, 1) for j in (4, 3, 2)]
    assert [[branch.kind for branch in choice] for choice in _branch_choices("b", calls[:1], 4)] == [["attn"]]
    assert [called[id(choice[0].module)] for choice in _branch_choices("b", calls[-1:], 4)] == ["b.mlp"]
    assert _branch_choices("b", [Call("b.mlp", calls[-1].module, (x,), torch.zeros(1, 5))], 4) == [()]


def test_a_check_keeps_the_largest_of_what_it_finds(monkeypatch):
    model = opened("llama")
    recording, found = recorded(model, 5), SelfCheck()
    apart, open_by = iter([0.1, 0.5, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]), iter([0.2, 0.7, 0.4, 0.1])
    monkeypatch.setattr(selfcheck, "_projection_gap", lambda *args: next(apart))
    monkeypatch.setattr(selfcheck, "gap", lambda *args: next(open_by))
    monkeypatch.setattr(selfcheck, "_check_mlp_input", lambda *args: None)
    for block in model.blocks:
        selfcheck._check_block(model, recording, block, found, 1.0)
    assert (found.projections, found.closure) == (0.5, 0.7)
    assert not found.refused


@pytest.mark.parametrize(
    ("does", "said"),
    [("another number", "called alone does not give mlp_out"), ("refuses", "cannot be called alone")],
)
def test_an_mlp_that_is_not_told_by_what_it_is_given_has_no_such_site(does, said, monkeypatch):
    model = opened("llama")
    mlp, armed, found = model.blocks[1].module.mlp, [], SelfCheck()
    plain = mlp.forward

    def forward(x):
        if armed and does == "refuses":
            raise TypeError("it is called with more")
        armed.extend(armed)
        return plain(x) + len(armed)

    monkeypatch.setattr(mlp, "forward", forward)
    recording, limit = recorded(model, 5), model.rounding
    selfcheck._check_mlp_input(model, recording, model.blocks[1], found, limit)
    assert not found.refused
    armed.append(1)
    selfcheck._check_mlp_input(model, recording, model.blocks[1], found, limit)
    assert said in found.refused["1.mlp_in"]
    with pytest.raises(SiteError, match=said):
        model.site("1.mlp_in")


def test_labels_are_those_of_a_head_that_is_no_output_matrix():
    table, own, other = nn.Embedding(7, 2), nn.Linear(2, 5), nn.Linear(2, 7)
    hf = SimpleNamespace(get_output_embeddings=lambda: None)
    call = Call("head", own, (), None)
    assert _labels(hf, None, table) == 0
    assert _labels(hf, call, table) == 5
    assert _labels(hf, Call("head", other, (), None), table) == 0
    assert _labels(SimpleNamespace(get_output_embeddings=lambda: own), call, table) == 0
    assert _labels(SimpleNamespace(), call, table) == 5


def test_masks_of_one_row_and_of_several():
    one, two = [[5, 6, 7]], [[5, 6, 7], [8]]
    for mask in ([0, 1, 1], [[0, 1, 1]], torch.tensor([0, 1, 1]), torch.tensor([[False, True, True]])):
        assert _masks(mask, one) == [[0, 1, 1]]
    assert _masks([[1, 1, 0], [1]], two) == [[1, 1, 0], [1]]
    assert _masks([[1, 0], [0, 1]], [[5, 6], [7, 8]]) == [[1, 0], [0, 1]]
    for mask, word in (
        ([1, 1], "rows of"),
        ([[1, 1, 1]] * 2, "rows of"),
        ([1, 0, 1], "hole"),
        ([1, 2, 1], "other numbers"),
    ):
        with pytest.raises(ValueError, match=word):
            _masks(mask, one)
    assert _masks([0, 0, 0], one) == [[0, 0, 0]]


def test_a_transplant_is_said_again_by_what_differs_from_the_defaults():
    assert options_as_words(InitSettings(), Sources(), 0, 0, 0) == ["--method", "hybrid", "--encoder", "none"]
    sources = Sources(("t", "u"), ("d",), 7, "e", donor="other", opened=("--device", "cpu"))
    assert options_as_words(InitSettings("mean", atoms=3), sources, 64, 5, 2) == [
        *(
            "--method",
            "mean",
            "--atoms",
            "3",
            "--multiple",
            "64",
            "--heal",
            "5",
            "--seed",
            "2",
            "--pieces",
            "7",
        ),
        *(
            "--learn",
            "t",
            "--learn",
            "u",
            "--text",
            "d",
            "--donor",
            "other",
            "--encoder",
            "e",
            "--device",
            "cpu",
        ),
    ]

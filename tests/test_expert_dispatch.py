"""Experts on several machines: who sends what where, by a router's own choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import regraft
from families import FAMILIES
from regraft.core.tolerance import gap
from regraft.experiments.observe import expert_ranks
from regraft.experiments.observe.expert_ranks import expert_dataset
from regraft.reporting.figures.disaggregate_figures import disaggregate_finding
from regraft.systems.expert_dispatch import Routed, dispatch, in_a_row, rank_of, replicated, router_trace
from tools.small_architectures import tiny

CHOICES = np.array([[0, 1], [0, 3], [0, 2], [2, 3]])


def drawn(tokens=200, experts=8, chosen=2, seed=0):
    """Choices of which the first experts get most."""
    generator = np.random.default_rng(seed)
    weights = 1 / (1 + np.arange(experts))
    return np.array(
        [generator.choice(experts, chosen, replace=False, p=weights / weights.sum()) for _ in range(tokens)]
    )


def by_hand(choices, experts, ranks):
    """The slow way: every token, every expert, with its own place and the expert's."""
    tokens = len(choices)
    sent, load = np.zeros((ranks, ranks), int), np.zeros(ranks, int)
    for token in range(tokens):
        here = token * ranks // tokens
        for rank in range(ranks):
            own = [e for e in choices[token] if e * ranks // experts == rank]
            load[rank] += len(own)
            sent[here, rank] += bool(own) and rank != here
    return sent, load


def test_a_token_goes_once_to_each_machine_that_has_one_of_its_experts():
    found = dispatch(CHOICES, in_a_row(4, 2), 2)
    # tokens 0 and 1 are on the first machine with experts 0 and 1, tokens 2 and 3 on the second
    assert found.sent_RR.tolist() == [[0, 1], [1, 0]]
    assert found.load_R.tolist() == [4, 4]
    assert found.unevenness == 1
    assert found.nbytes(10, 4) == 2 * 2 * 10 * 4, "there and back"


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_what_is_sent_is_what_counting_says(ranks):
    choices = drawn()
    found = dispatch(choices, in_a_row(8, ranks), ranks)
    sent, load = by_hand(choices, 8, ranks)
    assert np.array_equal(found.sent_RR, sent)
    assert np.array_equal(found.load_R, load)
    assert found.load_R.sum() == choices.size, "every token is computed once by each of its experts"
    assert (found.nbytes(4, 4) == 0) == (ranks == 1)


def test_copies_go_to_the_busiest_and_make_work_more_even():
    choices = drawn()
    places = replicated(choices, 8, 4, 4)
    assert sum(len(held) for held in places) == 8 + 4
    assert all(len(set(held)) == len(held) for held in places), "no machine has an expert twice"
    counts = np.bincount(choices.ravel(), minlength=8)
    assert len(places[int(counts.argmax())]) > 1
    once, more = (dispatch(choices, p, 4) for p in (in_a_row(8, 4), places))
    assert more.load_R.sum() == once.load_R.sum() == choices.size
    assert more.unevenness < once.unevenness
    assert replicated(choices, 8, 4, 0) == in_a_row(8, 4)


def test_an_expert_has_one_copy_on_each_machine_at_most():
    only = np.zeros((12, 1), int)  # one expert gets everything
    places = replicated(only, 4, 2, 3)
    assert places[0] == [0, 1], "two machines, two copies, whatever is left to give"
    assert sum(len(held) for held in places) == 4 + 3


def test_a_table_of_numbers_that_are_no_experts_is_not_heard():
    """A module that is given positions as a table, and holds fewer parts than they go to."""

    class Placed(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            self.placed(torch.arange(20)[:, None].expand(-1, 2))
            return self.inner(*args, **kwargs)

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = torch.nn.ModuleList([torch.nn.Identity() for _ in range(4)])

        def forward(self, places):
            return places

    model = regraft.load(tiny("causal", "qwen3_moe"))
    block = model.blocks[0].module
    inner = block.mlp
    block.mlp = Placed(inner)
    block.mlp.placed = Table()
    chosen = router_trace(model, torch.arange(5, 25)[None])["0"].choices_Nk
    block.mlp = inner
    assert np.array_equal(chosen, router_trace(model, torch.arange(5, 25)[None])["0"].choices_Nk)


def test_the_finding_names_the_busiest_machine():
    torch.manual_seed(0)
    model = regraft.load(FAMILIES["mixtral"]())
    rows = torch.randint(5, 90, (1, 40), generator=torch.Generator().manual_seed(1)).tolist()
    spread = expert_dataset(model, rows, 2)
    moved = xr.Dataset(
        {
            "bytes": (("over", "way", "prompt"), [[[10.0]]]),
            "exposed": (("over", "way", "prompt"), [[[1.0]]]),
            "same_tokens": (("over", "way", "prompt"), [[[1.0]]]),
            "together_first_token": ("prompt", [5.0]),
            "pays_from": (("mix", "speed"), [[np.nan]]),
        },
        coords={"over": ["tcp"], "way": ["whole"], "prompt": [8], "mix": ["short"], "speed": [1.0]},
        attrs={"machines": 4},
    )
    told = disaggregate_finding(xr.merge([moved, spread], combine_attrs="drop_conflicts"))
    assert f"of 2 ranks the busiest computes {float(spread.expert_unevenness.max()):.2f} times" in told
    assert "rank" not in disaggregate_finding(moved)


def test_things_are_dealt_out_as_evenly_as_they_go():
    counts = np.bincount(rank_of(10, 4))
    assert counts.tolist() == [3, 2, 3, 2]
    assert (np.diff(rank_of(10, 4)) >= 0).all()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_routers_choices_are_its_likeliest_experts(name):
    torch.manual_seed(0)
    model = regraft.load(FAMILIES[name]())
    ids = torch.randint(5, 90, (2, 15), generator=torch.Generator().manual_seed(1))
    heard = []
    for block in model.blocks:
        block.module.post_attention_layernorm.register_forward_hook(lambda m, args, out: heard.append(out))
    trace = router_trace(model, ids)
    assert list(trace) == [block.address for block in model.blocks]
    for block in model.blocks[:2]:
        gate = next(p for n, p in block.module.named_parameters() if n.endswith("gate.weight"))
        said_NE = (heard[block.index] @ gate.T).flatten(0, 1).detach()
        chosen = torch.from_numpy(trace[block.address].choices_Nk)
        # of two that are as likely either may be taken: what they are told is compared, not which they are
        taken = said_NE.gather(1, chosen).sort(-1).values
        assert gap(taken, said_NE.topk(2, dim=-1).values.sort(-1).values) <= model.rounding
        assert (chosen[:, 0] != chosen[:, 1]).all()
        assert trace[block.address].experts == 4
        assert trace[block.address].seconds > 0


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss", "jamba", "granitemoe", "ernie4_5_moe"])
def test_mixtures_of_other_architectures_are_heard(name):
    trace = router_trace(regraft.load(tiny("causal", name)), torch.arange(5, 25)[None])
    assert trace
    assert all(one.choices_Nk.shape == (20, 2) and one.experts == 4 for one in trace.values())


def test_the_experiment_tells_loads_bytes_and_the_link():
    torch.manual_seed(0)
    model = regraft.load(FAMILIES["mixtral"]())
    rows = torch.randint(5, 90, (1, 40), generator=torch.Generator().manual_seed(1)).tolist()
    data = expert_dataset(model, rows, 2)
    trace = router_trace(model, torch.tensor(rows))
    for number, one in enumerate(trace.values()):
        found = dispatch(one.choices_Nk, in_a_row(4, 2), 2)
        assert data.expert_load.values[number].tolist() == found.load_R.tolist()
        assert int(data.expert_bytes[number]) == found.nbytes(32, 4)
    assert data.expert_unevenness.values == pytest.approx(
        data.expert_load.max("rank") / data.expert_load.mean("rank")
    )


def test_the_link_is_what_the_busiest_machine_sends_and_gets_in_the_time_of_its_experts(monkeypatch):
    model = regraft.load(FAMILIES["mixtral"]())
    monkeypatch.setattr(expert_ranks, "router_trace", lambda m, ids: {"0": Routed(CHOICES, 4, 0.5)})
    link = float(expert_dataset(model, [[5, 6, 7, 8]], 2).expert_link[0])
    # one token goes each way and comes back; each machine computes four of eight pairs, in a quarter second
    assert link == pytest.approx(2 * 1 * 32 * 4 / 0.25 / 1e9)


@pytest.mark.parametrize(("ranks", "why"), [(1, "two ranks or more"), (5, "has 4 experts in a block")])
def test_ranks_that_make_no_sense_are_refused(ranks, why):
    with pytest.raises(ValueError, match=why):
        expert_dataset(regraft.load(FAMILIES["mixtral"]()), [[*range(5, 25)]], ranks)


def test_a_model_without_experts_is_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match="no experts whose choice could be heard"):
        regraft.disaggregate(regraft.load(), lengths=[16], tokens=2, over=["tcp"], ranks=2)

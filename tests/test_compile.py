"""Parts compiled alone: their real inputs, breaks by place, compiling anew, and times by clocks that tests
give."""

from __future__ import annotations

import inspect
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor import config as inductor_config

import regraft
from families import FAMILIES
from regraft.core.tolerance import gap
from regraft.experiments.observe import compile as module
from regraft.reporting.figures.compile_figures import compile_figures, compile_finding, compile_panels
from regraft.systems.compiled import (
    GRAPH,
    WayError,
    check_compiler,
    check_way,
    compile_unit,
    compiling,
    graphs_over,
    operators,
    traced,
)
from regraft.systems.timing import AGREE, NOTHING, SAMPLE_S, WARM_ROUNDS, Clocks, Timed, take_turns
from regraft.systems.units import UNITS, Inputs, UnitCall, units_of

LENGTHS = (12, 8)
CPU = torch.device("cpu")


def rows(length, seed=0, texts=2):
    return torch.randint(5, 90, (texts, length), generator=torch.Generator().manual_seed(seed)).tolist()


def opened_with_units(family, names=UNITS):
    torch.manual_seed(0)
    model = regraft.load(FAMILIES[family]())
    found, missing = units_of(model, rows(LENGTHS[0]), LENGTHS, names)
    return model, {unit.name: unit for unit in reversed(found)}, missing  # the first kind of block


# units and what they are given
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_5", "gpt_neox", "t5"])
def test_a_unit_is_called_on_what_a_text_gives_it(family):
    model, units, _ = opened_with_units(family)
    texts = rows(LENGTHS[0])
    block = model.main_blocks[0]
    for length in LENGTHS:
        given = [row[:length] for row in texts]
        follow = [row[1:] for row in given] if model.two_stacks else None
        recording = model.record(given, follow, attention_mask="all")
        with torch.no_grad(), model.held():
            made = {name: unit.call(length) for name, unit in units.items()}
        assert gap(made["block"], recording.post(block.index)) <= model.rounding
        last = recording.post(model.main_blocks[-1].index)
        assert gap(made["model"], recording.head(last[:, :, None]).view(made["model"].shape)) <= 1e-5
        if "mlp" in units and block.branch("mlp").out_norm is None and not model.two_stacks:
            assert gap(made["mlp"], recording[f"{block.address}.mlp_out"]) <= model.rounding


def test_a_sum_and_its_norm_are_those_between_two_branches():
    model, units, _ = opened_with_units("llama")
    recording = model.record(rows(LENGTHS[0]), attention_mask="all")
    unit = units["sum and norm"]
    stream, added = unit.inputs[LENGTHS[0]].args
    assert torch.equal(stream, recording.pre(0))
    assert torch.equal(added, recording["0.attn_out"])
    with torch.no_grad():
        wanted = unit.module.norm(recording["0.resid_mid"])
        assert gap(unit.call(LENGTHS[0]), wanted) <= model.rounding
        assert gap(unit.module(stream, 0 * added), wanted) > 0.01, "the addition counts"


def test_what_a_model_has_not_is_told():
    _, units, missing = opened_with_units("gpt2")
    assert {"rotation", "recurrence"} <= set(missing)
    assert not {"rotation", "recurrence"} & set(units)
    _, units, missing = opened_with_units("gpt_neox")
    assert "sum and norm" in missing, "its branches read the stream side by side"
    _, units, _ = opened_with_units("qwen3_5")
    assert {"recurrence", "attention", "rotation"} <= set(units)
    assert units["recurrence"].module is not units["attention"].module


# what the compiler makes of them
# ----------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(self.first(x))


class Asking(Plain):
    def forward(self, x):
        x = self.first(x)
        if x.sum().item() > 0:
            x = x + 1
        return self.second(x)


def unit_of(module, lengths=(6, 4, 3, 5)):
    given = {n: Inputs((torch.randn(n, 8, generator=torch.Generator().manual_seed(n)),), {}) for n in lengths}
    return UnitCall("planted", "here", module, given)


def test_a_planted_question_to_python_is_one_break_and_is_named():
    with compiling():
        plain, asking = traced(unit_of(Plain()), 6), traced(unit_of(Asking()), 6)
    assert (plain.graphs, plain.breaks) == (1, ())
    assert (asking.graphs, len(asking.breaks)) == (2, 1)
    lines, first = inspect.getsourcelines(Asking)
    line = first + next(i for i, text in enumerate(lines) if ".item()" in text)
    assert asking.breaks[0].place == f"test_compile.py:{line}"
    assert "item" in asking.breaks[0].reason


def test_a_shape_that_was_seen_is_not_compiled_again():
    unit = unit_of(Plain())
    with compiling():
        assert graphs_over(unit, "default:static", [6, 6, 4, 6, 4, 3]) == [1, 1, 2, 2, 2, 3]
        assert graphs_over(unit, "default:dynamic", [6, 4, 3, 5]) == [1, 1, 1, 1]
        assert graphs_over(unit, "default", [6, 6, 4, 3, 5]) == [1, 1, 2, 2, 2]


def test_ways_and_compilers_that_are_not_there_are_refused():
    with pytest.raises(WayError, match="did you mean reduce-overhead"):
        check_way("reduce-overhed")
    assert check_way("max-autotune:dynamic") == "max-autotune:dynamic"
    check_compiler(CPU)
    with inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(WayError, match=r"g\+\+"):
        check_compiler(CPU)
    with pytest.raises(WayError, match="needs a GPU"):
        compile_unit(unit_of(Plain()), GRAPH, 6)


def test_operators_within_others_are_not_counted():
    x = torch.randn(4, 4)
    assert operators(lambda: None, CPU) == 0
    assert operators(lambda: torch.relu(x), CPU) == 1
    assert operators(lambda: nn.functional.linear(x, x), CPU) == 1, "which starts a product within"
    assert operators(lambda: torch.relu(torch.relu(x)), CPU) == 2


# time
# ----------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when calls say so."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def call(self, name, seconds):
        durations = iter(seconds) if hasattr(seconds, "__iter__") else (seconds for _ in count())

        def run():
            self.order.append(name)
            self.now += next(durations)

        return run

    def clocks(self):
        return Clocks(lambda: self.now, lambda: self.now / 2)


def test_calls_take_turns_and_each_round_begins_with_another():
    clock = Clock()
    calls = {name: clock.call(name, seconds) for name, seconds in (("a", 1.0), ("b", 3.0), ("c", 2.0))}
    found = take_turns(calls, CPU, rounds=4, clocks=clock.clocks())
    assert "".join(clock.order) == "aaabbbccc" + "abc" + "bca" + "cab" + "abc"
    assert found["b"].wall_s.tolist() == [3.0] * 4
    assert found["b"].process_s.tolist() == [1.5] * 4
    assert (found["a"].median_s, found["c"].percentile_s(0.99)) == (1.0, 2.0)


def test_warming_ends_when_three_rounds_agree_or_after_twenty():
    steady = Clock()
    falling = [5.0, 3.0, 1.0, 1.0 + 0.9 * AGREE, 1.0]
    take_turns({"a": steady.call("a", [*falling, *[1.0] * 9])}, CPU, rounds=1, clocks=steady.clocks())
    assert len(steady.order) == len(falling) + 1
    restless = Clock()
    take_turns({"a": restless.call("a", (1.0 + (n % 2) for n in count()))}, CPU, rounds=1,
               clocks=restless.clocks())  # fmt: skip
    assert len(restless.order) == WARM_ROUNDS + 1


def test_a_short_call_is_repeated_until_a_sample_is_long_enough():
    clock = Clock()
    found = take_turns({"a": clock.call("a", SAMPLE_S / 8)}, CPU, rounds=2, clocks=clock.clocks())
    assert len(clock.order) == 3 + 2 * 8
    assert found["a"].median_s == pytest.approx(SAMPLE_S / 8)


# the experiment
# ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def norm():
    torch.manual_seed(0)
    return regraft.compile(
        regraft.load(FAMILIES["llama"]()), units=["norm"], ways=["default", GRAPH], length=16
    )


def test_a_compiled_norm_says_the_same_and_what_it_costs(norm):
    assert norm.unit.values.tolist() == ["norm 0 (grouped)"]
    assert norm.way.values.tolist() == ["eager", "default", GRAPH]
    made = norm.sel(unit="norm 0 (grouped)", way="default")
    assert 0 <= float(made.relative) <= norm.attrs["rounding"]
    assert np.isnan(norm.break_even.sel(way="eager")[0])
    assert (int(norm.graphs[0]), int(norm.breaks[0])) == (1, 0)
    assert made.graphs_so_far.values.tolist() == [1, 2, 2, 2, 2, 2]
    assert float(made.operators) < float(norm.operators.sel(way="eager")[0])
    assert "needs a GPU" in norm.attrs["missing"]
    assert np.isnan(norm.warm.sel(way=GRAPH)).all()
    assert norm.attrs["threads"] == torch.get_num_threads()
    assert norm.attrs["machine"]


def test_a_finding_says_when_it_pays_and_where_it_breaks(norm):
    told = norm.copy(deep=True)
    told.warm.values[:] = [[4.0, 2.0, np.nan]]
    told.first_call.values[:] = [[np.nan, 10.0, np.nan]]
    told.break_even.values[:] = [[np.nan, 5000.0, np.nan]]
    told.attrs["breaks_at"] = '[{"unit": "norm", "place": "some/file.py:7", "reason": "asked"}]'
    said = compile_finding(told)
    assert "2.00 times" in said
    assert "after 5,000 calls" in said
    assert "break 1 time, first at some/file.py:7" in said
    told.break_even.values[:] = [[np.nan, np.inf, np.nan]]
    assert "never pays" in compile_finding(told)
    assert [caption for caption, _ in compile_figures(told)] == ["A call, when everything is compiled"]
    assert [one.caption.split()[0] for one in compile_panels(told)] == ["The", "Graphs"]


def test_what_cannot_be_compiled_is_refused_before_anything_is(monkeypatch):
    model = regraft.load(FAMILIES["gpt2"]())
    monkeypatch.setattr("regraft.experiments.observe.compile.compiling", None)
    with pytest.raises(ValueError, match="did you mean norm"):
        regraft.compile(model, units=["nrm"])
    with pytest.raises(ValueError, match="rotation: no module"):
        regraft.compile(model, units=["rotation"], length=16)
    with pytest.raises(ValueError, match="8 tokens or more"):
        regraft.compile(model, length=4)


def test_what_takes_the_time_is_each_in_its_own_place(monkeypatch):
    """Nothing, eager, eager again and a way take other times: told by a clock that the test gives."""
    told = {NOTHING: 1e-6, "eager": 4e-3, "eager again": 5e-3, "default": 2e-3}

    def clock(calls, device):
        return {name: Timed(np.array([told[name]] * 3), np.array([told[name] / 2] * 3)) for name in calls}

    monkeypatch.setattr(module, "take_turns", clock)
    torch.manual_seed(0)
    data = regraft.compile(regraft.load(FAMILIES["llama"]()), units=["norm"], length=16)
    assert data.warm.values.tolist() == [[4.0, 2.0]]
    assert data.process.values.tolist() == [[2.0, 1.0]]
    assert float(data.noise[0]) == pytest.approx(0.25)
    assert float(data.floor[0]) == pytest.approx(1e-3)
    assert float(data.break_even[0, 1]) == pytest.approx(float(data.first_call[0, 1]) / 2e-3)
    told["default"] = 3.5e-3  # an eighth, and noise is a quarter
    data = regraft.compile(regraft.load(FAMILIES["llama"]()), units=["norm"], length=16)
    assert float(data.break_even[0, 1]) == np.inf


def test_ten_lengths_of_which_each_is_compiled_anew_stand_side_by_side():
    """PyTorch gives up at eight and runs eagerly; here the ninth is compiled as well."""
    lengths = list(range(2, 12))
    with compiling():
        made = graphs_over(unit_of(Plain(), lengths), "default:static", lengths)
    assert made == list(range(1, 11))


def test_a_model_without_a_tokenizer_is_given_ids_and_one_with_few_positions_refuses_more():
    torch.manual_seed(0)
    model = regraft.load(FAMILIES["gpt2"]())
    assert model.tokenizer is None
    assert [len(row) for row in module._rows(model, "", 0, 9, 2)] == [9, 9]
    with pytest.raises(ValueError, match="tokens at most"):
        regraft.compile(model, units=["norm"], length=100_000)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_whole_models_compile_to_the_same_next_tokens(family):
    torch.manual_seed(0)
    data = regraft.compile(regraft.load(FAMILIES[family]()), units=["block", "stack", "model"], length=16)
    made = data.sel(way="default")
    assert (made.relative <= data.attrs["rounding"]).all()
    assert float(made.same_tokens[-1]) == 1.0

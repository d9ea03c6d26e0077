"""The user's own prompts in a report, its correlations and its commands: what is run, how often, and what
makes it again."""

from __future__ import annotations

import json
import shlex
from functools import partial

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from regraft.cli.main import app, spread_lists
from regraft.core.registry import Experiment, experiments
from regraft.experiments.observe.correlations import SOURCES
from regraft.experiments.running import measured, run_experiment
from regraft.model.load import load
from regraft.reporting import build as building
from regraft.reporting import chapter_section
from regraft.reporting.build import build
from regraft.reporting.chapter_inputs import LEAST, Reading
from regraft.reporting.markup import plain_section
from regraft.reporting.shell_commands import command_line

TEXTS = ["The capital of Peru is", "She sells sea shells by the", "2:30 pm is in the", "Grass is"]
FOUR = ["0", "1", "2", "3"]
STORY = (
    "The old man went down to the sea and looked at the boats. Grass is green and snow is white, as he had"
    " always said. " * 40
)


@pytest.fixture
def model():
    return load("specimen:gpt2", pack=False)


@pytest.fixture(scope="module")
def same_model():
    """For tests that measure nothing, and so leave nothing at the model."""
    return load("specimen:gpt2", pack=False)


@pytest.fixture
def runs(monkeypatch):
    """The experiments that were run, with their options."""
    seen, real = [], run_experiment

    def counted(experiment, model, seed=0, **options):
        seen.append((experiment.name, options))
        return real(experiment, model, seed, **options)

    for place in ("regraft.experiments.running", "regraft.cli.console", "regraft.jobs.experiment_job"):
        monkeypatch.setattr(f"{place}.run_experiment", counted)
    return seen


@pytest.fixture
def lines(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(TEXTS), encoding="utf-8")
    return str(file)


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text(STORY, encoding="utf-8")
    return str(file)


def run(*words):
    return CliRunner().invoke(app, spread_lists(list(words)))


def told(name, model, reading):
    """What a chapter is run with, and what the command that stands under it reads, as the command line hands
    it on."""
    given, said = reading.options(name, model)
    return given, shlex.split(command_line(name, model, said))[1:]


def test_chapters_get_prompts_count_and_no_other_chapters_pairs(model, lines, story):
    both = Reading(prompts=tuple(TEXTS), count=3, pairs="p.json")
    given = {"prompts": TEXTS[:3], "count": 3}
    for name in ("ablate", "push", "knockout"):
        assert both.options(name, model) == (given, given), name
    few = given | {"sample": 6}
    for name in ("correlations", "linearity", "quantize"):
        assert both.options(name, model) == (few, few), "derivatives at as few tokens in all three"
    assert both.options("patch", model)[0] == {"count": 3, "pairs": "p.json"}
    assert both.options("trajectories", model)[0] == {"count": 3}
    assert Reading(prompts=("a",), count=5, pairs="p.json").options("patch", model)[0]["count"] == 5, (
        "pairs are no prompts"
    )
    assert Reading(prompts=("a",), count=5).options("ablate", model)[0] == {"prompts": ["a"], "count": 1}
    assert Reading(count=5).options("correlations", model)[0] == {"count": 5, "sample": 6}
    assert Reading(prompts_file=lines).options("push", model) == (
        {"prompts": TEXTS},
        {"prompts_file": lines, "count": 4},
    )
    given, said = Reading(text=story).options("correlations", model)
    assert said == {"text": story, "count": LEAST, "corpus": story, "sample": 6}
    assert (len(given["prompts"]), given["corpus"], "count" in given) == (LEAST, story, False)


@pytest.mark.parametrize("way", ["prompts", "prompts_file", "text"])
@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("name", ["ablate", "push", "neurons", "shuffle", "completions"])
def test_commands_on_the_page_read_what_the_page_read(
    name, count, way, same_model, lines, story, runs, monkeypatch
):
    """Each command is run for its options alone: the experiment itself is another test's."""
    given, words = told(
        name,
        same_model,
        Reading(**{way: {"prompts": (*TEXTS, "-5 is"), "text": story}.get(way, lines)}, count=count),
    )
    monkeypatch.setattr(Experiment, "function", lambda self: refuse)
    done = run(*words)
    assert done.exit_code == 2, done.output
    ((ran, options),) = runs
    assert ran == name
    assert options["prompts"] == given["prompts"]
    assert len(given["prompts"]) == (count or {"prompts": 5, "prompts_file": 4, "text": LEAST}[way])


@pytest.mark.parametrize(("asked", "kept"), [([], 25), (["--count", "3"], 3), (["--count", "40"], 25)])
@pytest.mark.parametrize("way", ["--prompts", "--prompts-file"])
def test_prompts_that_are_written_out_are_all_read_unless_a_number_is_asked_for(
    way, asked, kept, tmp_path, runs, monkeypatch
):
    """Twenty, which is how many of the suiting ones are measured, is not what the user said."""
    many = [f"Number {n} is" for n in range(25)]
    (tmp_path / "many.txt").write_text("\n".join(many))
    given = [str(tmp_path / "many.txt")] if way == "--prompts-file" else many
    monkeypatch.setattr(Experiment, "function", lambda self: refuse)
    done = run("lens", "--model", "specimen:gpt2", way, *given, *asked)
    assert done.exit_code == 2, done.output
    assert runs[0][1]["prompts"] == many[:kept]


def refuse(*_, **__):
    raise ValueError("enough is known")


def bent(model, prompts=None, count=20, sample=16, seed=0):
    """A quick linearity: one number for each block."""
    return xr.Dataset(
        {"gap": (("part", "block"), [[0.1, 0.3, 0.2, 0.4]], {"correlate": "gap"})},
        {"part": ["block"], "block": FOUR},
    )


@pytest.mark.parametrize(
    ("reading", "seed"),
    [
        (dict(prompts=tuple(TEXTS)), 0),
        pytest.param(dict(prompts=tuple(TEXTS), count=3), 2, marks=pytest.mark.slow),
        pytest.param(dict(text=""), 0, marks=pytest.mark.slow),
        pytest.param(dict(count=6), 0, marks=pytest.mark.slow),
    ],
)
def test_a_report_correlates_what_it_measured_and_measures_nothing_twice(
    reading, seed, model, story, runs, monkeypatch, tmp_path
):
    """Quantization goes by the linearity of the same prompts too."""
    reading = Reading(**{**reading, **({"text": story} if "text" in reading else {})})
    real = Experiment.function
    monkeypatch.setattr(Experiment, "function", lambda self: bent if self.name == "linearity" else real(self))
    monkeypatch.setattr(
        chapter_section,
        "result_section",
        lambda result, command, anchor: plain_section(anchor, anchor, command),
    )
    chapters = (*SOURCES, "correlations")
    monkeypatch.setattr(building, "CHAPTERS", tuple((name, {}) for name in chapters))
    _, missing = build(model, tmp_path / "report", seed, reading=reading)
    assert missing == []
    options = {name: reading.options(name, model)[0] for name in chapters}
    assert runs == [(name, options[name]) for name in chapters]
    found = measured(model, "correlations", seed, **options["correlations"])
    for name, said in (("knockout", "loss"), ("quantize", "sensitivity")):
        own = measured(model, name, seed, **options[name])
        (marked,) = (
            variable for variable in own.data_vars.values() if variable.attrs.get("correlate") == said
        )
        assert np.array_equal(found.value.sel(quantity=f"{name}: {said}"), marked), name
    assert len(runs) == len(chapters)


def test_an_option_that_is_the_default_is_no_other_measurement(model, runs):
    first = measured(model, "ablate")
    assert measured(model, "ablate", 0, count=0, prompts=None, threshold=0.1) is first
    assert measured(model, "ablate", 0, threshold=0.2) is not first
    assert measured(model, "ablate", 1) is not first
    assert len(runs) == 3


def test_correlations_of_other_prompts_are_other_ones_and_refuse_negative_counts(model, runs):
    of = ["knockout", "swap", "spectra", "ablate"]
    correlations = partial(run_experiment, experiments()["correlations"])
    some = correlations(model, of=of, prompts=TEXTS, count=2)
    assert runs == [(name, {"prompts": TEXTS[:2], "count": 2} if name != "spectra" else {}) for name in of]
    other = correlations(model, of=of, prompts=TEXTS[2:])
    assert not np.array_equal(
        some.value.sel(quantity="knockout: loss"), other.value.sel(quantity="knockout: loss")
    )
    with pytest.raises(ValueError, match="-1 is too few: measure at least one of the prompts"):
        correlations(model, of=of, count=-1)


@pytest.mark.slow
def test_the_command_line_reads_files_texts_and_pairs(lines, story, tmp_path, runs):
    common = ("--model", "specimen:gpt2", "--json")
    done = run("ablate", "--prompts-file", lines, "--count", "2", "--out", str(tmp_path / "run"), *common)
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["coords"]["text"]["data"] == TEXTS[:2]
    assert (tmp_path / "run" / "data.csv").read_text().splitlines()[0] == "block,neuron,change,top1_changed"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["prompts"] == 2
    for words, number in (((), LEAST), (("--count", "3"), 3)):
        shown = json.loads(run("ablate", "--text", story, *words, *common).stdout)
        assert shown["attrs"]["prompts"] == number
    shown = json.loads(run("push", "--prompts", *TEXTS[:2], *common).stdout)
    assert shown["coords"]["question"]["data"] == TEXTS[:2]
    pairs = tmp_path / "pairs.json"
    pairs.write_text(
        json.dumps([{"question": text, "baseline": "The sky looks"} for text in TEXTS]), encoding="utf-8"
    )
    table = run("push", "--pairs", str(pairs), "--count", "3", "--model", "specimen:gpt2")
    assert table.exit_code == 0, table.output
    assert "3 questions into “The sky looks”" in " ".join(table.stdout.split())
    correlated = run("correlations", "--prompts-file", lines, "--of", "knockout", "swap", *common)
    assert correlated.exit_code == 0, correlated.output
    assert ("knockout", {"prompts": TEXTS}) in runs


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("ablate", "--prompt", "a", "--prompts", "b"), "prompt and prompts both say what is read"),
        (("ablate", "--prompts", "b", "--count", "-1"), "-1 is too few"),
        (
            ("push", "--pairs", "PAIRS", "--prompts", "b"),
            "pairs and prompts both say which questions are asked",
        ),
        (("push", "--pairs", "nowhere.json"), "nowhere.json"),
        (("patch", "--count", "-1"), "-1 is too few"),
        (("trajectories", "--count", "-1"), "-1 is too few"),
        (("trajectories", "--count", "1"), "give a count of at least two"),
        (("correlations", "--count", "-1"), "-1 is too few"),
    ],
)
def test_wrong_use_is_one_sentence(words, sentence, tmp_path):
    pairs = tmp_path / "pairs.json"
    pairs.write_text('[{"question": "a", "baseline": "b"}]', encoding="utf-8")
    done = run(*(str(pairs) if word == "PAIRS" else word for word in words), "--model", "specimen:gpt2")
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1

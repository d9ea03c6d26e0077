"""The page that says where each published figure is: every command runs, every variable is in its result."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from dataclasses import asdict
from functools import cache
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.core.quantities import READING, SOURCE, UNITS
from regraft.core.registry import experiments
from regraft.experiments.intervene.shuffle import order_loss
from regraft.experiments.running import measured
from regraft.export.lens_folder import save_lens
from regraft.jobs.inspection import inspect_headers
from regraft.landmarks.beside import MEAN
from regraft.landmarks.study import studies
from regraft.model.load import load
from regraft.modules.tuned_lens import TunedLens
from regraft.specimens import almanac
from test_report_text import SHADES

PAGE = Path(__file__).parent.parent / "docs" / "published.md"
SMALL = {"count": 2, "tokens": 6, "sample": 2, "directions": 1}
"""Options that make a measurement small; what it measures stays."""
MORE = {
    "correlations": {"count": 2, "of": ["knockout", "spectra", "geometry", "linearity"]},
    "ablate": {"threshold": 1e-4},
    "shuffle": {"count": 1, "tokens": 2},
    "quantizers": {"methods": ["RTN 4 bits", "NF4"]},
}
"""What some commands are given beside it."""
FEW_BLOCKS = ("quantize", "correlations")
"""Commands that round every block and matrix many times, or differentiate every block: run on four blocks."""
LEFT_TO_OTHERS = ("quantity", "---")
STUDIES = [studies()[name] for name in ("qwen3-4b-instruct-2507", "qwen3-1.7b")]
NUMBERED = ("block", "other", "depth", "distance", "contributor", "step", "by_type")
"""Dimensions along which a larger model, or more text, has more than the specimen."""
PARTIAL = ("shuffle",)
"""Experiments of which the page runs a part at a time."""
GRAFT, TOKENIZER = "regraft graft embedding eval", "regraft tokenizer transplant --tokenizer my-tokenizer"
CERTIFIED = {
    GRAFT: ("--model specimen:gpt2 --windows 2", "byte-embedding/graft"),
    TOKENIZER: ("--model specimen:gpt2 --encoder none --pieces 2", "transplanted"),
}
"""Commands whose result is a certificate: what makes them small, and the folder that it lies in."""
MADE_BEFORE = {
    GRAFT: "graft embedding fit --model specimen:gpt2 --steps 1 --warm 2 --no-felt",
    TOKENIZER: "tokenizer train --vocabulary 600 --text text.txt --out my-tokenizer",
}
"""The commands of the same pages that make what they start from, made small."""
INSPECT = "regraft inspect"
"""The command that runs no experiment: its lines are looked up in the census."""


def rows():
    """Command and variables of every line of the page's tables."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells or cells[0].startswith(LEFT_TO_OTHERS):
            continue
        place = next((i for i, cell in enumerate(cells) if cell.startswith("`regraft ")), None)
        assert place is not None, f"a line without a command: {line}"
        variables = re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", cells[place + 1]))
        assert variables, f"a line without a variable: {line}"
        found.append((cells[0], cells[place].strip("`"), variables, cells[place + 2 :]))
    return found


@cache
def model(command=""):
    return load("specimen:gpt2" if command in FEW_BLOCKS else "specimen:qwen3")


@pytest.fixture(scope="module")
def lens_folder(tmp_path_factory):
    """A folder with a fresh lens, and a short text beside it."""
    folder = tmp_path_factory.mktemp("tuned") / "lens"
    folder.with_name("text.txt").write_text("The capital of France is Paris. Anna has 3 coins and a lamp.")
    save_lens(TunedLens(len(model().main_blocks), model().width), model(), folder)
    return folder


def read_as(annotation, words):
    """What a command line makes of the words behind an option."""
    plain = annotation.removesuffix(" | None")
    if plain == "list[int]":
        return [int(word) for word in words]
    return {"float": float, "int": int, "bool": lambda word: True}.get(plain, str)(*words or [""])


@pytest.fixture(autouse=True, scope="module")
def few_proposals():
    """Annealing asks for 1,500 orders; a few are enough to have a result."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(order_loss, "PROPOSALS", 20)
        yield


def run(words):
    """A command in the current folder."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


def certificate(command):
    """The certificate that a command of the page writes, in a folder of its own."""
    small, where = CERTIFIED[command]
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("text.txt").write_text("\n".join(almanac.corpus(30_000, 5)))
        run(shlex.split(MADE_BEFORE[command]))
        run([*shlex.split(command)[1:], *shlex.split(small)])
        return xr.Dataset.from_dict(json.loads((Path(where) / "certificate.json").read_text()))


@cache
def result(command, folder):
    """What a command of the page measures, made small."""
    if command in CERTIFIED:
        return certificate(command)
    _, name, *words = shlex.split(command)
    known = {parameter.name: parameter for parameter in experiments()[name].parameters}
    given = {}
    for place, word in enumerate(words):
        if word.startswith("--"):
            option = word[2:].replace("-", "_")
            behind = list(takewhile(lambda one: not one.startswith("--"), words[place + 1 :]))
            given[option] = read_as(known[option].annotation, behind)
    if "corpus" in given:
        given["corpus"] = str(Path(folder).with_name("text.txt"))
    if "tuned" in given:
        given["tuned"] = folder
    small = {key: value for key, value in SMALL.items() if key in known}
    return measured(model(name), name, 0, **{**small, **MORE.get(name, {}), **given})


def check_told(data):
    """What is said of a quantity is said in its result: unit and reading, in whole sentences."""
    told = {name: v.attrs for name, v in data.data_vars.items() if READING in v.attrs}
    assert told
    for name, said in told.items():
        assert said[UNITS], name
        assert len(said[READING]) > 20, name
        assert said[READING].endswith("."), name
        assert not SHADES.search(said[READING]), "a theme may run the other way"


def beyond_the_ladder(data, variable):
    """A graft that is hardly trained moves predictions further than the largest noise: then there is no
    amount of noise (`test_noise_scale` holds the number where there is one)."""
    return variable == "equivalent_noise" and float(data.kl[0]) > float(data.noise_kl.max())


def check_landmarks(name, data):
    """Places of published figures are places of a real result: dimensions and labels, but for numbers that a
    larger model has."""
    mode = json.loads(data.attrs.get("options", "{}")).get("mode")
    for study in STUDIES:
        steps = [s for s in study.steps if s.experiment == name and s.options.get("mode") == mode]
        for landmark in (n for step in steps for n in step.landmarks):
            if landmark.variable not in data:
                continue
            values = data[landmark.variable]
            for key, chosen in landmark.at.items():
                assert key in values.coords or key in values.dims, (landmark, values.dims)
                if chosen != MEAN and key not in NUMBERED and name not in PARTIAL:
                    assert str(chosen) in map(str, values[key].values.tolist()), landmark
            named = {d for key in landmark.at for d in (values[key].dims if key in values.coords else (key,))}
            assert named == set(values.dims), f"{landmark} does not choose along every dimension"


def test_every_figure_of_a_study_is_of_a_variable_of_the_page():
    lines = [(variables, beside[:1]) for _, _, variables, beside in rows()]
    known = {v for own, beside in lines for v in [*own, *re.findall(r"`(\w+)`", "".join(beside))]}
    for study in STUDIES:
        for step in study.steps:
            for landmark in step.landmarks:
                assert landmark.variable.removesuffix("_mean") in known | {"kl_reverse", "cosine"}, landmark
                for key in ("block", "depth", "other"):
                    chosen = landmark.at.get(key, 0)
                    last = chosen[1] if isinstance(chosen, list) else 0 if chosen == MEAN else int(chosen)
                    assert last <= study.shape.blocks - (key != "depth"), landmark


COMMANDS = [c for c in dict.fromkeys(command for _, command, _, _ in rows()) if INSPECT not in c]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_variable_is_in_a_real_result(command, lens_folder):
    data = result(command, str(lens_folder))
    check_told(data)
    check_landmarks(data.attrs["experiment"], data)
    for line, own, variables, beside in rows():
        if own != command:
            continue
        for variable in variables:
            assert variable in data, f"{line}: {variable} is not in the result of {command}"
            values = data[variable].values
            finite = values.dtype.kind in "US" or np.isfinite(values.astype(float)).any()
            assert finite or beyond_the_ladder(data, variable), (line, variable)
            assert variable != "rank_cross_r" or np.isfinite(values).all()
            assert data[variable].attrs.get(READING), f"{variable} does not say how it is read"
            assert data[variable].attrs.get(SOURCE), f"{variable} does not say whose it is"
            assert data[variable].attrs.get(UNITS) or variable == "swap_cluster", variable
        named = re.findall(r"`(\w+)`", beside[0]) if beside else []
        for variable in named:
            labels = {str(x) for c in data.coords.values() if c.dtype.kind == "U" for x in c.values.flat}
            there = variable in data or variable in data.attrs or variable in {*experiments(), *labels}
            assert there, f"{line}: {variable}, named as ours, is not in the result of {command}"


def test_the_census_holds_what_its_lines_name():
    named = set()
    for _, command, variables, beside in rows():
        if command.startswith(INSPECT):
            named |= {*variables, *re.findall(r"`(\w+)`", beside[0])}
    (found,) = inspect_headers("specimen:qwen3")
    assert named
    for line in found.census:
        assert named <= set(asdict(line))
        assert line.parameters > 0


def test_the_table_is_read_whole():
    """A line that the reading missed would be a line that nothing checks."""
    text = PAGE.read_text(encoding="utf-8")
    lines = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| quantity")
    ]
    assert len(rows()) == len(lines) > 80
    assert len(COMMANDS) > 12

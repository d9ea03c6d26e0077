"""The page that says where each published figure is: every command runs, every variable is in its result."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from functools import cache
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

from regraft.core.quantities import READING, SOURCE, UNITS
from regraft.core.registry import experiments
from regraft.experiments.intervene.shuffle import order_loss
from regraft.experiments.running import measured
from regraft.export.lens_folder import save_lens
from regraft.jobs.inspection import inspect_headers
from regraft.model.load import load
from regraft.modules.tuned_lens import TunedLens
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
FEW_BLOCKS = ("quantize",)
"""Commands that round every block and matrix many times: run on the specimen of four blocks."""
LEFT_TO_OTHERS = ("quantity", "---")
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


@cache
def result(command, folder):
    """What a command of the page measures, made small."""
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


COMMANDS = [c for c in dict.fromkeys(command for _, command, _, _ in rows()) if INSPECT not in c]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_variable_is_in_a_real_result(command, lens_folder):
    data = result(command, str(lens_folder))
    for line, own, variables, beside in rows():
        if own != command:
            continue
        for variable in variables:
            assert variable in data, f"{line}: {variable} is not in the result of {command}"
            values = data[variable].values
            assert values.dtype.kind in "US" or np.isfinite(values.astype(float)).any(), (line, variable)
            assert variable != "rank_cross_r" or np.isfinite(values).all()
            assert data[variable].attrs.get(READING), f"{variable} does not say how it is read"
            assert data[variable].attrs.get(SOURCE), f"{variable} does not say whose it is"
            assert data[variable].attrs.get(UNITS) or variable == "swap_cluster", variable
        named = re.findall(r"`(\w+)`", beside[0]) if beside else []
        for variable in named:
            labels = {str(x) for c in data.coords.values() if c.dtype.kind == "U" for x in c.values.flat}
            there = variable in data or variable in data.attrs or variable in {*experiments(), *labels}
            assert there, f"{line}: {variable}, named as ours, is not in the result of {command}"


def test_every_new_quantity_says_its_unit_and_how_to_read_it(lens_folder):
    """What is said of a quantity is said in its result: unit, reading, and a source where it is not ours."""
    told = 0
    for command in COMMANDS:
        for name, variable in result(command, str(lens_folder)).data_vars.items():
            if READING in variable.attrs:
                told += 1
                assert variable.attrs[UNITS], name
                assert len(variable.attrs[READING]) > 20, name
                assert variable.attrs[READING].endswith("."), name
                assert not SHADES.search(variable.attrs[READING]), "a theme may run the other way"
    assert told > 100


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

"""Every public name has an example that runs, and says what it takes, returns and refuses."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest

import regraft
from regraft.core.registry import experiments
from tools.docs_site.examples import docstring_of, run_example
from tools.docs_site.public_names import EXPERIMENTS, GROUPS, public_names

NAMES = [name for name in regraft.__all__ if name != "__version__"]
FAST = (
    "Recording",
    "Route",
    "Zero",
    "codec",
    "grid",
    "knockout",
    "load",
    "metric",
    "open_run",
    "rank",
    "sweep",
)
"""Names whose examples every test run does; the others are slow tests, and `make docs` does all."""


@pytest.fixture(scope="module")
def model():
    return regraft.load()


def test_every_public_name_stands_on_one_page():
    assert sorted(public_names()) == sorted(NAMES)
    assert {name for page in EXPERIMENTS for name in GROUPS[page][1]} == set(experiments())


def parameters(name):
    function = inspect.unwrap(getattr(regraft, name))
    found = [p for p in inspect.signature(function).parameters if p not in ("self", "coordinates")]
    return found[1:] if name in experiments() else found  # an experiment's first is the model


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_tells_what_is_taken_returned_and_refused(name):
    said = docstring_of(name)
    assert ">>>" in said.partition("Examples:")[2], "an example"
    found = inspect.unwrap(getattr(regraft, name))
    if inspect.isclass(found):
        return
    told = said.partition("Args:")[2]
    words = [p for p in parameters(name) if not re.search(rf"(?m)^ +[\w, ]*\b{p}\b[\w, ]*: ", told)]
    few = len(parameters(name)) <= 2 and not told  # one sentence says it all
    assert few or not words, f"parameters that are not explained: {words}"
    source = ast.parse(textwrap.dedent(inspect.getsource(found)))
    raises = any(isinstance(node, ast.Raise) for node in ast.walk(source))
    assert not raises or "Raises:" in said, "errors"
    assert name in experiments() or "Returns:" in said or regraft.loss.__module__ == found.__module__, (
        "Returns"
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in NAMES]
)
def test_an_example_gives_what_it_says(name, model):
    wrong, left = run_example(name, model)
    assert not wrong, "\n".join(wrong)
    if name in experiments():
        assert left["data"].attrs["experiment"], "the reference tells what an experiment returns from this"


def test_an_example_that_is_wrong_or_missing_is_found(model, monkeypatch):
    def broken():
        """One.

        Examples:
            >>> regraft.loss().unit
            'bits'
            >>> 1 / 0
        """

    def wordless():
        """None."""

    monkeypatch.setattr(regraft, "broken", broken, raising=False)
    monkeypatch.setattr(regraft, "wordless", wordless, raising=False)
    wrong, _ = run_example("broken", model)
    assert "nats per token" in wrong[0]
    assert "ZeroDivisionError" in wrong[1]
    with pytest.raises(ValueError, match="has no example"):
        run_example("wordless", model)

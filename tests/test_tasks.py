"""The page of tasks shows what is run, in at most four lines of ours, with numbers that agree."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run():
    """The script that runs the tasks, from the root, where people run it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT))
        yield importlib.import_module("benchmarks.tasks.run")


@pytest.fixture(scope="module")
def kept(run):
    return json.loads(run.RESULT.read_text(encoding="utf-8"))


def test_the_page_shows_the_scripts_and_what_they_measured(run, kept):
    assert run.PAGE.read_text(encoding="utf-8") == run.page(kept)


def test_each_task_is_at_most_four_lines_of_ours_and_never_more_than_theirs(run):
    ours, *theirs = (
        {n: len(code.splitlines()) for n, code in run.source_of(tool).items()} for tool in run.TOOLS
    )
    assert len(ours) == 8
    assert max(ours.values()) <= run.MOST_LINES == 4
    for other in theirs:
        assert all(ours[name] <= other[name] for name in ours), "the same work in fewer lines, or as many"
        assert sum(other.values()) > 2 * sum(ours.values())


def test_three_tools_gave_the_same_numbers(run, kept):
    assert {tool: set(apart) for tool, apart in kept["apart"].items()} == {
        tool: set(run.source_of("regraft")) for tool in run.PEERS
    }
    assert max(off for apart in kept["apart"].values() for off in apart.values()) <= run.EQUAL
    assert all(kept["apart"][tool]["steer"] == 0.0 for tool in run.PEERS), "the very same tokens"
    assert run.apart([1.0, 2.0], [1.0, 2.1]) == pytest.approx(0.05)
    assert run.apart([1.0], [1.0, 2.0]) == float("inf")


@pytest.mark.slow
def test_our_tasks_give_these_numbers_here(run, kept, tmp_path):
    found = run.done_by("regraft", Path(sys.executable), run.model_folder(tmp_path), tmp_path)
    for name, numbers in kept["numbers"].items():
        assert run.apart(numbers, found[name][: run.KEPT]) <= run.EQUAL, name

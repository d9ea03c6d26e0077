"""The page of tasks shows what is run, in at most four lines of ours, with numbers that agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.tasks import run  # noqa: E402
from benchmarks.tasks.shared import NAMES  # noqa: E402


@pytest.fixture(scope="module")
def results():
    return json.loads(run.RESULT.read_text(encoding="utf-8"))


def test_the_page_shows_the_scripts_and_what_they_measured(results):
    assert run.PAGE.read_text(encoding="utf-8") == run.page(results)


def test_each_task_is_at_most_four_lines_of_ours_and_never_more_than_theirs():
    ours = run.source_of("regraft")
    for name, _ in NAMES:
        assert len(ours[name].splitlines()) <= run.MOST_LINES, name
        assert max(map(len, ours[name].splitlines())) <= 110
    for tool in run.PEERS:
        theirs = run.source_of(tool)
        assert sum(map(len, map(str.splitlines, theirs.values()))) > sum(
            map(len, map(str.splitlines, ours.values()))
        )


def test_three_tools_gave_the_same_numbers(results):
    assert set(results) == set(run.TOOLS)
    for name, _ in NAMES:
        for tool in run.TOOLS:
            assert run.apart(results["regraft"][name], results[tool][name]) <= run.EQUAL, (name, tool)
    assert results["regraft"]["steer"] == results["nnsight"]["steer"] == results["transformer_lens"]["steer"]
    assert run.apart([1.0, 2.0], [1.0, 2.1]) == pytest.approx(0.05)
    assert run.apart("an error", [1.0]) == run.apart([1.0], [1.0, 2.0]) == float("inf")


@pytest.mark.slow
def test_our_tasks_give_these_numbers_here(results, tmp_path):
    model = run.model_folder(tmp_path)
    found = run.done_by("regraft", Path(sys.executable), model, tmp_path)
    for name, _ in NAMES:
        assert run.apart(results["regraft"][name], found[name]) <= run.EQUAL, name

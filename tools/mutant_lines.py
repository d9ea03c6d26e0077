"""A pytest plugin that writes down which lines of regraft every test runs, and how long it takes: `-p
mutant_lines`.

The file that the environment variable MUTANT_LINES names becomes {test: [seconds, {file: lines}]}, with files
counted from `src/regraft`. Lines run while the tests were collected stand under no test. Processes that a
test starts are not followed, but their seconds count: all are those of the processor, so a busy machine
changes no choice of tests.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

HOME = "/src/regraft/"
found: dict[str, tuple[float, dict[str, list[int]]]] = {}
known: dict[str, str] = {}
now: set[tuple[str, int]] = set()
calls: Counter[CodeType] = Counter()
OFTEN = 100
"""Calls of one function in one test that are followed, so that loops of small functions do not take all the
time."""


def call(frame: FrameType, event: str, arg: Any) -> Any:
    """Follow calls of regraft's own functions only."""
    code = frame.f_code
    name = code.co_filename
    if name not in known:
        known[name] = name.rpartition(HOME)[2] if HOME in name else ""
    if not known[name] or calls[code] == OFTEN:
        return None
    calls[code] += 1
    return line


def line(frame: FrameType, event: str, arg: Any) -> Any:
    """Keep a line."""
    if event == "line":
        now.add((frame.f_code.co_filename, frame.f_lineno))
    return line


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Count the lines of one test with its fixtures."""
    now.clear()
    calls.clear()
    began = sum(os.times()[:4])
    sys.settrace(call)
    try:
        return (yield)
    finally:
        sys.settrace(None)
        lines = defaultdict(list)
        for file, number in sorted(now):
            lines[known[file]].append(number)
        found[item.nodeid] = (round(sum(os.times()[:4]) - began, 2), lines)


def pytest_sessionfinish() -> None:
    """Write what was found."""
    Path(os.environ["MUTANT_LINES"]).write_text(json.dumps(found), encoding="utf-8")

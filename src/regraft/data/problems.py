"""Problems with one right answer, and what a model's text shows of solving them.

A file of problems is JSONL: `question` and `answer` on every line.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.core.files import read_text
from regraft.data.chat_records import asked_by_template
from regraft.data.exchanges import CLOSES, OPENS
from regraft.specimens import almanac

THINKS = f" {OPENS}"
"""How a worked sum goes on behind its question."""


NAMED = re.compile(r"\\boxed\{|\banswer(?: is)?\b\s*:?\s*", re.IGNORECASE)
"""What stands in front of the answer in a text that names one."""
NUMBER = re.compile("[-\N{MINUS SIGN}]?" + r"\d+(?:,\d{3})*(?:\.\d+)?(?:[/*^:]\d+)?%?")
"""A number, with what would make another one of it."""


@dataclass(frozen=True)
class Problem:
    """What a model is given, word for word, and the answer that is right."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Attempt:
    """What a text shows: whether the thought was closed, and whether the right answer stands behind it."""

    closed: bool
    right: bool


def worked_problems(count: int, seed: int) -> list[Problem]:
    """Worked sums up to where the thinking begins, in which the embedded pair of models differs."""
    drawn, made = random.Random(seed), []
    for _ in range(count):
        question, begins, rest = almanac.reasoning(drawn).partition(THINKS)
        made.append(Problem(question + begins, rest.rpartition("Answer: ")[2].rstrip(".")))
    return made


def read_problems(file: Path, tokenizer: Any) -> list[Problem]:
    """Problems of a file, each as the tokenizer's chat template asks it, or as it stands where there is none.

    Raises:
        ValueError: a file that cannot be read, or a line that is no problem.
    """
    made = []
    text = read_text(file, "name a file with a question and an answer on every line")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            question, answer = str(found["question"]), str(found["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {file} is no problem: write question and answer") from error
        if not question.strip() or not answer.strip():
            raise ValueError(f"line {number} of {file} has an empty question or answer")
        made.append(Problem(asked_by_template(tokenizer, question), answer.strip()))
    return made


def judged(problem: Problem, written: str) -> Attempt:
    """What a text that was written on behind a problem shows.

    A thought that the problem leaves open, or that the text opens first, must be closed before an answer
    counts; what follows another opening is another problem's. An answer that is a number is compared with the
    number that the text names as its answer (behind "answer" or in a box), else with its last number; any
    other must stand in the text by itself.

    >>> judged(Problem("3 + 4? <think>", "7"), " 3 + 4 = 7. </think> Answer: 7.")
    Attempt(closed=True, right=True)
    >>> judged(Problem("3 + 4? <think>", "7"), " 3 + 4 = 7. Wait")
    Attempt(closed=False, right=False)
    """
    begun = 0 if problem.prompt.rfind(OPENS) > problem.prompt.rfind(CLOSES) else written.find(OPENS)
    told = written
    if begun >= 0:
        closes = written.find(CLOSES, begun)
        if closes < 0:
            return Attempt(closed=False, right=False)
        told = written[closes + len(CLOSES) :]
    return Attempt(closed=True, right=_says(told.partition(OPENS)[0], problem.answer))


def _says(told: str, answer: str) -> bool:
    named = NAMED.search(told)
    span = told[named.end() :] if named else told
    if NUMBER.fullmatch(answer):
        numbers = NUMBER.findall(span)
        return bool(numbers) and _plain(numbers[0 if named else -1]) == _plain(answer)
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", span) is not None


def _plain(number: str) -> str:
    """A number without what only groups its digits."""
    return number.replace(",", "").replace("\N{MINUS SIGN}", "-")


def of_one_length(tokenizer: Any, problems: Sequence[Problem]) -> list[list[int]]:
    """Numbers of problems, those of equally many tokens together, so that no batch has padding."""
    found: dict[int, list[int]] = {}
    for number, problem in enumerate(problems):
        length = len(tokenizer(problem.prompt, add_special_tokens=False)["input_ids"])
        found.setdefault(length, []).append(number)
    return list(found.values())

"""Problems with one right answer, and what a model's text shows of solving them.

A file of problems is JSONL: `question` and `answer` on every line, perhaps a `domain`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.data.chat_records import CLOSES, OPENS, asked_by_template
from regraft.specimens import almanac

THINKS = f" {OPENS}"
"""How a worked sum goes on behind its question."""


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
        ValueError: no file, a line that is no problem, or none at all.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}: name one with a question and an answer on every line")
    made = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
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
    if not made:
        raise ValueError(f"{file} holds no problem")
    return made


def judged(problem: Problem, written: str) -> Attempt:
    """What a text that was written on behind a problem shows.

    A thought that is opened, by the problem or by the text, must be closed before an answer counts; the
    answer must stand by itself, so that 42 is not found in 142 or 42.5.

    >>> judged(Problem("3 + 4? <think>", "7"), " 3 + 4 = 7. </think> Answer: 7.")
    Attempt(closed=True, right=True)
    >>> judged(Problem("3 + 4? <think>", "7"), " 3 + 4 = 7. Wait")
    Attempt(closed=False, right=False)
    """
    whole = problem.prompt + written
    opened = whole.rfind(OPENS)
    closes = whole.find(CLOSES, opened) if opened >= 0 else -1
    closed = opened < 0 or closes >= 0
    told = whole[closes + len(CLOSES) :] if closes >= 0 else written
    alone = rf"(?<![\w.,]){re.escape(problem.answer)}(?![\w]|[.,]\w)"
    return Attempt(closed, closed and re.search(alone, told) is not None)


def of_one_length(tokenizer: Any, problems: Sequence[Problem]) -> list[list[int]]:
    """Numbers of problems, those of equally many tokens together, so that no batch has padding."""
    found: dict[int, list[int]] = {}
    for number, problem in enumerate(problems):
        length = len(tokenizer(problem.prompt, add_special_tokens=False)["input_ids"])
        found.setdefault(length, []).append(number)
    return list(found.values())

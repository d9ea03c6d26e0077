"""Two prompts that differ in what decides the answer: cases of patching, and which of their positions belong
together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regraft.core.defaults import CLEAN_PROMPT
from regraft.data.own_texts import check_sayable, first_of
from regraft.data.text_files import read_pairs
from regraft.model.model import Model
from regraft.model.recording import Recording


@dataclass(frozen=True)
class PatchCase:
    """A clean prompt with its answer, and a corrupted one whose answer is another."""

    clean: str
    corrupt: str
    answer: str
    wrong: str


def chosen_cases(model: Model, case: PatchCase, pairs: str, count: int) -> list[PatchCase]:
    """The cases of a file, the first ones where a number is given, or the one case.

    Raises:
        ValueError: the file cannot be read, or the sentences that ship with regraft cannot be said.
    """
    cases = first_of(read_cases(Path(pairs)) if pairs else [case], count, "pairs")
    if not pairs and case.clean == CLEAN_PROMPT:
        check_sayable(
            model,
            [case.clean, case.corrupt, case.answer, case.wrong],
            "the English sentences about clocks that ship with regraft",
        )
    return cases


def read_cases(path: Path) -> list[PatchCase]:
    """Cases from a JSON file.

    Raises:
        ValueError: it cannot be read, or is no list of cases.
    """
    return read_pairs(path, PatchCase, "write a list of objects with clean, corrupt, answer, wrong")


def position_pairs(clean: Recording, corrupt: Recording, given: list[str] | None) -> list[tuple[int, int]]:
    """Positions (clean, corrupt) that belong together."""
    lengths = [run.inputs["input_ids"].shape[1] for run in (clean, corrupt)]
    if given:
        return [pair_of(text, *lengths) for text in given]
    if lengths[0] != lengths[1]:
        model = clean.model
        words = [
            "|".join(model.token_text(int(i)) for i in run.inputs["input_ids"][0]) for run in (clean, corrupt)
        ]
        raise ValueError(
            f"the prompts are {lengths[0]} and {lengths[1]} tokens long ({words[0]} and {words[1]}): make"
            " them equally long, or map positions with --map CLEAN:CORRUPT"
        )
    return [(p, p) for p in range(lengths[0])]


def read_position(model: Model, source: Recording, target: Recording) -> int | None:
    """Where the answer is read: at the last position, or at an encoder's one mask token.

    Raises:
        ValueError: an encoder's prompts do not hold one mask token each, at one position.
    """
    if model.causal:
        return None
    mask = getattr(model.tokenizer, "mask_token_id", None)
    found = [
        (run.ids_BT[0] == mask).nonzero()[:, 0].tolist() if mask is not None else []
        for run in (source, target)
    ]
    if len(found[0]) != 1 or found[0] != found[1]:
        raise ValueError(
            f"{model.name} predicts masked tokens: write the mask token"
            f" {getattr(model.tokenizer, 'mask_token', '')!r} once in each prompt, at the same position"
        )
    return found[0][0]


def pair_of(text: str, clean: int, corrupt: int) -> tuple[int, int]:
    """A pair of positions written CLEAN:CORRUPT, of prompts of so many tokens.

    Raises:
        ValueError: it is none, or outside the prompts.
    """
    first, colon, second = text.partition(":")
    if not colon or not first.strip().isdigit() or not second.strip().isdigit():
        raise ValueError(f"{text!r} is no pair of positions: write CLEAN:CORRUPT, for example 3:4")
    a, b = int(first), int(second)
    if a >= clean or b >= corrupt:
        raise ValueError(f"the pair {text} is outside the prompts of {clean} and {corrupt} tokens")
    return a, b

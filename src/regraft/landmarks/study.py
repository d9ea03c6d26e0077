"""A study: a model whose figures were published, the steps that give the same quantities here, the figures.

Studies are TOML files in `studies/`: data, in which alone models have names. A landmark names a variable of a
step's result and a place in it; its value is a number, or a range over several places.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

Value = float | tuple[float, float]
"""A number, or the least and the largest of several."""


@dataclass(frozen=True)
class Landmark:
    """One published figure.

    `at` chooses in a variable's dimensions: a label, `[first, last]` of a range of labels, or `mean` over all
    of them. A coordinate along a dimension chooses by its labels.
    """

    quantity: str
    variable: str
    at: Mapping[str, Any]
    value: Value

    @property
    def place(self) -> str:
        """Where in the variable, in words."""
        return ", ".join(f"{name} {_said(chosen)}" for name, chosen in self.at.items())


def _said(chosen: Any) -> str:
    return f"{chosen[0]} to {chosen[1]}" if isinstance(chosen, (list, tuple)) else str(chosen)


@dataclass(frozen=True)
class Step:
    """An experiment with its options, a command, or a count of adapters' features; and what it should
    give."""

    name: str
    experiment: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    makes: str = ""
    """What is there, in the output folder, once a command has run to its end; a certificate is its result."""
    adapters: bool = False
    """Whether the model is a folder of published adapters, whose active features are counted."""
    text: bool = False
    """Whether the landmarks are of a text that the user must give."""
    differs: str = ""
    landmarks: tuple[Landmark, ...] = ()


@dataclass(frozen=True)
class Shape:
    """What a plan needs to know of a model: blocks, width, widest layer, vocabulary, parameters."""

    blocks: int
    width: int
    neurons: int
    vocabulary: int
    parameters: int


@dataclass(frozen=True)
class Study:
    """A model, who published what of it, in which type of numbers, and the steps."""

    name: str
    model: str
    source: str
    dtype: str
    shape: Shape | None
    steps: tuple[Step, ...]
    weights_sha256: str = ""
    note: str = ""

    @property
    def landmarks(self) -> int:
        """Figures of all steps."""
        return sum(len(step.landmarks) for step in self.steps)


def read_study(name: str, text: str) -> Study:
    """A study from its TOML.

    Raises:
        ValueError: a step that is none of what can be run.
    """
    told = tomllib.loads(text)
    steps = tuple(_step(one) for one in told["steps"])
    shape = Shape(**told["shape"]) if "shape" in told else None
    return Study(
        name, told["model"], told["source"], told["dtype"], shape, steps, told.get("weights_sha256", ""),
        told.get("note", ""),
    )  # fmt: skip


def _step(told: dict[str, Any]) -> Step:
    landmarks = tuple(
        Landmark(quantity, variable, at, tuple(value) if isinstance(value, list) else float(value))
        for quantity, variable, at, value in told.get("landmarks", [])
    )
    step = Step(
        told.get("name") or told["experiment"],
        told.get("experiment", ""),
        told.get("options", {}),
        tuple(told.get("command", ())),
        told.get("makes", ""),
        told.get("adapters", False),
        told.get("text", False),
        told.get("differs", ""),
        landmarks,
    )
    if sum(map(bool, (step.experiment, step.command, step.adapters))) != 1:
        raise ValueError(f"the step {step.name!r} is to be an experiment, a command or adapters: one of them")
    return step


@cache
def studies() -> dict[str, Study]:
    """Every study by its name."""
    folder = resources.files("regraft.landmarks").joinpath("studies")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda f: f.name)
    return {
        file.name.removesuffix(".toml"): read_study(file.name.removesuffix(".toml"), file.read_text("utf-8"))
        for file in files
    }


def study_for(model: str, name: str = "") -> Study:
    """The study that is named, else the one of this model.

    Raises:
        ValueError: there is no such study, or none of this model.
    """
    known = studies()
    if name:
        if name not in known:
            raise ValueError(f"there is no study {name!r}: choose one of {', '.join(known)}")
        return known[name]
    found = [study for study in known.values() if study.model.lower() == model.lower()]
    if not found:
        names = ", ".join(f"{study.name} ({study.model})" for study in known.values())
        raise ValueError(
            f"no figures of {model} are known here: a folder with a published model's weights is told which"
            f" by --study; there are {names}"
        )
    return found[0]


def check_shape(study: Study, blocks: int, width: int, vocabulary: int) -> None:
    """Make sure that a model can be the one whose figures were published.

    Raises:
        ValueError: it has another shape.
    """
    shape = study.shape
    if shape is None or (blocks, width, vocabulary) == (shape.blocks, shape.width, shape.vocabulary):
        return
    raise ValueError(
        f"this model has {blocks} blocks of width {width:,} and {vocabulary:,} tokens, {study.model} has"
        f" {shape.blocks} of {shape.width:,} and {shape.vocabulary:,}: its figures are another model's"
    )


def chosen_steps(study: Study, only: Sequence[str]) -> list[Step]:
    """The steps that are asked for, in the study's order.

    Raises:
        ValueError: there is no such step.
    """
    names = [step.name for step in study.steps]
    if wrong := [name for name in only if name not in names]:
        raise ValueError(f"{study.name} has no step {wrong[0]!r}: its steps are {', '.join(names)}")
    return [step for step in study.steps if not only or step.name in only]

"""The Python lines that do what a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regraft.model.recording import Recording
from regraft.studio.opening import has_adapters
from regraft.studio.readings import Asked
from regraft.studio.touches import line_of

OTHERS = {"Path": "pathlib"}
OWN = {
    "open_grafted": "regraft.studio.opening",
    "open_plain": "regraft.studio.opening",
    "read_vector": "regraft.sweeps.edit_words",
}
"""What the lines call beside `regraft` itself, and where it lies: other libraries', and our own."""


def code(
    source: tuple[str, Sequence[Path]],
    asked: Asked,
    clean: Recording,
    other: Recording | None,
    target: int,
    tokens: int,
) -> str:
    """A program that measures the same change and writes the same continuations.

    Args:
        source: what the model was opened by, and the folders of the grafts that are in it.
        asked: prompts and changes.
        clean: the first prompt's recording.
        other: the second prompt's.
        target: the token whose logit is told.
        tokens: how many are written.
    """
    lines = [*_opened(*source), f"clean = model.record({asked.prompt!r})"]
    if other is not None:
        lines.append(f"other = model.record({asked.second!r})")
    metrics = f"regraft.loss(), regraft.token_logit({target}), regraft.probability({target})"
    given, parts = "", []
    if asked.touches:
        lines += ["edits = [", *(f"    {line_of(touch, clean, other)}," for touch in asked.touches), "]"]
        given, parts = ", edits=edits", ["edits"]
    if asked.order is not None:
        lines.append(f"route = regraft.Route.order({list(asked.order)})")
        given, parts = f"{given}, route=route", [*parts, "route=route"]
    lines += [
        f"result = regraft.sweep(clean, regraft.Variant({', '.join(parts)}), [{metrics}])",
        "print(result)",
        f"print(model.generate({asked.prompt!r}, tokens={tokens}))",
    ]
    if given:
        lines.append(f"print(model.generate({asked.prompt!r}, tokens={tokens}{given}))")
    return _with_imports(lines)


def _with_imports(lines: Sequence[str]) -> str:
    """Lines behind the imports of what they call."""
    program = "\n".join(lines) + "\n"
    (first, own) = (
        [f"from {where} import {name}" for name, where in group.items() if f"{name}(" in program]
        for group in (OTHERS, OWN)
    )
    return "\n".join([*first, *([""] if first else []), "import regraft", *own, "", program])


def _opened(source: str, grafts: Sequence[Path]) -> list[str]:
    """The lines that open the model, with its grafts in their places."""
    if [str(folder) for folder in grafts] == [source]:
        return [f"model, adapters = regraft.open_transcoder({source!r})"]
    if has_adapters(source):
        return [f"model = open_plain({source!r}).model"]
    if not grafts:
        return [f"model = regraft.load({source!r})"]
    return [
        f"plain = regraft.load({source!r})",
        f"grafts = [regraft.attach(Path(folder), plain) for folder in {[str(folder) for folder in grafts]}]",
        "model, take_out = open_grafted(plain, grafts)",
    ]

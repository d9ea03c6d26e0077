"""The Python lines that do what a page shows."""

from __future__ import annotations

from regraft.model.recording import Recording
from regraft.studio.readings import Asked
from regraft.studio.touches import line_of


def code(
    source: str, asked: Asked, clean: Recording, other: Recording | None, target: int, tokens: int
) -> str:
    """A program that measures the same change and writes the same continuations.

    Args:
        source: what the model was opened by.
        asked: prompts and changes.
        clean: the first prompt's recording.
        other: the second prompt's.
        target: the token whose logit is told.
        tokens: how many are written.
    """
    lines = [
        "import regraft",
        "",
        f"model = regraft.load({source!r})",
        f"clean = model.record({asked.prompt!r})",
    ]
    if other is not None:
        lines.append(f"other = model.record({asked.second!r})")
    metrics = f"regraft.loss(), regraft.token_logit({target}), regraft.probability({target})"
    given = ""
    if asked.touches:
        lines += ["edits = [", *(f"    {line_of(touch, clean, other)}," for touch in asked.touches), "]"]
        given += ", edits=edits"
    if asked.order is not None:
        lines.append(f"route = regraft.Route.order({list(asked.order)})")
        given += ", route=route"
    change = {
        (True, True): "regraft.Variant(edits, route)",
        (True, False): "regraft.Variant(edits)",
        (False, True): "route",
        (False, False): "regraft.Variant()",
    }[bool(asked.touches), asked.order is not None]
    lines += [
        f"result = regraft.sweep(clean, {change}, [{metrics}])",
        "print(result)",
        f"print(model.generate({asked.prompt!r}, tokens={tokens}))",
    ]
    if given:
        lines.append(f"print(model.generate({asked.prompt!r}, tokens={tokens}{given}))")
    return "\n".join(lines) + "\n"

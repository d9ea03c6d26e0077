"""Pages of the reference: one for each group of public names, from their docstrings; what an experiment
returns is told from what its example measured."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import xarray as xr

import regraft
from regraft import load
from regraft.core.quantities import READING, UNITS
from tools.docs_site.examples import home_of, run_example
from tools.docs_site.public_names import EXPERIMENTS, GROUPS

FUNCTION = re.compile(r"<function (\w+) at \w+>")
"""How Python writes a function that is a default."""
WIDE = 84
"""Letters of a line of code that fit on a page."""
STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
HEAD = """!!! note "Examples"
    Every example on this page ran when the page was made. They begin with `import regraft` and
    `model = regraft.load()`; `numpy`, `torch` and `pathlib` are imported.
"""


def file_of(title: str) -> str:
    """The name of a group's page."""
    return f"{title.lower()}.md"


def returned(data: xr.Dataset) -> str:
    """The variables of a result as a table: name, shape by dimensions, unit, how to read it."""
    rows = ["| variable | dimensions | unit | how to read it |", "|---|---|---|---|"]
    for name, values in data.data_vars.items():
        sizes = ", ".join(f"{dim} {size}" for dim, size in values.sizes.items()) or "one number"
        told = [str(values.attrs.get(key, "")) for key in (UNITS, READING)]
        unit, reading = (text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for text in told)
        rows.append(f"| `{name}` | {sizes} | {unit} | {reading} |")
    return "\n".join(rows)


def signature(name: str) -> str:
    """How a function is called, with the values of its defaults; one parameter on each line where all of them
    do not fit on one."""
    found = inspect.signature(inspect.unwrap(getattr(regraft, name)))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    written = [
        str(inspect.Signature([p.replace(kind=p.KEYWORD_ONLY)]))[1:-1] for p in bare if p.kind not in STARRED
    ]
    stars = [("**" if p.kind is p.VAR_KEYWORD else "*") + p.name for p in bare if p.kind in STARRED]
    parts = [re.sub(r"^\*, ", "", FUNCTION.sub(r"\1", one)) for one in [*written, *stars]]
    first = next((i for i, p in enumerate(bare) if p.kind is p.KEYWORD_ONLY), None)
    if first is not None:
        parts.insert(first, "*")
    line = f"regraft.{name}({', '.join(parts)})"
    if len(line) <= WIDE:
        return line
    return "\n".join([f"regraft.{name}(", *(f"    {part}," for part in parts), ")"])


def entry(name: str, data: xr.Dataset | None) -> str:
    """A name's place on its page."""
    called = "" if inspect.isclass(getattr(regraft, name)) else f"```python\n{signature(name)}\n```\n\n"
    text = f"## {name} {{ #{name} }}\n\n{called}::: {home_of(name)}\n"
    if data is None:
        return text
    sizes = "sizes are those of the example above"
    return (
        f'{text}\n??? abstract "What `{name}` returns: {len(data.data_vars)} variables ({sizes})"\n\n'
        + "\n".join(f"    {line}" for line in returned(data).splitlines())
        + "\n"
    )


def write_pages(folder: Path, names: set[str] | None = None) -> list[str]:
    """Run every example and write the pages.

    Args:
        folder: where to.
        names: whose examples are run; by default all.

    Returns:
        What differs from what the docstrings say, a text for each example that is wrong.
    """
    folder.mkdir(parents=True)
    model, wrong = load(), []
    index = ["# Python reference", "", HEAD]
    for title, (summary, members) in GROUPS.items():
        parts = [f"# {title}", "", summary, "", HEAD]
        for name in members:
            found, left = run_example(name, model) if names is None or name in names else ([], {})
            wrong += [f"regraft.{name}: {one}" for one in found]
            parts.append(entry(name, measured(left) if title in EXPERIMENTS else None))
        (folder / file_of(title)).write_text("\n".join(parts), encoding="utf-8")
        links = ", ".join(f"[`{name}`]({file_of(title)}#{name})" for name in members)
        index += [f"## [{title}]({file_of(title)})", "", f"{summary} {links}", ""]
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")
    return wrong


def measured(left: dict[str, Any]) -> xr.Dataset | None:
    """The result that an experiment's example leaves."""
    data = left.get("data")
    return data if isinstance(data, xr.Dataset) else None

"""Tutorials: scripts in cells, run by Jupyter as a reader runs them, and written as pages with what they
showed.

The sources are `docs/tutorials/*.py` in jupytext's percent format. Each becomes a notebook to download, with
its outputs, and a Markdown page: figures as still pictures with the interactive one behind a link, solutions
folded.
"""

from __future__ import annotations

import base64
import html
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import numpy as np
import plotly.io
from nbclient import NotebookClient

from regraft.reporting.still_picture import stands_still, still
from regraft.reporting.theme import CONFIG

SOURCES = Path(__file__).parent.parent.parent / "docs" / "tutorials"
TITLES = {
    "where_decided": "Find where an answer is decided",
    "steer": "Steer a model and prove what it did",
    "prune_and_ship": "Prune and ship",
    "swap_tokenizer": "Swap a tokenizer",
    "rebuild_gpt2": "Rebuild GPT-2",
    "two_checkpoints": "From two checkpoints to a feature page",
}
"""The tutorials in order."""
TIMEOUT = 600
"""Seconds after which a cell is given up. A tutorial takes less than two minutes on two idle cores, which the
build prints; a busy machine is no fault of a page."""
PLOTLY = "application/vnd.plotly.v1+json"
SOLUTION = "solution"
SCRIPT = "../../assets/plotly-cartesian.min.js"
"""Where a figure's own page finds the drawing library: once on the site."""


def read(name: str) -> Any:
    """A tutorial as a notebook without outputs."""
    made = jupytext.read(SOURCES / f"{name}.py")
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return made


def run(name: str) -> tuple[Any, float]:
    """Run a tutorial in an empty folder.

    Returns:
        The notebook with its outputs, and the seconds that its cells took.

    Raises:
        CellExecutionError: a cell ended in an error.
        CellTimeoutError: a cell took too long.
    """
    made = read(name)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            made, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        with client.setup_kernel():
            began = time.monotonic()
            for number, cell in enumerate(made.cells):
                client.execute_cell(cell, number)
            seconds = time.monotonic() - began
    for cell in made.cells:
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        if cell.cell_type == "code":
            # what libraries say as they load is of this machine, not of the tutorial
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return made, seconds


def write_pages(folder: Path, names: dict[str, str] = TITLES) -> dict[str, float]:
    """Run the tutorials and write their pages and notebooks into a folder.

    Returns:
        Seconds by tutorial.
    """
    taken = {}
    (folder / "figures").mkdir(parents=True)
    for name in names:
        made, taken[name] = run(name)
        nbformat.write(made, folder / f"{name}.ipynb")
        (folder / f"{name}.md").write_text(page(made, name, folder / "figures"), encoding="utf-8")
    return taken


def page(made: Any, name: str, figures: Path) -> str:
    """A notebook that has run, as Markdown."""
    parts = []
    for number, cell in enumerate(made.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        code = f"```python\n{cell.source}\n```"
        shown = [output(one, f"{name}-{number}", figures) for one in cell.outputs]
        text = "\n\n".join([code, *filter(None, shown)])
        if SOLUTION in cell.metadata.get("tags", []):
            text = '??? success "A solution"\n\n' + re.sub(r"(?m)^(?=.)", "    ", text)
        parts.append(text)
        if len(parts) > 1 and number == first_code(made):
            parts.append(f"[Download the notebook]({name}.ipynb){{ .md-button }}")
    return "\n\n".join(parts) + "\n"


def first_code(made: Any) -> int:
    """The number of the first cell of code."""
    return next(number for number, cell in enumerate(made.cells) if cell.cell_type == "code")


def output(one: Any, name: str, figures: Path) -> str:
    """What a cell showed, as Markdown or HTML."""
    if one.output_type == "stream":
        return f"```{{ .text .output }}\n{one.text.rstrip()}\n```"
    data = one.get("data", {})
    if PLOTLY in data:
        return figure(data[PLOTLY], name, figures)
    if "text/html" in data:
        shown = "".join(data["text/html"])
        return f'<div class="shown" markdown="0">\n{blank_lines_out(shown)}\n</div>'
    text = "".join(data.get("text/plain", ""))
    return f"```{{ .text .output }}\n{text}\n```" if text else ""


def blank_lines_out(text: str) -> str:
    """HTML that Markdown takes as one block: an empty line would end it. Styles of a table are the site's."""
    without = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return "\n".join(line for line in without.splitlines() if line.strip())


def plain(part: Any) -> Any:
    """A figure's data with its arrays as lists: plotly writes them as base64."""
    if isinstance(part, dict) and "bdata" in part:
        flat = np.frombuffer(base64.b64decode(part["bdata"]), part["dtype"])
        shape = [int(size) for size in part.get("shape", str(flat.size)).split(",")]
        return flat.reshape(shape).tolist()
    if isinstance(part, dict):
        return {name: plain(value) for name, value in part.items()}
    return [plain(value) for value in part] if isinstance(part, list) else part


def figure(data: dict[str, Any], name: str, figures: Path) -> str:
    """A still picture of a figure, and a link to the figure itself."""
    drawn = plotly.io.from_json(json.dumps({"data": plain(data["data"]), "layout": data["layout"]}))
    if not stands_still(drawn):
        raise ValueError(f"there is no still picture of the figure of {name}: show another")
    title = drawn.layout.title.text or name
    plotly.io.write_html(drawn, figures / f"{name}.html", include_plotlyjs=SCRIPT, config=CONFIG)
    caption = f'{html.escape(title)} · <a href="figures/{name}.html">interactive</a>'
    return f'<figure class="drawn" markdown="0">{still(drawn)}<figcaption>{caption}</figcaption></figure>'

"""Write `docs/tour.ipynb`: a short tour, run by Jupyter as a user runs it, with what it showed.

`pip install -c constraints.txt -e ".[docs]"`, then `python tools/make_notebook.py`.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

PAGE = Path(__file__).parent.parent / "docs" / "tour.ipynb"
CELLS = (
    (
        "text",
        "# A tour\n\nTake a transformer apart, see what every part does, put another part in its place.",
    ),
    (
        "code",
        "import regraft\nfrom regraft import Add, Zero, grid, load, loss, sweep\n\nmodel = load()\nmodel",
    ),
    ("text", "A recording is one clean run; what is scored is blue."),
    (
        "code",
        'text = "The time displayed is 9:00 am. Therefore, it is currently the"\n'
        'clean = model.record(text, " morning")\nclean',
    ),
    ("text", "Leave out every head, one at a time: an `xarray.Dataset`, and its figure."),
    (
        "code",
        'cells = grid(lambda block, head: Zero(f"{block}.head.{head}"), block=range(12), head=range(6))\n'
        "heads = sweep(clean, cells, loss())\n"
        "heads.loss.sel(block=6)",
    ),
    ("code", "heads.regraft.figure()"),
    ("text", "Every experiment is a function; its result draws itself as the report does."),
    ("code", "knocked = regraft.knockout(model, count=4)\nknocked.regraft.figure()"),
    ("code", "knocked.regraft.table().head()"),
    ("text", "What does the model write when a direction is added to its stream at every new token?"),
    (
        "code",
        'night = model.activations(" night", "6.resid_post", positions=-1)["6.resid_post"].values[0]\n'
        'towards = Add("6.resid_post", 0.3 * night, "new")\n'
        'print(model.generate("It is dark and she walks", tokens=12))\n'
        'print(model.generate("It is dark and she walks", edits=towards, tokens=12))',
    ),
)


def main() -> None:
    """Make the notebook, run it, write it."""
    made = nbformat.v4.new_notebook()
    for number, (kind, source) in enumerate(CELLS):
        cell = nbformat.v4.new_markdown_cell(source) if kind == "text" else nbformat.v4.new_code_cell(source)
        cell["id"] = f"cell-{number}"
        made.cells.append(cell)
    NotebookClient(made, timeout=600, kernel_name="python3", record_timing=False).execute()
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in made.cells:
        cell.metadata = {}
        # What libraries say as they load is of this machine, not of the tour.
        shown = [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]
        if cell.cell_type == "code":
            cell.outputs = shown
    nbformat.write(made, PAGE)
    print(f"{PAGE.name}: {PAGE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

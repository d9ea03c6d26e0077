"""Do the eight tasks in regraft, TransformerLens and nnsight, each in its own environment, hold their numbers
to one another, and write `docs/tasks.md`: `python -m benchmarks.tasks.run`.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.processes import environment, quiet_variables
from benchmarks.tasks.shared import NAMES
from regraft.checkpoint.hub import resolve

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULT, PAGE = ROOT / "benchmarks" / "results" / "tasks.json", ROOT / "docs" / "tasks.md"
TOOLS = {"regraft": "regraft", "transformer_lens": "TransformerLens 4.3.0", "nnsight": "nnsight 0.8.1"}
PEERS = {"transformer_lens": "tl", "nnsight": "nn"}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
EQUAL, KEPT = 1e-9, 16
"""Share of a task's largest number by which two tools may differ, since all compute in float64; and how many
of a task's numbers are kept in the result."""
MOST_LINES = 4
"""Lines of a task in regraft."""
HEAD = """# Eight tasks, three tools

*Coming from TransformerLens or nnsight? Here is the same work in all three, and the same numbers.*

Each piece below is the body of a function that is run: `python -m benchmarks.tasks.run` does every task in
each tool's own environment, on `specimen:gpt2` in float64 with a chat template, holds the numbers to one
another (within {equal:g} of the largest) and writes this page. What the pieces share stands in
`benchmarks/tasks/`: `model`, the texts `CLEAN`, `CORRUPT`, `STORY` and `PROMPTS`, the autoencoder `sae`; for
the other two also `tokens(text)` and `difference(logits)`, the logit of " morning" minus that of " night".
"""


def source_of(tool: str) -> dict[str, str]:
    """The body of every task in a tool's script, as it is written."""
    text = (HERE / f"with_{tool}.py").read_text(encoding="utf-8")
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            body = lines[node.body[0].lineno - 1 : node.end_lineno]
            found[node.name] = textwrap.dedent("\n".join(body)).replace("  # noqa: E731", "")
    return {name: found[name] for name, _ in NAMES}


def model_folder(folder: Path) -> Path:
    """The specimen with a chat template, so that a chat can be asked of it."""
    made = folder / "model"
    shutil.copytree(resolve("specimen:gpt2")[0], made)
    config = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = TEMPLATE
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def done_by(tool: str, python: Path, model: Path, folder: Path) -> dict[str, Any]:
    """A tool's numbers for every task."""
    out = folder / f"{tool}.json"
    command = [str(python), "-m", f"benchmarks.tasks.with_{tool}", str(model), str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=quiet_variables(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{tool}: {done.stderr[-2000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def apart(one: Any, other: Any) -> float:
    """The largest difference of two tools' numbers, as a share of the largest number; infinite where there
    are none."""
    if np.shape(one) != np.shape(other):
        return float("inf")
    a, b = np.array(one), np.array(other)
    return float(np.abs(a - b).max() / np.abs(a).max())


def page(kept: dict[str, Any]) -> str:
    """The page, from the scripts as they are and how far their numbers were apart."""
    parts = [HEAD.format(equal=EQUAL)]
    codes = {tool: source_of(tool) for tool in TOOLS}
    for number, (name, title) in enumerate(NAMES, start=1):
        parts.append(f"## {number}. {title}\n")
        for tool, label in TOOLS.items():
            off = kept["apart"].get(tool, {}).get(name, 0.0)
            said = (
                "" if tool == "regraft" else f" (numbers within {off:.0e})" if off else " (the same numbers)"
            )
            parts.append(f"**{label}**{said}\n\n```py\n{codes[tool][name]}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Run everything; the exit status is 1 where a number differs."""
    parser = ArgumentParser(description=__doc__)
    for name in PEERS.values():
        parser.add_argument(f"--{name}", type=Path, help="an environment that has this peer and plotly")
    given = {name: folder for name, folder in vars(parser.parse_args()).items() if folder}
    pythons = {tool: environment(PEERS.get(tool, tool), given) for tool in TOOLS}
    with tempfile.TemporaryDirectory() as place:
        model = model_folder(Path(place))
        results = {tool: done_by(tool, pythons[tool], model, Path(place)) for tool in TOOLS}
    wrong = [
        f"{name} in {tool} differs by {off:.1e}"
        for name, _ in NAMES
        for tool in TOOLS
        if not (off := apart(results["regraft"][name], results[tool][name])) <= EQUAL
    ]
    kept = {
        "numbers": {name: results["regraft"][name][:KEPT] for name, _ in NAMES},
        "apart": {
            tool: {name: apart(results["regraft"][name], results[tool][name]) for name, _ in NAMES}
            for tool in PEERS
        },
    }
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")
    print(*wrong or ["every task gives the same numbers in all three"], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The surgery that regraft and mergekit share, done by both, tensors compared to the bit:
`python -m benchmarks.tasks.merges` writes `docs/coming-from-mergekit.md`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from argparse import ArgumentParser
from pathlib import Path

import torch
from safetensors.torch import load_file

import regraft
from benchmarks.peers.processes import environment, quiet_variables
from regraft.checkpoint.hub import resolve

ROOT = Path(__file__).resolve().parent.parent.parent
RESULT = ROOT / "benchmarks" / "results" / "merges.json"
PAGE = ROOT / "docs" / "coming-from-mergekit.md"
TASKS = (
    (
        "Leave blocks out",
        'regraft.prune(model, drop=[1], save="made")',
        "regraft prune --model specimen:gpt2 --drop 1 --save made",
        """\
        merge_method: passthrough
        dtype: bfloat16
        slices:
          - sources: [{model: GPT2, layer_range: [0, 1]}]
          - sources: [{model: GPT2, layer_range: [2, 4]}]
        """,
    ),
    (
        "Run a block twice",
        'regraft.repeat(model, block=2, times=2, save="made")',
        "regraft repeat --model specimen:gpt2 --block 2 --times 2 --save made",
        """\
        merge_method: passthrough
        dtype: bfloat16
        slices:
          - sources: [{model: GPT2, layer_range: [0, 3]}]
          - sources: [{model: GPT2, layer_range: [2, 4]}]
        """,
    ),
    (
        "Put blocks into another order",
        'regraft.reorder(model, order=[0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11], save="made")',
        "regraft reorder --order 0 1 2 3 5 4 6 7 8 9 10 11 --save made",
        """\
        merge_method: passthrough
        dtype: bfloat16
        slices:
          - sources: [{model: QWEN3, layer_range: [0, 4]}]
          - sources: [{model: QWEN3, layer_range: [5, 6]}]
          - sources: [{model: QWEN3, layer_range: [4, 5]}]
          - sources: [{model: QWEN3, layer_range: [6, 12]}]
        """,
    ),
    (
        "Take a block from another model",
        'regraft.transplant(model, donor="specimen:tuned", put=["7:7"], save="made")',
        "regraft transplant --donor specimen:tuned --put 7:7 --save made",
        """\
        merge_method: passthrough
        dtype: bfloat16
        slices:
          - sources: [{model: QWEN3, layer_range: [0, 7]}]
          - sources: [{model: TUNED, layer_range: [7, 8]}]
          - sources: [{model: QWEN3, layer_range: [8, 12]}]
        """,
    ),
)
"""What is done, in regraft from Python and from the command line, and in mergekit."""
SPECIMENS = {"GPT2": "specimen:gpt2", "QWEN3": "specimen:qwen3", "TUNED": "specimen:tuned"}
"""What the recipes' words stand for."""
HEAD = """# Coming from mergekit

*The same surgery in both, and the same tensors.*

`python -m benchmarks.tasks.merges` did every task below with both tools, mergekit {mergekit}
in an environment of its own, and compared all {tensors} tensors of the written folders to the bit:
{equal}. It writes this page; in the recipes `GPT2`, `QWEN3` and `TUNED` stand for the folders of the
specimens of these names.

What regraft adds: it measures what the surgery does before it writes (the loss, the distance from the whole
model, with a control row), refuses what would not run, reads the folder again before it keeps it, and writes
a card. What it does not do: averages of weights (linear, slerp, TIES, DARE and their kin), and mixtures of
experts made from dense models. For those stay with mergekit, and open the result with
`regraft report --model FOLDER`.
"""
TAIL = """## One after the other

What was written is a model like any other: save, and go on from there. Name the prompts, so that losses
compare.

```bash
regraft transplant --donor specimen:tuned --put 7:7 --save hybrid --prompts-file questions.txt
regraft repeat --model hybrid --block 3 --times 2 --save hybrid-twice --prompts-file questions.txt
regraft report --model specimen:qwen3 --beside hybrid-twice --chapters knockout --out beside
```

Each model is scored on what it writes itself behind a prompt, so a loss says how sure it is of its own text.
On the *same* text compare by `kl` in the table of `transplant`, the distance from the model as it was, or by
`patch`, which reads tokens that you name.

## Another tokenizer

`mergekit-tokensurgeon` and `regraft tokenizer transplant` answer one question in different ways, so their
rows are not the same. Its approximation by matching pursuit is `--method pursuit` here; beside the rows
regraft measures bits per byte before and after, both controls, and heals on request:
[tokenizers](tokenizers.md).
"""


def by_mergekit(command: Path, recipe: str, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that mergekit writes for a recipe."""
    file = folder / "recipe.yml"
    for word, specimen in SPECIMENS.items():
        recipe = recipe.replace(word, str(resolve(specimen)[0]))
    file.write_text(recipe, encoding="utf-8")
    variables = {**os.environ, **quiet_variables()}
    done = subprocess.run(
        [str(command), str(file), str(folder / "theirs")],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return tensors(folder / "theirs")


def by_regraft(code: str, model: str, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that a line of regraft writes of a model."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        eval(code, {"regraft": regraft, "model": regraft.load(model)})
    finally:
        os.chdir(here)
    return tensors(folder / "made")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder by name."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that one lacks, or that differ by a bit or a type."""
    names = sorted({*ours, *theirs})
    return [
        name
        for name in names
        if name not in ours
        or name not in theirs
        or ours[name].dtype != theirs[name].dtype
        or not torch.equal(ours[name], theirs[name])
    ]


def page(kept: dict[str, object]) -> str:
    """The page, from the tasks as they are and what was found."""
    parts = [HEAD.format(**kept)]
    for number, (title, python, command, recipe) in enumerate(TASKS, start=1):
        parts += [
            f"## {number}. {title}\n",
            f"**regraft**\n\n```py\n{python}\n```\n\n```bash\n{command}\n```\n",
            f"**mergekit**\n\n```yaml\n{textwrap.dedent(recipe)}```\n",
        ]
    return "\n".join([*parts, TAIL])


def main() -> int:
    """Do everything; the exit status is 1 where a tensor differs."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--mk", type=Path, help="an environment that has mergekit")
    given = {name: folder for name, folder in vars(parser.parse_args()).items() if folder}
    python = environment("mk", given)
    asked = "from importlib.metadata import version; print(version('mergekit'))"
    version = subprocess.run(
        [str(python), "-c", asked], capture_output=True, text=True, check=True
    ).stdout.strip()
    wrong, count = [], 0
    for title, code, _, recipe in TASKS:
        with tempfile.TemporaryDirectory() as place:
            base = SPECIMENS["GPT2" if "GPT2" in recipe else "QWEN3"]
            ours = by_regraft(code, base, Path(place))
            theirs = by_mergekit(python.parent / "mergekit-yaml", textwrap.dedent(recipe), Path(place))
        wrong += [f"{title}: {name}" for name in differing(ours, theirs)]
        count += len(ours)
    equal = "none differs" if not wrong else f"{len(wrong)} differ"
    kept: dict[str, object] = {"mergekit": version, "tensors": count, "equal": equal, "differ": wrong}
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")
    print(*wrong or [f"all {count} tensors are the same"], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

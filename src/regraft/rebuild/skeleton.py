"""A folder for a student: every stage's name and shape, the official tensors, and a check of one's own implementation."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regraft.model.files import CheckpointError
from regraft.model.load import resolve
from regraft.rebuild.checkpoint import model_inputs, open_rebuilt, token_ids
from regraft.rebuild.official import ask
from regraft.rebuild.verify import TEXTS, Verdict, order_of, verify_stages
from regraft.runs import RunFolderError, whole_folder

WHAT = {
    "embed.tokens": "the row of the token table for every id",
    "embed.positions": "the row of the position table for every place",
    "embed.types": "the row of the type table for every token",
    "embed.sum": "what enters the first block (or its norm): the embeddings added up",
    "embed.norm": "the sum, normed",
    "rope.cos": "cosine of every position's angles, halves alike",
    "rope.sin": "sine of every position's angles, halves alike",
    "relative_bias": "what each head adds for the distance of two tokens, looked up by bucket",
    "attn_norm": "the normed stream: in front of attention (pre-norm), or behind it (post-norm)",
    "qkv": "queries, keys and values side by side, projected in one",
    "q": "queries, all heads side by side",
    "k": "keys, all heads side by side",
    "v": "values, all heads side by side",
    "q_norm": "queries, each head's normed",
    "k_norm": "keys, each head's normed",
    "scores": "queries times keys, scaled, with bias and mask: what softmax is given",
    "probs": "softmax of the scores",
    "heads": "probabilities times values, all heads side by side again",
    "attn_out": "the heads through the output matrix",
    "resid_mid": "the stream after attention",
    "mlp_norm": "the normed stream in front of the MLP",
    "mlp_in": "the first matrix of the MLP",
    "mlp_gate": "the gate's matrix of the MLP",
    "mlp_up": "the matrix that the gate multiplies",
    "mlp_act": "behind the activation (and the gate): what the last matrix is given",
    "mlp_out": "the last matrix of the MLP",
    "resid_post": "the stream that leaves the block",
    "final_norm": "the stream, normed for the last time",
    "scaled": "the stream, scaled for the tied head",
    "pooler": "the first token through one more layer",
    "head.dense": "the head's first layer",
    "head.norm": "its activation, normed",
    "logits": "one number for every token of the vocabulary",
    "sentence": "one vector of length 1 for every text",
}
TASK, TRUTH, OWN, CHECK = "task.json", "truth.safetensors", "model.py", "check.py"
INPUT = "input:"


def write_skeleton(source: str, folder: Path, texts: Sequence[str] = ()) -> list[tuple[str, tuple[int, ...]]]:
    """Write the folder; the rebuilt model of this package passes it first. Returns the stages with their shapes.

    Raises:
        RunFolderError: the folder is not empty.
        CheckpointError: the model is not one that is rebuilt here.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"the folder {folder} is not empty: choose another with --skeleton")
    path, name = resolve(source)
    rebuilt = open_rebuilt(path, name=name)
    given = list(texts) or (list(TEXTS) if (path / "tokenizer.json").is_file() else ["5 6 7 8 9", "10 11 12"])
    ids = token_ids(path, given)
    inputs = model_inputs(rebuilt.config, ids, rebuilt.two_stacks)
    official = ask(order_of(rebuilt, "float32", ids, given, inputs, 0))
    with torch.no_grad():
        verdict = verify_stages(rebuilt.stages(inputs), official.tensors, rebuilt.weights, rebuilt.heads)
    if verdict.parted:
        raise CheckpointError(f"{name} is not rebuilt here: stage {verdict.parted} parts from the official one")
    stages = [(row.stage, row.shape) for row in verdict.rows]
    with whole_folder(folder) as fresh:
        truth = {stage: official.tensors[stage] for stage, _ in stages}
        save_file({**truth, **{INPUT + n: t.contiguous() for n, t in inputs.items()}}, fresh / TRUTH)
        task = {
            "source": source,
            "architecture": rebuilt.architecture,
            "texts": given,
            "official": official.facts,
            "weights_sha256": rebuilt.weights_sha256,
            "config": rebuilt.config,
            "stages": [{"stage": s, "shape": shape, "what": what_is(s)} for s, shape in stages],
        }
        (fresh / TASK).write_text(json.dumps(task, indent=1) + "\n", encoding="utf-8")
        (fresh / OWN).write_text(_own(name, stages, inputs), encoding="utf-8")
        (fresh / CHECK).write_text(_CHECK, encoding="utf-8")
        (fresh / "README.md").write_text(_readme(name, rebuilt.architecture, stages), encoding="utf-8")
    return stages


def what_is(stage: str) -> str:
    """A stage in words."""
    if stage in WHAT:
        return WHAT[stage]
    kind = stage.rpartition(".")[2]
    within = ".".join(stage.split(".")[-2:])
    said = WHAT.get(within) or WHAT[kind.removeprefix("cross_")]
    return f"towards the encoder: {said}" if kind.startswith("cross_") else said


def check(folder: Path) -> Verdict:
    """Score `model.py` of a skeleton folder: its stages beside the official tensors, up to the first that parts.

    Raises:
        CheckpointError: the folder is no skeleton, or the model's weights are not those that it was made from.
        ValueError: `model.py` cannot be run, or yields something else than pairs of a name and a tensor.
    """
    if not (folder / TASK).is_file():
        raise CheckpointError(f"{folder} is no skeleton: make one with `regraft rebuild MODEL --skeleton {folder}`")
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    path, name = resolve(task["source"])
    rebuilt = open_rebuilt(path, name=name)
    if rebuilt.weights_sha256 != task["weights_sha256"]:
        raise CheckpointError(f"the weights of {name} are not those that this skeleton was made from: make it again")
    tensors = load_file(folder / TRUTH)
    truth = {stage: tensor for stage, tensor in tensors.items() if not stage.startswith(INPUT)}
    inputs = {stage.removeprefix(INPUT): tensor for stage, tensor in tensors.items() if stage.startswith(INPUT)}
    own = _load_own(folder / OWN)
    with torch.no_grad():
        stages = _named(own(dict(rebuilt.weights), task["config"], inputs), [entry["stage"] for entry in task["stages"]])
        return verify_stages(stages, truth, rebuilt.weights, rebuilt.heads)


def _load_own(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("own_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "stages", None)):
        raise ValueError(f"{file.name} has no function stages(weights, config, inputs)")
    return module.stages


def _named(stages: Any, order: list[str]):
    """The student's stages, in the order of the task; a stage out of order is said at once."""
    for number, pair in enumerate(stages):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], Tensor)):
            raise ValueError(f"stage {number + 1} is {type(pair).__name__}, not a pair of a name and a tensor")
        if number >= len(order) or pair[0] != order[number]:
            wanted = repr(order[number]) if number < len(order) else "nothing more"
            raise ValueError(f"stage {number + 1} is called {pair[0]!r}; the task asks for {wanted} there")
        yield pair


def report(folder: Path) -> int:
    """Print the score of a skeleton folder; 0 where every stage passed."""
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    total = len(task["stages"])
    try:
        verdict = check(folder)
    except NotImplementedError as error:
        print(f"0 of {total} stages: {error}")
        return 1
    for row in verdict.rows:
        mark = "ok  " if row.passed else "PART"
        shape = " x ".join(map(str, row.shape))
        print(f"{mark} {row.stage:<28} {shape:<20} largest {row.largest:<9.2g} mean {row.mean:<9.2g} {row.decimals} decimals")
    passed = sum(row.passed for row in verdict.rows)
    print(f"{passed} of {total} stages")
    if verdict.parted:
        entry = next(entry for entry in task["stages"] if entry["stage"] == verdict.parted)
        print(f"{verdict.parted} is {entry['what']}, of shape {entry['shape']}.")
        print("\n".join(f"- {cause}" for cause in verdict.causes))
    elif passed < total:
        print(f"next: {task['stages'][passed]['stage']}, {task['stages'][passed]['what']}, {task['stages'][passed]['shape']}")
    return 0 if passed == total else 1


_CHECK = '''"""Score model.py, stage by stage: `python check.py`."""

import sys
from pathlib import Path

from regraft.rebuild.skeleton import report

sys.exit(report(Path(__file__).resolve().parent))
'''


def _own(name: str, stages: list[tuple[str, tuple[int, ...]]], inputs: dict[str, Tensor]) -> str:
    listed = "\n".join(f"    # {stage:<28} {' x '.join(map(str, shape)):<20} {what_is(stage)}" for stage, shape in stages)
    given = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items())
    return f'''"""My own {name}. `python check.py` scores it stage by stage."""

import torch


def stages(weights, config, inputs):
    """Yield (name, tensor) for every stage below, in this order.

    weights: the checkpoint's tensors by name, the base model's prefix left out (print them: sorted(weights)).
    config: config.json as a dict. inputs: {given}.
    """
{listed}
    raise NotImplementedError("yield ('{stages[0][0]}', ...) first")
    yield "{stages[0][0]}", torch.empty(0)
'''


def _readme(name: str, architecture: str, stages: list[tuple[str, tuple[int, ...]]]) -> str:
    rows = "\n".join(f"| `{stage}` | {' x '.join(map(str, shape))} | {what_is(stage)} |" for stage, shape in stages)
    return (
        f"# Rebuild {name}\n\nWrite `stages` in `model.py` with plain PyTorch: it yields every stage below, by name and in this "
        "order. `python check.py` compares each with the official model's own tensor (in `truth.safetensors`), stops at the "
        "first that parts by more than five decimals, and says what usually causes such a difference.\n\nA solution that a "
        f"student can read is `regraft/rebuild/{architecture}.py`.\n\n| stage | shape | what it is |\n|---|---|---|\n{rows}\n"
    )

"""A folder for a student: every stage's name and shape, the official tensors, and a check of one's own
implementation."""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import CheckpointError, NoCheckpointError
from regraft.core.files import check_empty, whole_folder
from regraft.reference.checkpoint_reader import model_inputs, open_rebuilt, token_ids
from regraft.reference.official import ask
from regraft.reference.stage_compare import SameTensorError
from regraft.reference.verify import TEXTS, Verdict, order_of, verify_stages

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
    "scores": "queries times keys, with this architecture's scale, bias and mask: what softmax is given",
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
    """Write the folder; the rebuilt model of this package passes it first. Returns the stages with their
    shapes.

    Raises:
        RunFolderError: the folder is not empty.
        CheckpointError: the model is not one that is rebuilt here.
    """
    check_empty(folder, "--skeleton")
    path, name = resolve(source)
    rebuilt = open_rebuilt(path, name=name)
    given = list(texts) or (list(TEXTS) if (path / "tokenizer.json").is_file() else ["5 6 7 8 9", "10 11 12"])
    ids = token_ids(path, given)
    inputs = model_inputs(rebuilt.config, ids, rebuilt.two_stacks)
    official = ask(order_of(rebuilt, "float32", ids, given, inputs, 0))
    with torch.no_grad():
        verdict = verify_stages(rebuilt.stages(inputs), official.tensors, rebuilt.weights, rebuilt.heads)
    if verdict.parted:
        raise CheckpointError(
            f"{name} is not rebuilt here: stage {verdict.parted} parts from the official one"
        )
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
    sentence = WHAT.get(within) or WHAT[kind.removeprefix("cross_")]
    return f"towards the encoder: {sentence}" if kind.startswith("cross_") else sentence


class OwnCodeError(ValueError):
    """A student's `model.py` cannot be run to its end; the message says where and why."""


def check(folder: Path, verdict: Verdict | None = None, carry: bool = False) -> Verdict:
    """Score `model.py` of a skeleton folder: its stages beside the official tensors, up to the first that
    parts.

    With `carry` the official tensor goes on in the place of one that parts. A `verdict` that is given holds
    the stages that were compared, where the code stops before its end.

    Raises:
        CheckpointError: the folder is no skeleton, or the model's weights are not those that it was made
            from.
        OwnCodeError: `model.py` cannot be run, or yields something else than pairs of a name and a tensor.
    """
    if not (folder / TASK).is_file():
        raise NoCheckpointError(
            f"{folder} is no skeleton: make one with `regraft rebuild MODEL --skeleton {folder}`"
        )
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    path, name = resolve(task["source"])
    rebuilt = open_rebuilt(path, name=name)
    if rebuilt.weights_sha256 != task["weights_sha256"]:
        raise CheckpointError(
            f"the weights of {name} are not those that this skeleton was made from: make it again"
        )
    tensors = load_file(folder / TRUTH)
    truth = {stage: tensor for stage, tensor in tensors.items() if not stage.startswith(INPUT)}
    inputs = {
        stage.removeprefix(INPUT): tensor for stage, tensor in tensors.items() if stage.startswith(INPUT)
    }
    verdict = Verdict() if verdict is None else verdict
    order = [entry["stage"] for entry in task["stages"]]
    stages = _own_stages(folder / OWN, (dict(rebuilt.weights), task["config"], inputs), order)
    with torch.no_grad():
        return verify_stages(stages, truth, rebuilt.weights, rebuilt.heads, verdict=verdict, carry=carry)


def _own_stages(file: Path, given: tuple[Any, ...], order: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The student's stages, in the order of the task; whatever stops their code is said in one sentence with
    its line."""
    spec = importlib.util.spec_from_file_location("own_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "stages", None)):
            raise OwnCodeError(f"{file.name} has no function stages(weights, config, inputs)")
        made = module.stages(*given)
        if not isinstance(made, Iterator):
            raise OwnCodeError(
                f"stages returns {type(made).__name__}; it has to yield a pair (name, tensor) for each stage"
            )
        for number, pair in enumerate(made):
            yield _pair(number, pair, order)
    except (OwnCodeError, NotImplementedError):
        raise
    except Exception as error:  # a student's code may stop for any reason at all
        raise OwnCodeError(_stopped(error, file, given[0])) from error


def _stopped(error: Exception, file: Path, weights: dict[str, Tensor]) -> str:
    """Where and why a student's code stopped, with the names that a missing one may have meant."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
    ]
    line = lines[-1] if lines else getattr(error, "lineno", "?")
    near = (
        get_close_matches(str(error.args[0]), weights, 3, 0.5)
        if isinstance(error, KeyError) and error.args
        else []
    )
    hint = f"; names like it are {', '.join(near)}" if near else ""
    return f"line {line} of {file.name} stops with {type(error).__name__}: {error}{hint}"


def _pair(number: int, pair: Any, order: list[str]) -> tuple[str, Tensor]:
    """One yielded pair, if it is the one that the task asks for there."""
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
        raise OwnCodeError(f"stage {number + 1} is {type(pair).__name__}, not a pair of a name and a tensor")
    if not isinstance(pair[1], Tensor):
        raise OwnCodeError(f"what is yielded for {pair[0]!r} is {type(pair[1]).__name__}, not a torch tensor")
    wanted = repr(order[number]) if number < len(order) else "nothing more"
    if repr(pair[0]) != wanted:
        raise OwnCodeError(f"stage {number + 1} is called {pair[0]!r}; the task asks for {wanted} there")
    return pair


def report(folder: Path, carry: bool = False) -> int:
    """Print the score of a skeleton folder; 0 where every stage passed."""
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    total = len(task["stages"])
    verdict, stopped = Verdict(), ""
    try:
        check(folder, verdict, carry)
    except (NotImplementedError, OwnCodeError, SameTensorError, CheckpointError) as error:
        stopped = str(error)
    for row in verdict.rows:
        mark = "ok  " if row.passed else "PART"
        shape = " x ".join(map(str, row.shape))
        print(
            f"{mark} {row.stage:<28} {shape:<20} largest {row.largest:<9.2g} mean"
            f" {row.mean:<9.2g} {row.decimals} decimals"
        )
    passed = sum(row.passed for row in verdict.rows)
    stopped = stopped or verdict.stuck
    print(f"{passed} of {total} stages{': ' + stopped if stopped else ''}")
    for parting in verdict.partings:
        entry = next(entry for entry in task["stages"] if entry["stage"] == parting.stage)
        on = " The official one went on in its place." if parting.carried else ""
        print(f"{parting.stage} is {entry['what']}, of shape {entry['shape']}.{on}")
        print("\n".join(f"- {cause}" for cause in parting.causes))
    if not verdict.partings and passed < total and not stopped:
        print(
            f"next: {task['stages'][passed]['stage']}, {task['stages'][passed]['what']},"
            f" {task['stages'][passed]['shape']}"
        )
    return 0 if passed == total and not stopped else 1


_CHECK = '''"""Score model.py, stage by stage: `python check.py`; with --carry past those that part."""

import sys
from pathlib import Path

from regraft.reference.skeleton import report

sys.exit(report(Path(__file__).resolve().parent, "--carry" in sys.argv[1:]))
'''


def _own(name: str, stages: list[tuple[str, tuple[int, ...]]], inputs: dict[str, Tensor]) -> str:
    listed = "\n".join(
        f"    # {stage:<28} {' x '.join(map(str, shape)):<20} {what_is(stage)}" for stage, shape in stages
    )
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
    rows = "\n".join(
        f"| `{stage}` | {' x '.join(map(str, shape))} | {what_is(stage)} |" for stage, shape in stages
    )
    return (
        f"# Rebuild {name}\n\nWrite `stages` in `model.py` with plain PyTorch: it yields every stage below,"
        " by name and in this order. `python check.py` compares each with the official model's own tensor"
        " (in `truth.safetensors`), stops at the first that parts by more than five decimals, and says what"
        " usually causes such a difference. `python check.py --carry` puts the official tensor in its place"
        " and goes on.\n\nA solution that a student can read is"
        f" `regraft/reference/{architecture}.py`.\n\n| stage | shape | what it is |\n|---|---|---|\n{rows}\n"
    )

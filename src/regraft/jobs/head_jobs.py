"""What `regraft graft head build | fit` do once their options are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from regraft.core.defaults import SEQUENCE_LENGTH
from regraft.core.files import check_empty, expanded
from regraft.core.randomness import drawing_from
from regraft.data.windows import Windows
from regraft.export.graft_folder import attach, grafts_hash, read_about, save_graft, write_graft
from regraft.jobs.graft_jobs import training_text
from regraft.model.model import Model
from regraft.model.parts import matrix_OI
from regraft.modules.graft_kinds import HEAD
from regraft.modules.tree_head import TreeHead, tree_head
from regraft.modules.tree_start import from_means, from_states
from regraft.modules.trees import Tree, by_id, by_merges, by_scores, huffman, two_means, widened
from regraft.reporting.shell_commands import next_step
from regraft.training.distributed import processes
from regraft.training.tasks.head_task import HeadTask, check_head, states
from regraft.training.trainer import TrainingPlan, train

MEASURED = 32
"""Windows that a head's loss is said on when it is built."""


@dataclass(frozen=True)
class Build:
    """How a head is built: which tree, how wide, how large an adapter in times the width, and where the rows
    start.

    Examples:
        >>> regraft.Build(tree="huffman", states=200).branching
        2
    """

    tree: Literal["by-id", "huffman", "two-means", "scores", "merges"] = "scores"
    """Which tree; `scores`: 2-means of what the tokens score on the model's states."""
    branching: int = 2
    """Children of a node: 2, 4, 8, ..."""
    adapter: float = 4.0
    """Neurons of the MLP before the tree, in times the width; 0: none."""
    start: Literal["means", "states"] = "states"
    """Start at differences of mean rows, or fit them to the head's own paths."""
    states: int = 4000
    """States of the model that the tree and the start are fitted on."""

    def __post_init__(self) -> None:
        """Make sure that there is something to build on.

        Raises:
            ValueError: no states, or an adapter of less than nothing.
        """
        if self.states < 1 or not 0 <= self.adapter < math.inf:
            given = f"not {self.states} and {self.adapter}"
            raise ValueError(f"a head is fitted on 1 state or more, with an adapter of 0 or more: {given}")


def build_head(
    model: Model,
    out: Path | str,
    texts: Sequence[str] = (),
    how: Build | None = None,
    *,
    length: int = SEQUENCE_LENGTH,
    seed: int = 0,
    opened: Mapping[str, Any] | None = None,
) -> str:
    """Build a tree head, give it starting weights, and write it to `out/graft`; `opened` is how the model was
    opened.

    Args:
        model: an opened model with an output matrix.
        out: the folder.
        texts: files and folders whose tokens and states shape the tree; without them an almanac.
        how: which tree, and how the head starts.
        length: tokens of a sequence.
        seed: of everything drawn at random.
        opened: how the model was opened, for the command that is named as the next.

    Returns:
        What was built, in a sentence.

    Raises:
        ValueError: sizes that do not fit, or a model without an output matrix.
        RunFolderError: there is a graft already.

    Examples:
        >>> print(regraft.build_head(model, "head", how=regraft.Build(states=60, adapter=1.0), length=16))
        a scores tree over 4,096 tokens, 12 decisions of up to 2 deep, ...
    """
    how, out = how or Build(), expanded(out)
    check_empty(out / "graft", "--out")
    check_empty(out / "run", "--out")
    check_head(model)
    assert model.parts.head is not None
    levels = int(math.log2(how.branching)) if how.branching > 0 else 0
    if 2**levels != how.branching or levels < 1:
        raise ValueError(
            f"a node cannot have {how.branching} children: choose 2, 4, 8 or a higher power of two"
        )
    text = training_text(model, texts, length, out / "text", seed)
    rows_VD = matrix_OI(model.parts.head).detach().float()
    batches = math.ceil(how.states / (8 * (length - 1)))
    hidden_RD = torch.cat([states(model, text.batch(i, 8).to(model.device))[0] for i in range(batches)])[
        : how.states
    ]
    tree = widened(plain_tree(model, how.tree, rows_VD, hidden_RD, text, seed), levels)
    with drawing_from(seed):
        graft = tree_head(tree, rows_VD.shape[1], round(how.adapter * rows_VD.shape[1]))
    if how.start == "means":
        from_means(graft, rows_VD.cpu())
    else:
        with torch.no_grad():
            logits_RV = model.parts.head(hidden_RD)
        from_states(graft, rows_VD.cpu(), hidden_RD.cpu().float(), logits_RV.cpu().float())
    graft = graft.to(model.device)
    ours, theirs = loss_of(model, graft, text)
    save_graft(graft, model, out / "graft", tree=how.tree)
    products, whole = tree.multiply_adds(graft.width) + 2 * graft.width * graft.neurons, rows_VD.numel()
    going_on = next_step(["graft", "head", "fit"], model, ("out", out), opened or {})
    return (
        f"a {how.tree} tree over {graft.vocabulary:,} tokens, {len(tree.levels)} decisions of up to"
        f" {how.branching} deep, {sum(p.numel() for p in graft.parameters()):,} parameters for"
        f" {rows_VD.numel():,}; a given token's probability takes {products:,.0f} multiply-adds for"
        f" {whole:,}. Untrained, its loss on {MEASURED} sequences of the text is {ours:.3f} nats per token,"
        f" the original head's {theirs:.3f}. {going_on}"
    )


def plain_tree(
    model: Model, name: str, rows_VD: torch.Tensor, hidden_RD: torch.Tensor, text: Windows, seed: int
) -> Tree:
    """A binary tree of one of the kinds that the command line names.

    Raises:
        ValueError: the tokenizer has no merges to build one by.
    """
    count = len(rows_VD)
    if name == "by-id":
        return by_id(count)
    if name == "huffman":
        return huffman(np.bincount(np.asarray(text.ids), minlength=count)[:count] + 0.5)
    if name == "merges":
        return by_merges(model.tokenizer, count)
    clustered_VD = rows_VD.cpu().numpy()
    return two_means(
        by_scores(clustered_VD, hidden_RD.cpu().float().numpy()) if name == "scores" else clustered_VD,
        seed=seed,
    )


@torch.no_grad()
def loss_of(model: Model, head: TreeHead, text: Windows) -> tuple[float, float]:
    """Mean loss in nats of the next tokens of some windows, by the tree and by the original head."""
    assert model.parts.head is not None
    sums, count = [0.0, 0.0], 0
    for number in range(min(MEASURED, len(text))):
        hidden_RD, next_R = states(model, text.batch(number, 1).to(model.device))
        sums[0] -= float(head.log_probability(hidden_RD.to(head.rows.weight.dtype), next_R).sum())
        scores_RV = model.parts.head(hidden_RD).float()
        sums[1] += float(torch.nn.functional.cross_entropy(scores_RV, next_R, reduction="sum"))
        count += len(next_R)
    return sums[0] / count, sums[1] / count


def fit_head(
    model: Model,
    out: Path | str,
    texts: Sequence[str] = (),
    plan: TrainingPlan | None = None,
    *,
    loss: Literal["path", "divergence"] = "path",
    length: int = SEQUENCE_LENGTH,
    seed: int = 0,
    opened: Mapping[str, Any] | None = None,
) -> str:
    """Train the head in `out/graft` and write it there again; checkpoints and log stand in `out/run`.

    Of several processes the first writes and has something to say.

    Args:
        model: an opened model.
        out: the folder that `build_head` wrote.
        texts: files and folders to train on; without them an almanac.
        plan: how long and how fast.
        loss: cross-entropy along the text's own paths, or the divergence from the original head.
        length: tokens of a sequence.
        seed: of everything drawn at random.
        opened: how the model was opened, for the command that is named as the next.

    Returns:
        What came out, in a sentence or two.

    Raises:
        CheckpointError: no head was built in the folder, or it was built for another model.

    Examples:
        >>> built = regraft.build_head(model, "to-fit", how=regraft.Build(states=60, adapter=1.0), length=16)
        >>> few = regraft.TrainingPlan(steps=2, batch=2)
        >>> print(regraft.fit_head(model, "to-fit", plan=few, length=16))
        after 2 steps the loss on 32 sequences of the text is ... nats per token, the original head's ...
    """
    out = expanded(out)
    text = training_text(model, texts, length, out / "text", seed)
    stated = read_about(out / "graft")
    head = attach(out / "graft", model, HEAD)
    assert isinstance(head, TreeHead)
    head.rows.sparse = head.biases.sparse = loss == "path"
    task = HeadTask(model, head, path=float(loss == "path"), kl=float(loss == "divergence"))
    origin = {"model": stated["weights_sha256"], "start": grafts_hash([out / "graft"]), "loss": loss}
    with drawing_from(seed):
        log = train(task, text, plan or TrainingPlan(), out / "run", origin=origin)
    ours, theirs = loss_of(model, head, text)
    if not processes().is_main_process:
        return ""
    write_graft(head, model, out / "graft", stated["weights_sha256"], tree=stated.get("tree", ""))
    return (
        f"after {len(log)} steps the loss on {min(MEASURED, len(text))} sequences of the text is"
        f" {ours:.3f} nats per token, the original head's {theirs:.3f}."
        f" {next_step(['graft', 'head', 'eval'], model, ('graft', out / 'graft'), opened or {})}"
    )

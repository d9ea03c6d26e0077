"""Train tree heads on the specimen and measure them: `python -m benchmarks.grafts.graft_head --corpora DIR`.

Heads of one group are trained side by side on the same batches, so the trunk runs once for all; each has its
own parameters and its own optimiser state, and nothing of one reaches another (gradients are not clipped).
Results: benchmarks/results/graft-head.json; a head that stands there is not trained again.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.shared import RESULTS, Clock, Results, Texts, arguments, texts
from regraft import load
from regraft.data.windows import Windows
from regraft.model.model import Model
from regraft.modules.placement import trunk_blocks
from regraft.modules.tree_head import TreeHead, tree_head
from regraft.modules.tree_start import from_means, from_states
from regraft.modules.trees import Tree, by_id, by_merges, by_scores, huffman, two_means, widened
from regraft.training.tasks.head_task import distance, states
from regraft.training.trainer import TrainingPlan, train

STATES = 6_000
STEPS, LONG, ALONE = 800, 6_000, 12_000
HELD = 256
"""Windows of each domain that are measured on."""


@dataclass(frozen=True)
class Head:
    """One head: which tree, how many decisions a node takes at once, neurons of the adapter in times the
    width, steps."""

    tree: str
    levels: int = 1
    times: int = 4
    steps: int = STEPS


GROUPS = {
    "trees": [
        Head(tree, 1, times) for tree in ("by id", "huffman", "two means", "merges") for times in (0, 4)
    ],
    "branching": [Head("two means", levels, times) for levels in (2, 4, 6) for times in (0, 4)],
    "adapter": [Head("two means", levels, times) for levels in (1, 6) for times in (1, 8)],
    "long": [Head("two means", 1, 4, LONG), Head("two means", 6, 4, LONG)],
    "alone": [Head("two means", 1, 4, ALONE)],
    "scores": [Head("scores", levels, times) for levels in (1, 2, 4, 6) for times in (0, 4)],
    "scores alone": [Head("scores", 1, 4, ALONE)],
    "scores wide": [Head("scores", 6, 4, ALONE)],
}


def name(head: Head) -> str:
    """What a head is called in the results."""
    said = f"{head.tree}, {2**head.levels} children, adapter {head.times}D"
    return said if head.steps == STEPS else f"{said}, {head.steps:,} steps"


class Together:
    """Several heads on one run of the trunk: the divergence of each from the original head's distribution."""

    def __init__(self, model: Model, heads: Mapping[str, TreeHead]):
        self.model, self.root, self.names = model, model.hf, list(heads)
        self.graft = nn.ModuleList(heads.values())

    def blocks(self) -> list[nn.Module]:
        """Blocks of the trunk."""
        return trunk_blocks(self.model)

    def losses(self, ids_BT: Tensor) -> Mapping[str, Tensor]:
        """Each head's divergence, nats per token."""
        hidden_RD, _ = states(self.model, ids_BT)
        with torch.no_grad():
            wanted_RV = self.model.parts.head(hidden_RD).log_softmax(-1)
        return {
            called: distance(head.log_probabilities(hidden_RD), wanted_RV)
            for called, head in zip(self.names, self.graft, strict=True)
        }


def trees(model: Model, counts_V: np.ndarray, hidden_RD: Tensor) -> dict[str, Tree]:
    """The binary trees over the specimen's vocabulary."""
    rows_VD = model.parts.head.weight.detach().numpy()
    return {
        "by id": by_id(len(counts_V)),
        "huffman": huffman(counts_V),
        "two means": two_means(rows_VD),
        "scores": two_means(by_scores(rows_VD, hidden_RD.numpy())),
        "merges": by_merges(model.tokenizer, len(counts_V)),
    }


@torch.no_grad()
def losses(model: Model, heads: Mapping[str, TreeHead], windows: Windows) -> dict[str, float]:
    """Mean loss in nats per token of the original head and of each tree, on the same windows."""
    sums, count = dict.fromkeys(["original", *heads], 0.0), 0
    for number in range(math.ceil(min(HELD, len(windows)) / 8)):
        hidden_RD, next_R = states(model, windows.batch(number, 8))
        sums["original"] += float(
            nn.functional.cross_entropy(model.parts.head(hidden_RD), next_R, reduction="sum")
        )
        for called, head in heads.items():
            sums[called] -= float(head.log_probability(hidden_RD, next_R).sum())
        count += len(next_R)
    return {called: value / count for called, value in sums.items()}


def by_domain(model: Model, heads: Mapping[str, TreeHead], text: Texts) -> dict[str, dict[str, float]]:
    """Losses by head and domain."""
    found = {domain: losses(model, heads, windows) for domain, windows in text.held.items()}
    return {
        called: {domain: values[called] for domain, values in found.items()}
        for called in ["original", *heads]
    }


@torch.no_grad()
def copy_rows(source: TreeHead, target: TreeHead) -> None:
    """The same starting weights for a head that differs in its adapter only, which starts as the identity."""
    target.rows.weight.copy_(source.rows.weight)
    target.biases.weight.copy_(source.biases.weight)


def measure(model: Model, text: Texts, group: list[Head], counts_V: np.ndarray, results: Results) -> None:
    """Build, start in two ways, train and measure the heads of a group."""
    hidden_RD, _ = states(model, text.train.batch(10_000, STATES // (text.train.length - 1) + 1))
    hidden_RD = hidden_RD[:STATES]
    made = trees(model, counts_V, hidden_RD)
    heads: dict[str, TreeHead] = {}
    starts: dict[str, dict] = {}
    seconds: dict[str, float] = {}
    begun: dict[tuple[str, int], str] = {}
    with torch.no_grad():
        logits_RV = model.parts.head(hidden_RD)
    for one in group:
        torch.manual_seed(0)
        head = tree_head(
            widened(made[one.tree], one.levels), model.width, one.times * model.width, sparse=False
        )
        if (alike := begun.setdefault((one.tree, one.levels), name(one))) != name(one):
            copy_rows(heads[alike], head)
            heads[name(one)], starts[name(one)], seconds[name(one)] = head, starts[alike], seconds[alike]
            continue
        from_means(head, model.parts.head.weight.detach())
        starts[name(one)] = {"means": by_domain(model, {"head": head}, text)["head"]}
        clock = Clock()
        from_states(head, model.parts.head.weight.detach(), hidden_RD, logits_RV)
        seconds[name(one)] = clock()
        starts[name(one)]["states"] = by_domain(model, {"head": head}, text)["head"]
        print(name(one), {start: values["books"] for start, values in starts[name(one)].items()}, flush=True)
        heads[name(one)] = head
    clock = Clock()
    folder = Path(tempfile.mkdtemp(prefix="regraft-head-"))
    plan = TrainingPlan(steps=group[0].steps, batch=2, rate=1e-3, warmup=20, clip=1e9, save_every=10**9)
    train(Together(model, heads), text.train, plan, folder)
    trained = clock()
    shutil.rmtree(folder)
    after = by_domain(model, heads, text)
    for one in group:
        tree, called = widened(made[one.tree], one.levels), name(one)
        adapter = 2 * model.width * one.times * model.width
        results.add(
            called,
            {
                "depth": len(tree.levels),
                "children": 2**one.levels,
                "multiply_adds": tree.multiply_adds(model.width, counts_V) + adapter,
                "multiply_adds_original": model.width * len(counts_V),
                "parameters": sum(p.numel() for p in heads[called].parameters()),
                "original": after["original"],
                "starts": starts[called],
                "start_seconds": seconds[called],
                "after": after[called],
                "steps": plan.steps,
                "tokens_a_step": plan.batch * text.train.length,
                "seconds_of_the_group": trained,
                "heads_of_the_group": len(group),
            },
        )


def main() -> None:
    """Train every head that is not there yet."""
    parser = arguments(__doc__, "books and books-heldout", "regraft-benchmark-texts")
    parser.add_argument(
        "--group", action="append", choices=list(GROUPS), help="may be repeated; by default all"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load()
    text = texts(model, options.corpora, options.cache)
    counts_V = np.bincount(np.asarray(text.train.ids), minlength=model.table_rows).astype(float) + 0.5
    results = Results(RESULTS / "graft-head.json")
    for group in options.group or GROUPS:
        missing = [head for head in GROUPS[group] if name(head) not in results]
        if missing:
            measure(model, text, missing, counts_V, results)


if __name__ == "__main__":
    main()

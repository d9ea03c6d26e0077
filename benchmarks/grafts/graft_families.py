"""Both grafts on models of other families, and on one model at once: `python -m
benchmarks.grafts.graft_families --corpora DIR`.

A short run each: what counts is that the change is measured on a tied head (GPT-2), an encoder-decoder (T5)
and with both grafts in place together. Results: benchmarks/results/graft-families.json; a model that stands
there is not run again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from benchmarks.shared import RESULTS, Clock, Results, Texts, arguments, changes, texts
from regraft import load
from regraft.data.token_bytes import token_bytes
from regraft.export.certificate import certify
from regraft.export.graft_folder import swaps_of
from regraft.model.model import Model
from regraft.model.parts import matrix_OI
from regraft.modules.byte_codes import byte_embedding
from regraft.modules.byte_embedding import ByteConfig, ByteEmbedding, parameters
from regraft.modules.tree_head import TreeHead, tree_head
from regraft.modules.tree_start import from_states
from regraft.modules.trees import by_scores, two_means, widened
from regraft.training.sensitivity import sensitivity
from regraft.training.tasks.embedding_task import EmbeddingTask, embedded_rows, warm_up
from regraft.training.tasks.head_task import HeadTask, check_head, states
from regraft.training.trainer import TrainingPlan, train

MODELS = ("specimen:qwen3", "specimen:gpt2", "specimen:t5")
CONFIGS = {
    192: ByteConfig(group=12, byte_width=48, neurons=456),
    128: ByteConfig(group=16, byte_width=32, neurons=384),
}
"""By width: about half of the table's parameters."""

WARM, STEPS, HEAD_STEPS, STATES = 800, 150, 800, 4000


def embedding_of(model: Model, text: Texts) -> ByteEmbedding:
    """A byte embedding, warmed up and trained."""
    torch.manual_seed(0)
    graft = byte_embedding(token_bytes(model.tokenizer, model.table_rows), model.width, CONFIGS[model.width])
    warm_up(graft, embedded_rows(model), WARM, sensitivity(model, text.train))
    run(
        EmbeddingTask(model, graft),
        text,
        TrainingPlan(steps=STEPS, batch=8, rate=3e-4, warmup=20, save_every=10**9),
    )
    return graft


def head_of(model: Model, text: Texts) -> TreeHead:
    """A tree of up to 64 children at a node, started from states and trained by divergence."""
    check_head(model)
    assert model.parts.head is not None
    rows_VD = matrix_OI(model.parts.head).detach()
    hidden_RD, _ = states(model, text.train.batch(10_000, STATES // (text.train.length - 1) + 1))
    torch.manual_seed(0)
    tree = widened(two_means(by_scores(rows_VD.numpy(), hidden_RD.numpy())), 6)
    head = tree_head(tree, model.width, 4 * model.width, sparse=False)
    with torch.no_grad():
        from_states(head, rows_VD, hidden_RD, model.parts.head(hidden_RD))
    plan = TrainingPlan(steps=HEAD_STEPS, batch=2, rate=1e-3, warmup=20, save_every=10**9)
    run(HeadTask(model, head, path=0.0, kl=1.0), text, plan)
    return head


def run(task: EmbeddingTask | HeadTask, text: Texts, plan: TrainingPlan) -> None:
    """Train in a folder that does not stay."""
    folder = Path(tempfile.mkdtemp(prefix="regraft-families-"))
    train(task, text.train, plan, folder)
    shutil.rmtree(folder)


def measure(model: Model, text: Texts) -> dict:
    """Train both grafts of a model, and certify each alone and both together."""
    clock = Clock()
    embedding, head = embedding_of(model, text), head_of(model, text)
    seconds = clock()
    table = token_bytes(model.tokenizer, model.table_rows)
    sets = {"embedding": [embedding], "head": [head], "both": [embedding, head]}
    certified = {
        name: certify(model, swaps_of(model, grafts), text.held, table) for name, grafts in sets.items()
    }
    return {
        "tied": model.parts.tied,
        "parameters": {
            "model": sum(p.numel() for p in model.hf.parameters()),
            "table": model.parts.embedding.weight.numel(),
        },
        "embedding_parameters": parameters([embedding]),
        "head_parameters": parameters([head]),
        "parameters_after": {
            name: float(data.parameters.sel(state="after")) for name, data in certified.items()
        },
        "steps": {"warm-up": WARM, "embedding": STEPS, "head": HEAD_STEPS},
        "seconds": seconds,
        "changes": {name: changes(data) for name, data in certified.items()},
    }


def main() -> None:
    """Run every model that is not there yet."""
    options = arguments(__doc__, "books and books-heldout", "regraft-benchmark-texts").parse_args()
    torch.set_num_threads(options.threads)
    results = Results(RESULTS / "graft-families.json")
    for name in MODELS:
        if name not in results:
            model = load(name)
            results.add(name, measure(model, texts(model, options.corpora, options.cache)))


if __name__ == "__main__":
    main()

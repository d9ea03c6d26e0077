"""Train byte embeddings of many sizes on the specimen and measure them: `python -m
benchmarks.grafts.graft_embedding --corpora DIR`.

Every run is a warm-up on the table (with the metric that predictions feel, unless the run is about leaving it
out) and then a training by the model. Results: benchmarks/results/graft-embedding.json; a run that stands
there is not made again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.shared import RESULTS, Clock, Results, Texts, arguments, changes, texts
from regraft import load
from regraft.data.token_bytes import TokenBytes, token_bytes
from regraft.export.certificate import certify
from regraft.model.model import Model
from regraft.modules.byte_codes import byte_embedding, cut_share
from regraft.modules.byte_embedding import ByteConfig, parameters
from regraft.training.sensitivity import sensitivity
from regraft.training.tasks.embedding_task import EmbeddingTask, LossWeights, relative_error, warm_up
from regraft.training.trainer import TrainingPlan, train

SMALL = ByteConfig(group=12, byte_width=24, neurons=272)
SIZES = {
    "a thirtieth": ByteConfig(group=8, byte_width=12, neurons=72),
    "a tenth": ByteConfig(group=12, byte_width=16, neurons=176),
    "a fifth": SMALL,
    "two fifths": ByteConfig(group=12, byte_width=40, neurons=424),
    "a half": ByteConfig(group=12, byte_width=48, neurons=456),
    "all": ByteConfig(group=12, byte_width=64, neurons=744),
}


@dataclass(frozen=True)
class Run:
    """One training: sizes, lengths of both stages, weights of the loss, and what is left out."""

    config: ByteConfig
    warm: int
    steps: int
    weights: LossWeights = field(default_factory=LossWeights)
    felt: bool = True
    true_bytes: bool = True
    matrices: str = "muon"
    rate: float = 1e-3


FINE_RATE = 3e-4
"""For sizes that the warm-up brings close to the table: there a higher rate loses what it has found."""


def runs(warm: int, steps: int) -> dict[str, Run]:
    """The curve over sizes, and the ablations at one size and a third of the steps."""
    short = Run(SMALL, warm // 2, steps // 3)
    fine = ("two fifths", "a half", "all")
    curve = {
        f"size: {name}": Run(config, warm, steps, rate=FINE_RATE if name in fine else 1e-3)
        for name, config in SIZES.items()
    }
    ablations = {
        "nothing left out": short,
        "no byte blocks": replace(short, config=replace(SMALL, blocks=0, neurons=300)),
        "no hidden-state loss": replace(short, weights=LossWeights(hidden=0.0)),
        "no divergence": replace(short, weights=LossWeights(kl=0.0)),
        "no true bytes": replace(short, true_bytes=False),
        "plain warm-up": replace(short, felt=False),
        "AdamW for matrices": replace(short, matrices="adamw"),
        "warm-up only": replace(short, steps=0),
    }
    return {**curve, **{f"ablation: {name}": run for name, run in ablations.items()}}


def as_utf8(model: Model, table: TokenBytes) -> TokenBytes:
    """The vocabulary's strings taken as UTF-8, as a naive reader would: byte-level letters become two
    bytes."""
    names = model.tokenizer.convert_ids_to_tokens(range(len(model.tokenizer)))
    naive = [
        str(names[i]).encode() if kind == "text" and i < len(names) else content
        for i, (content, kind) in enumerate(zip(table.bytes_V, table.kind_V, strict=True))
    ]
    return TokenBytes(tuple(naive), table.kind_V, table.scheme)


def measure(model: Model, text: Texts, table: TokenBytes, run: Run) -> dict:
    """Train one graft and certify it."""
    torch.manual_seed(0)
    seen = table if run.true_bytes else as_utf8(model, table)
    embedding = model.parts.embedding
    graft = byte_embedding(seen, embedding.embedding_dim, run.config)
    clock = Clock()
    felt = sensitivity(model, text.train) if run.felt else None
    rows_VD = embedding.weight.detach()
    warm_up(graft, rows_VD, run.warm, felt, matrices=run.matrices)
    warmed = clock()
    between = certify(model, [(embedding, graft)], text.held, table, most=64)
    clock = Clock()
    folder = Path(tempfile.mkdtemp(prefix="regraft-embedding-"))
    plan = TrainingPlan(
        steps=run.steps, batch=8, rate=run.rate, warmup=20, save_every=10**9, matrices=run.matrices
    )
    if run.steps:
        train(EmbeddingTask(model, graft, weights=run.weights), text.train, plan, folder)
    trained = clock()
    shutil.rmtree(folder)
    data = certify(model, [(embedding, graft)], text.held, table, most=64)
    with torch.no_grad():
        left = float(relative_error(graft.table(), rows_VD))
    return {
        "parameters": parameters([graft]),
        "share": parameters([graft]) / rows_VD.numel(),
        "warm_steps": run.warm,
        "steps": run.steps,
        "rate": run.rate,
        "warm_seconds": warmed,
        "seconds": trained,
        "cut_share": cut_share(seen, run.config.group),
        "table_error": left,
        "nmse": {str(d): data.nmse.sel(domain=d).values.tolist() for d in data.domain.values},
        "warmed_only": changes(between),
        "changes": changes(data),
    }


def main() -> None:
    """Make every run that is not there yet."""
    parser = arguments(__doc__, "books and books-heldout", "regraft-benchmark-texts")
    parser.add_argument("--warm", type=int, default=1200, help="warm-up steps of the curve")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the curve")
    parser.add_argument("--only", action="append", default=[], help="name of a run; may be repeated")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load()
    text = texts(model, options.corpora, options.cache)
    table = token_bytes(model.tokenizer, model.table_rows)
    results = Results(RESULTS / "graft-embedding.json")
    for name, run in runs(options.warm, options.steps).items():
        if name not in results and (not options.only or name in options.only):
            results.add(name, measure(model, text, table, run))
    print(
        json.dumps({name: run["changes"]["books"] for name, run in results.content["runs"].items()}, indent=1)
    )


if __name__ == "__main__":
    main()

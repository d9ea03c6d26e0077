"""What `specimen:recall` learnt: `python -m benchmarks.specimens.recall_facts` writes its README."""

from __future__ import annotations

import torch

import regraft
from benchmarks.measured_part import table
from benchmarks.specimens.train_recall import PAGES, PLAN, SEED
from regraft.checkpoint.locate import SPECIMENS, located
from regraft.core.machine import measured_on
from regraft.data.corpus import text_rows
from regraft.experiments.intervene.cache_needles import DEPTHS, needles
from regraft.systems.cache_strategies import strategy

LENGTHS, TEXTS = (64, 128, 256, 512, 1000), 11
ROWS, TOKENS = 24, (128, 256, 512)
"""Texts of the almanac over which a loss is taken, and how long they are."""


def losses(model: regraft.Model) -> list[float]:
    """Nats a token on running text of the almanac."""
    found = []
    for length in TOKENS:
        rows = text_rows(model, "", 5, length, ROWS * TOKENS[0] // length)
        with model.held(), torch.no_grad():
            logits = model.run(input_ids=torch.tensor(rows)).logits[:, :-1]
        targets = torch.tensor(rows)[:, 1:]
        found.append(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())))
    return found


def main() -> None:
    """Write the page."""
    models = {name: regraft.load(name) for name in ("specimen:qwen3", "specimen:recall")}
    recalled = {
        name: [float(needles(m, "", n, TEXTS, 3).right(strategy("whole")).mean()) for n in LENGTHS]
        for name, m in models.items()
    }
    forgot = {name: losses(m) for name, m in models.items()}
    told = measured_on(torch.device("cpu"))
    lines = [
        "# specimen:recall", "",
        "`specimen:qwen3`, its attention trained further on long pages of the almanac, where who has what is"
        " told once and asked for later. `trained.safetensors` holds what changed; the whole is put together"
        " in the cache when it is first opened.", "",
        f"Trained by `python -m benchmarks.specimens.train_recall`: {PLAN.steps} steps of {PLAN.batch} pages"
        f" of 1,024 tokens ({PAGES:,} pages, seed {SEED}), AdamW, rate {PLAN.rate:g}.", "",
        f"Facts told again word by word ({TEXTS * len(DEPTHS)} of each length, at five depths of the text in"
        " front of the question):", "",
        *table(["", *(f"{n:,} tokens" for n in LENGTHS)],
               [[name, *(f"{share:.0%}" for share in shares)] for name, shares in recalled.items()]), "",
        "Nats a token on running text of the almanac, of which such pages are a small part:", "",
        *table(["", *(f"{n:,} tokens" for n in TOKENS)],
               [[name, *(f"{loss:.3f}" for loss in row)] for name, row in forgot.items()]), "",
        "It was also shown passages that stand twice, and did not learn to copy them.", "",
        f"Measured in float32 with PyTorch {told['torch']} on {told['machine']} by"
        " `python -m benchmarks.specimens.recall_facts`.",
    ]  # fmt: skip
    folder, _ = located(None)
    assert folder is not None
    (folder.parent / SPECIMENS["recall"] / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

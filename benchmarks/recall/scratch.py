"""Recall from scratch: every kind of mixing trained on the same texts, from three seeds, then asked.

`python -m benchmarks.recall.scratch WORK_FOLDER [KIND ...]` takes about seventy minutes on one core; it goes
on where it was broken off, several may train other kinds into one folder, and what is there is collected in
benchmarks/results/recall.json.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import regraft
from benchmarks.recall.kinds import BLOCKS, KINDS, WIDTH, small
from benchmarks.recall.pairs import NUMBERS, PairTexts, RecallTask, accuracy
from regraft.core.machine import measured_on
from regraft.systems.state_bytes import block_states
from regraft.training.trainer import train

SEEDS = (0, 1, 2)
ASKED_AT = (0, 16, 64, 128, 256)
"""Tokens between pairs and questions; the last two are more than any training text had."""
AMONG, TEXTS = 8, 32
"""Pairs that are asked across a distance, and texts of each point: 256 answers at least across a distance."""
PLAN = regraft.TrainingPlan(steps=2500, batch=8, rate=2e-3, matrices="adamw", save_every=1000)
RESULT = "result.json"
RESULTS = Path(__file__).parent.parent / "results" / "recall.json"


def run(kind: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one model and ask it."""
    hf = small(kind, seed)
    windows, began = PairTexts(seed), time.process_time()
    history = train(RecallTask(hf), windows, PLAN, folder)
    hf.eval()
    seconds = time.process_time() - began
    states, _ = block_states(regraft.load(hf))
    return {
        "kind": kind,
        "seed": seed,
        "blocks": [state.kind for state in states],
        "parameters": sum(p.numel() for p in hf.parameters()),
        "tokens": PLAN.steps * PLAN.batch * windows.length,
        "cpu_seconds": round(seconds),
        "loss": sum(line["loss"] for line in history[-100:]) / 100,
        "over_pairs": [accuracy(hf, pairs, 0, TEXTS, seed) for pairs in NUMBERS],
        "over_distance": [accuracy(hf, AMONG, between, TEXTS, seed) for between in ASKED_AT],
        "state_bytes": [sum(state.bytes_at(2 * pairs) for state in states) for pairs in NUMBERS],
    }


def collect(work: Path) -> None:
    """Write what is there, kind by kind and seed by seed."""
    files = [work / folder_of(kind, seed) / RESULT for kind in KINDS for seed in SEEDS]
    found = {
        "blocks": BLOCKS, "width": WIDTH, "numbers": NUMBERS, "distances": ASKED_AT, "among": AMONG,
        "texts": TEXTS, **measured_on(torch.device("cpu")),
        "runs": [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()],
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def folder_of(kind: str, seed: int) -> str:
    """The name of a run's folder."""
    return f"{kind.replace(',', '').replace(' ', '-')}-{seed}"


def main(work: Path, kinds: Sequence[str]) -> None:
    """Run what is not there yet."""
    logging.getLogger("transformers").setLevel(logging.ERROR)  # which fused kernels are not installed
    torch.set_num_threads(1)
    for seed in SEEDS:
        for kind in kinds:
            folder = work / folder_of(kind, seed)
            if not (folder / RESULT).is_file():
                told = json.dumps(run(kind, seed, folder))
                (folder / RESULT).write_text(told, encoding="utf-8")
                print(told, flush=True)
            collect(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(KINDS))

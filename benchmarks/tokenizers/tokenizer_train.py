"""Train tokenizers of three kinds and four sizes on books and measure them: `python -m
benchmarks.tokenizers.tokenizer_train --corpora DIR`.

Results: benchmarks/results/tokenizer-train.json; a tokenizer that stands there is not trained again.
"""

from __future__ import annotations

import json
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared import RESULTS, Clock, Results, arguments, held_code
from regraft.data.text_files import text_files, texts_in
from regraft.tokenizers.bits_per_byte import pieces
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.comparison import compare
from regraft.tokenizers.text_chunks import read_lengths
from regraft.tokenizers.tokenizer_folder import open_tokenizer, wrapped, write_tokenizer
from regraft.tokenizers.training import Recipe, train_bpe

SIZES = (4096, 8192, 16_384, 32_768)
KINDS = ("ordinary", "superword", "supertoken")
LENGTHS = ("gaussian:12:4", "gaussian:24:8", "gaussian:64:20", "gaussian:200:50", "gaussian:800:200")
LANGUAGES_SIZE = 16_384
PIECES = 400
ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def trained_once(recipe: Recipe, sources: Sequence[Path], folder: Path) -> Any:
    """The tokenizer of a folder, trained on some files and folders where it is not there yet."""
    if not folder.exists():
        files = text_files(sources)
        write_tokenizer(
            wrapped(train_bpe((text for file in files for text in texts_in(file)), recipe), ROLES), folder
        )
    return open_tokenizer(str(folder))


def runs() -> dict[str, tuple[Recipe, str]]:
    """Every tokenizer: its recipe and the folder of the corpora that it is trained on."""
    found = {
        f"{kind} {size}": (Recipe(size, kind, read_lengths("gaussian:200:50")), "books")
        for size in SIZES
        for kind in KINDS
    }
    for said in LENGTHS:
        found[f"supertoken 8192, {said}"] = (Recipe(8192, "supertoken", read_lengths(said)), "books")
    for words in (0.25, 0.75):
        found[f"superword 16384, {words:.0%} within words"] = (
            Recipe(16_384, "superword", words=words),
            "books",
        )
    for kind in KINDS:
        found[f"languages: {kind} {LANGUAGES_SIZE}"] = (
            Recipe(LANGUAGES_SIZE, kind, read_lengths("gaussian:200:50")),
            "udhr",
        )
    return found


def domains(corpora: Path) -> dict[str, list[str]]:
    """Pieces of text that no tokenizer was trained on: books, code, worked sums, and translations."""

    def of(*paths: Path) -> list[str]:
        return pieces((text for file in text_files(paths) for text in texts_in(file)), PIECES)

    sums = [
        json.loads(line)["question"]
        for line in next((corpora / "gsm8k").glob("*.jsonl")).open(encoding="utf-8")
    ]
    found = {"books": of(corpora / "books-heldout"), "code": of(*held_code()), "sums": pieces(sums, PIECES)}
    return {
        **found,
        **{f"language {file.stem}": of(file) for file in sorted((corpora / "ntrex").glob("*.txt"))},
    }


def main() -> None:
    """Train and measure what is not there yet."""
    options = arguments(__doc__, "books, books-heldout, udhr, ntrex, gsm8k").parse_args()
    torch.set_num_threads(options.threads)
    results = Results(RESULTS / "tokenizer-train.json")
    read = domains(options.corpora)
    for name, (recipe, source) in runs().items():
        if name in results:
            continue
        size = sum(file.stat().st_size for file in text_files([options.corpora / source]))
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock()
            made = trained_once(recipe, [options.corpora / source], Path(folder) / "tokenizer")
            seconds = clock()
        data = compare({"it": ByteIds(made)}, read).sel(tokenizer="it")
        results.add(
            name,
            {
                "vocabulary": int(data.vocabulary),
                "kind": recipe.kind,
                "trained_on": source,
                "bytes": size,
                "seconds": seconds,
                "megabytes_per_second": size / 1e6 / seconds,
                "process_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "vocabulary_crossing": float(data.vocabulary_crossing),
                **{
                    measure: {str(d): float(data[measure].sel(domain=d)) for d in data.domain.values}
                    for measure in ("bytes_per_token", "tokens_per_word", "crossing", "exact")
                },
                "crossing_tokens": [str(t) for t in data.crossing_token.values if t],
                "longest_tokens": [str(t) for t in data.longest_token.values],
            },
        )


if __name__ == "__main__":
    main()

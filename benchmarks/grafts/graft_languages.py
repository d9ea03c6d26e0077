"""Byte embeddings over the languages of the Universal Declaration: `python -m
benchmarks.grafts.graft_languages --corpora DIR`.

A byte-level BPE of 64k tokens is trained on all the declaration's translations. Its tokens get vectors from
the texts themselves: the leading singular vectors of the logarithm of how often two tokens stand beside each
other (within four places) over what chance would make it. A byte embedding is fitted to that table. Results
by script: benchmarks/results/graft-languages.json.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.shared import RESULTS, Clock, Results, arguments
from regraft.data.token_bytes import TokenBytes, token_bytes
from regraft.modules.byte_codes import byte_embedding, cut_share
from regraft.modules.byte_embedding import ByteConfig, parameters
from regraft.tokenizers.cooccurrence import beside_vectors
from regraft.training.tasks.embedding_task import warm_up

VOCABULARY, WIDTH = 65_536, 128
GROUPS = (8, 16, 32)


def trained(files: list[Path]) -> Tokenizer:
    """A byte-level BPE over some files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train(
        [str(f) for f in files],
        trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def vectors(tokenizer: Tokenizer, files: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """A table (V, D) from what stands beside what, scaled to a mean square of 1, and how often each token
    occurs."""
    ids = (tokenizer.encode(file.read_text(encoding="utf-8")).ids for file in files)
    rows, counts = beside_vectors(ids, tokenizer.get_vocab_size(), WIDTH)
    rows /= np.sqrt((rows[counts > 0] ** 2).mean())
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(counts)


def script(content: bytes) -> str:
    """The script of most letters of a token, by their names in Unicode; what is no letter or no whole
    character is `other`."""
    letters = [c for c in content.decode("utf-8", errors="ignore") if c.isalpha()]
    names = Counter(unicodedata.name(c, "OTHER").split()[0].title() for c in letters)
    return names.most_common(1)[0][0] if names else "Other"


def by_script(table: TokenBytes, seen_V: np.ndarray, errors_V: np.ndarray, sizes_V: np.ndarray) -> dict:
    """For every script with at least 100 tokens: tokens, mean bytes, shares that are cut, error over mean
    square."""
    scripts = np.array([script(content) for content in table.bytes_V])
    lengths = np.array([len(content) for content in table.bytes_V])
    found = {}
    for name, count in Counter(scripts[seen_V]).most_common():
        these = (scripts == name) & seen_V
        if count >= 100:
            found[name] = {
                "tokens": int(count),
                "mean_bytes": float(lengths[these].mean()),
                "cut": {str(g): float((lengths[these] > g).mean()) for g in GROUPS},
                "error": float(errors_V[these].sum() / sizes_V[these].sum()),
            }
    return found


def main() -> None:
    """Train, fit, measure."""
    parser = arguments(__doc__, "udhr")
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(RESULTS / "graft-languages.json")
    files = sorted(file for file in (options.corpora / "udhr").glob("*.txt") if file.stat().st_size)
    clock = Clock()
    tokenizer = trained(files)
    rows_VD, counts_V = vectors(tokenizer, files)
    prepared = clock()
    table = token_bytes(tokenizer)
    torch.manual_seed(0)
    config = ByteConfig(group=16, byte_width=64, blocks=1, neurons=1024)
    graft = byte_embedding(table, WIDTH, config)
    clock = Clock()
    warm_up(graft, rows_VD, options.steps, batch=2048)
    errors_V = ((graft.table() - rows_VD) ** 2).sum(1).numpy()
    sizes_V = (rows_VD**2).sum(1).numpy()
    seen_V = counts_V.numpy() > 0
    results.add(
        "byte-level BPE of 64k on the Universal Declaration",
        {
            "files": len(files),
            "tokens": len(table),
            "tokens_in_text": int(seen_V.sum()),
            "width": WIDTH,
            "parameters": parameters([graft]),
            "share": parameters([graft]) / rows_VD.numel(),
            "steps": options.steps,
            "prepare_seconds": prepared,
            "seconds": clock(),
            "cut": {str(group): cut_share(table, group) for group in GROUPS},
            "error": float(errors_V[seen_V].sum() / sizes_V[seen_V].sum()),
            "scripts": by_script(table, seen_V, errors_V, sizes_V),
        },
    )


if __name__ == "__main__":
    main()

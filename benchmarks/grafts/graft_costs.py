"""What a tree head and a byte embedding cost at the size of large vocabularies: `python -m
benchmarks.grafts.graft_costs`.

Side by side in one process, in turns, on random rows: a full softmax against a tree with row-sparse and with
dense gradients at V 248,320 and D 1,024; drawing a token; multiply-adds by count; the byte embedding of a
model with D 4,096. On the specimen: best-first search against the brute-force argmax on 1,000 states.
Results: benchmarks/results/graft-costs.json.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from benchmarks.shared import RESULTS, Results
from regraft import load
from regraft.core.memory import peak_bytes
from regraft.data.token_bytes import TokenBytes
from regraft.data.windows import cut
from regraft.modules.byte_codes import byte_embedding
from regraft.modules.byte_embedding import ByteConfig, parameters
from regraft.modules.tree_head import tree_head
from regraft.modules.tree_start import from_states
from regraft.modules.trees import by_id, two_means, widened
from regraft.specimens import almanac
from regraft.training.optimizers import optimisers
from regraft.training.tasks.embedding_task import relative_error
from regraft.training.tasks.head_task import states

VOCABULARY, WIDTH, TOKENS = 248_320, 1024, 512
ROUNDS = 5


def in_turns(
    works: dict[str, Callable[[], object]], rounds: int = ROUNDS, times: int = 3
) -> dict[str, list[float]]:
    """Seconds of each work in every round, the mean of some runs in a row; the first round of all is not
    kept."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            for _ in range(times):
                work()
            if turn:
                seconds[name].append((time.perf_counter() - began) / times)
    return seconds


class Softmax(nn.Module):
    """A plain output matrix and its cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(VOCABULARY, WIDTH) * 0.02)

    def log_probability(self, hidden_RD: torch.Tensor, ids_R: torch.Tensor) -> torch.Tensor:
        """Log-probability of given tokens, by way of every token's score."""
        return -nn.functional.cross_entropy(hidden_RD @ self.matrix.T, ids_R, reduction="none")


def training(head: nn.Module, hidden_RD: torch.Tensor, ids_R: torch.Tensor) -> Callable[[], None]:
    """Forward and backward pass of the loss of some tokens, for the head's parameters and the hidden
    states."""

    def work() -> None:
        given_RD = hidden_RD.clone().requires_grad_()
        (-head.log_probability(given_RD, ids_R).mean()).backward()  # type: ignore[operator]
        for parameter in head.parameters():
            parameter.grad = None

    return work


def stepping(
    head: nn.Module, hidden_RD: torch.Tensor, ids_R: torch.Tensor, matrices: str
) -> Callable[[], None]:
    """The same with a step of the optimisers that the trainer uses."""
    found = optimisers(head, 1e-4, matrices=matrices)

    def work() -> None:
        (-head.log_probability(hidden_RD, ids_R).mean()).backward()  # type: ignore[operator]
        for optimiser in found:
            optimiser.step()
            optimiser.zero_grad()

    return work


def at_size(results: Results) -> None:
    """Training and drawing, full softmax and tree, and what is counted."""
    torch.manual_seed(0)
    hidden_RD, ids_R = torch.randn(TOKENS, WIDTH), torch.randint(VOCABULARY, (TOKENS,))
    tree = by_id(VOCABULARY)
    plain = Softmax()
    sparse, dense = tree_head(tree, WIDTH), tree_head(tree, WIDTH, sparse=False)
    for head in (sparse, dense):
        nn.init.normal_(head.rows.weight, std=0.02)
    works = {
        "full softmax": training(plain, hidden_RD, ids_R),
        "tree, sparse gradients": training(sparse, hidden_RD, ids_R),
        "tree, dense gradients": training(dense, hidden_RD, ids_R),
    }
    seconds = in_turns(works)
    peaks = {name: peak_bytes(work) for name, work in works.items()}
    results.add(
        "forward and backward",
        {
            "vocabulary": VOCABULARY, "width": WIDTH, "tokens": TOKENS, "seconds": seconds,
            "peak_bytes": peaks,
            "faster": {n: ratio(seconds, "full softmax", n) for n in works},
            "less_memory": {n: peaks["full softmax"] / peaks[n] for n in works},
        },
    )  # fmt: skip
    steps = {
        "full softmax, AdamW": stepping(plain, hidden_RD, ids_R, "adamw"),
        "tree, SparseAdam": stepping(sparse, hidden_RD, ids_R, "adamw"),
    }
    seconds = in_turns(steps, 3)
    results.add(
        "with a step of the optimiser",
        {"seconds": seconds, "faster": {n: ratio(seconds, next(iter(steps)), n) for n in steps}},
    )
    one_1D = hidden_RD[:1]

    @torch.no_grad()
    def draw_full() -> None:
        torch.multinomial((one_1D @ plain.matrix.T).softmax(-1), 1)

    draws = {"full softmax": draw_full, "tree": lambda: sparse.sample(one_1D)}
    seconds = in_turns(draws, 15, times=10)
    results.add(
        "drawing one token",
        {"seconds": seconds, "faster": {n: ratio(seconds, "full softmax", n) for n in draws}},
    )
    given = {"full softmax": VOCABULARY * WIDTH, "tree": tree.multiply_adds(WIDTH)}
    results.add(
        "multiply-adds of one token's log-probability",
        {**given, "fewer": given["full softmax"] / given["tree"]},
    )


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times as fast, by medians."""
    return statistics.median(seconds[slow]) / statistics.median(seconds[fast])


def searching(results: Results) -> None:
    """Best-first search on the specimen's states, behind trees that start at the head's own path
    probabilities."""
    model = load()
    rows_VD = model.parts.head.weight.detach()
    ids = [
        i
        for line in almanac.corpus(60_000, 3)
        for i in model.tokenizer(line, add_special_tokens=False)["input_ids"]
    ]
    hidden_RD, _ = states(model, cut(np.array(ids, np.uint32), 128).batch(0, 40))
    fitted, asked = hidden_RD[:4000], hidden_RD[4000:5000]
    assert len(asked) == 1000
    for levels in (1, 6):
        head = tree_head(widened(two_means(rows_VD.numpy()), levels), model.width)
        with torch.no_grad():
            from_states(head, rows_VD, fitted, fitted @ rows_VD.T)
            whole_RV = head.log_probabilities(asked)
        found = [next(head.best_first(state_D)) for state_D in asked]
        visited = [visited for _, _, visited in found]
        results.add(
            f"best-first search, {2**levels} children",
            {
                "states": len(asked),
                "equal_to_brute_force": sum(
                    t == int(b) for (t, _, _), b in zip(found, whole_RV.argmax(-1), strict=True)
                ),
                "nodes": len(head.children_NB),
                "visited_share": sum(visited) / len(visited) / len(head.children_NB),
                "visited_median": statistics.median(visited),
            },
        )


def large_embedding(results: Results) -> None:
    """The byte embedding of a model with V 248,320 and D 4,096: what it weighs, and one training step on
    random rows."""
    config = ByteConfig(group=32, byte_width=128, blocks=1, heads=8, neurons=4096)
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.17, VOCABULARY), 40)
    table = TokenBytes(tuple(rng.bytes(int(n)) for n in lengths), ("text",) * VOCABULARY, "random")
    torch.manual_seed(0)
    graft = byte_embedding(table, 4096, config)
    found = optimisers(graft, 1e-3)

    def step() -> None:
        ids_N = torch.randint(VOCABULARY, (1024,))
        loss = relative_error(graft(ids_N), torch.randn(1024, 4096))
        loss.backward()
        for optimiser in found:
            optimiser.step()
            optimiser.zero_grad()

    step()
    peak = peak_bytes(step)
    began = time.perf_counter()
    step()
    results.add(
        "byte embedding at V 248,320, D 4,096",
        {
            "table_parameters": VOCABULARY * 4096,
            "table_gib_bfloat16": VOCABULARY * 4096 * 2 / 2**30,
            "graft_parameters": parameters([graft]),
            "byte_table_parameters": 256 * config.byte_width,
            "step_tokens": 1024,
            "step_seconds": time.perf_counter() - began,
            "step_peak_bytes_beyond_weights_and_optimiser": peak,
            "process_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        },
    )


def main() -> None:
    """Measure what is not there yet. The large embedding comes first: the process's highest memory is then
    its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    results = Results(RESULTS / "graft-costs.json")
    for name, work in (
        ("byte embedding at", large_embedding),
        ("forward and backward", at_size),
        ("best-first", searching),
    ):
        if not any(done.startswith(name) for done in results.content["runs"]):
            work(results)


if __name__ == "__main__":
    main()

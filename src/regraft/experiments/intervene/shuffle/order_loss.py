"""Orders of shuffled blocks by the loss of the model that they make, through the engine: routes only, no
weight is moved.

An order is a list of indices into the shuffled list; every order asked for is measured once. Shapes: n
blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from regraft.data.evaluation import Evaluation
from regraft.model.parts import Block
from regraft.sweeps.metrics import loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Variant

START_TEMPERATURE, PROPOSALS, NEAR, AT_ONCE = 0.3, 1500, 0.75, 12
"""Annealing: temperature in nats at the start, orders tried in all, share of exchanges between near places,
and how many orders are measured in one sweep at most."""
NEIGHBOURS = (-2, -1, 1, 2)
"""How far apart two places are that count as near, going round at the ends."""
Order = list[int]


class Losses:
    """Losses of orders, measured by the engine and remembered; `measured` counts the routes that were run."""

    def __init__(self, text: Evaluation, blocks: list[Block], around: tuple[list[int], list[int]]):
        self.text, self.blocks, self.around = text, blocks, around
        self.known: dict[tuple[int, ...], float] = {}
        self.results: list[SweepResult] = []

    @property
    def measured(self) -> int:
        """How many different orders were run."""
        return len(self.known)

    def __call__(self, orders: Sequence[Order]) -> np.ndarray:
        """The loss of every order, in nats per token; a loss that is no number counts as infinite."""
        new = list(dict.fromkeys(tuple(o) for o in orders if tuple(o) not in self.known))
        if new:
            before, after = self.around
            routes = [Route.order([*before, *(self.blocks[i].index for i in order), *after]) for order in new]
            result = sweep(self.text.recordings, [Variant(route=route) for route in routes], loss())
            self.results.append(result)
            for order, value in zip(new, result.mean("loss").tolist(), strict=True):
                self.known[order] = value if np.isfinite(value) else float("inf")
        return np.array([self.known[tuple(o)] for o in orders])


def greedy_perplexity(losses: Losses, start: Order, generator: np.random.Generator) -> Order:
    """Extend the order by the block after which the loss is lowest; the blocks so far are shared by all
    candidates."""
    order: Order = []
    while len(order) < len(start):
        candidates = [[*order, i] for i in sorted(start) if i not in order]
        order = candidates[int(losses(candidates).argmin())]
    return order


def bubble(losses: Losses, start: Order, generator: np.random.Generator) -> Order:
    """Exchange neighbours until no exchange helps, then any two blocks, until none of these helps either.

    All exchanges of one round are measured together; those that help and do not touch each other are taken
    together where that is better than the best one alone.
    """
    order = start
    while True:
        order = _climb(losses, order, _adjacent)
        further = _climb(losses, order, _all_pairs, steps=1)
        if further == order:
            return order
        order = further


def remove_reinsert(losses: Losses, start: Order, generator: np.random.Generator) -> Order:
    """Take one block out and put it in elsewhere, the best of all such moves, until none helps."""
    return _climb(losses, start, _moves)


def simulated_annealing(losses: Losses, start: Order, generator: np.random.Generator) -> Order:
    """Exchanges of two blocks, three in four of them near, accepted by Metropolis's rule as it grows colder.

    1,500 proposals at a temperature that falls in a line from 0.3 to 0. The more were refused in a row, the
    more proposals from one state are measured together; all behind the first accepted one are thrown away, so
    that the walk is the sequential one.
    """
    order, current = start, float(losses([start])[0])
    best, lowest = order, current
    done = refused = 0
    while done < PROPOSALS:
        proposals = [_proposal(order, generator) for _ in range(min(AT_ONCE, refused + 1, PROPOSALS - done))]
        values = losses(proposals)
        for proposed, value in zip(proposals, values.tolist(), strict=True):
            temperature = START_TEMPERATURE * (1 - done / PROPOSALS)
            done, refused = done + 1, refused + 1
            if value < current or generator.random() < np.exp(-(value - current) / temperature):
                order, current, refused = proposed, value, 0
                if current < lowest:
                    best, lowest = order, current
                break
    return best


def _proposal(order: Order, generator: np.random.Generator) -> Order:
    i = int(generator.integers(len(order)))
    if generator.random() < NEAR:
        j = (i + NEIGHBOURS[int(generator.integers(len(NEIGHBOURS)))]) % len(order)
    else:
        j = int((i + generator.integers(1, len(order))) % len(order))
    return _exchanged(order, i, j)


def _climb(
    losses: Losses, order: Order, moves: Callable[[Order], list[tuple[Order, set[int]]]], steps: int = 1000
) -> Order:
    """Take the best of the moves as long as it lowers the loss."""
    current = float(losses([order])[0])
    for _ in range(steps):
        tried = moves(order)
        values = losses([proposed for proposed, _ in tried])
        helping = [int(k) for k in np.argsort(values, kind="stable") if values[k] < current]
        if not helping:
            return order
        together = _together(order, [tried[k] for k in helping])
        choices = [tried[helping[0]][0], together]
        found = losses(choices)
        order, current = choices[int(found.argmin())], float(found.min())
    return order


def _together(order: Order, helping: list[tuple[Order, set[int]]]) -> Order:
    """All exchanges that help and touch no place twice, the best first."""
    result, touched = list(order), set()
    for proposed, places in helping:
        if not places & touched and len(places) == 2:
            touched |= places
            for place in places:
                result[place] = proposed[place]
    return result if touched else helping[0][0]


def _exchanged(order: Order, i: int, j: int) -> Order:
    changed = list(order)
    changed[i], changed[j] = changed[j], changed[i]
    return changed


def _adjacent(order: Order) -> list[tuple[Order, set[int]]]:
    return [(_exchanged(order, i, i + 1), {i, i + 1}) for i in range(len(order) - 1)]


def _all_pairs(order: Order) -> list[tuple[Order, set[int]]]:
    return [(_exchanged(order, i, j), {i, j}) for i in range(len(order)) for j in range(i + 1, len(order))]


def _moves(order: Order) -> list[tuple[Order, set[int]]]:
    found: list[tuple[Order, set[int]]] = []
    for i, taken in enumerate(order):
        rest = order[:i] + order[i + 1 :]
        found += [
            ([*rest[:j], taken, *rest[j:]], set(range(min(i, j), max(i, j) + 1)))
            for j in range(len(order))
            if j != i
        ]
    return found


WITH_TEXT: dict[str, Callable[[Losses, Order, Any], Order]] = {
    method.__name__: method for method in (greedy_perplexity, simulated_annealing, remove_reinsert, bubble)
}

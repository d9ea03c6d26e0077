"""Mixed-precision recipes: how many bits for each block, so that all cost the same. Plain numbers; no model
here.

Shapes: n blocks, W widths in bits.
"""

from __future__ import annotations

import numpy as np

MEAN = 4
"""Bits of a block on average: all recipes weigh the same."""
LOW, HIGH, PROTECTED = 3, 5, 6
"""Bits of blocks that are said to bear less or more, one away from the mean, and of the ends where they are
protected."""
LEAST, MOST, CLOSE = 2, 8, 0.05
"""Bits that a proportional recipe may give, and how far its mean may be from four, as published."""
OTHER_BITS = 5
"""Bits of a matrix that the published recipe by role does not name."""
ROLE_BITS = {"q": 3, "k": 3}
"""Bits of the roles that it names."""


def uniform(blocks: int) -> list[int]:
    """Four bits everywhere."""
    return [MEAN] * blocks


def ends_protected(blocks: int) -> list[int]:
    """First and last block at six bits, paid for by as many as needed at three, those nearest to the
    middle."""
    bits = uniform(blocks)
    if blocks < 3:
        return bits
    inner = sorted(range(1, blocks - 1), key=lambda i: abs(i - (blocks - 1) / 2))
    paid = min(len(inner), 2 * (PROTECTED - MEAN))
    given = [0, blocks - 1] if paid == 2 * (PROTECTED - MEAN) else [0] if paid >= PROTECTED - MEAN else []
    for i in given:
        bits[i] = PROTECTED
    for i in inner[: len(given) * (PROTECTED - MEAN)]:
        bits[i] = LOW
    return bits


def by_score(score_n: np.ndarray) -> list[int]:
    """Five bits for the third of the blocks with the highest score, three for the third with the lowest, four
    between."""
    order = np.argsort(-np.nan_to_num(score_n, nan=float(np.nanmedian(score_n))), kind="stable")
    third = len(order) // 3
    bits = np.full(len(order), MEAN)
    bits[order[:third]] = HIGH
    bits[order[len(order) - third :]] = LOW
    return bits.tolist()


def oracle(increase_nW: np.ndarray, widths: list[int]) -> list[int]:
    """The bits that minimise the sum of the increases measured block by block, at a mean of four: exact, by
    budget."""
    blocks = len(increase_nW)
    budget = MEAN * blocks
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for block in range(blocks):
        following: dict[int, tuple[float, list[int]]] = {}
        for used, (cost, chosen) in best.items():
            for column, width in enumerate(widths):
                total, value = used + width, cost + float(increase_nW[block, column])
                if total <= budget and (total not in following or value < following[total][0]):
                    following[total] = (value, [*chosen, width])
        best = following
    return min(best.values(), key=lambda found: found[0])[1]


def unit_scale(score_n: np.ndarray) -> np.ndarray:
    """A score brought to 0 for its least and 1 for its largest value; what has none counts as the median."""
    known = np.nan_to_num(score_n, nan=float(np.nanmedian(score_n)))
    return (known - known.min()) / (known.max() - known.min() + 1e-8)


def proportional(score_n: np.ndarray) -> list[int]:
    """Bits in proportion to 2 + 6 times the scaled score, rounded, between two and eight; then one bit less
    for the first of the largest, or one more for the first of the smallest, until the mean is four."""
    raw = LEAST + (MOST - LEAST) * unit_scale(score_n)
    bits = np.clip(np.round(MEAN * len(raw) * raw / raw.sum()), LEAST, MOST).astype(int)
    return at_the_mean(bits.tolist())


def ends_at_eight(blocks: int) -> list[int]:
    """First and last block at eight bits, the others at four, and then the same correction: it takes what was
    given away again."""
    bits = uniform(blocks)
    bits[0] = bits[-1] = MOST
    return at_the_mean(bits)


def at_the_mean(bits: list[int]) -> list[int]:
    """One bit less for the first of the largest, or one more for the first of the smallest, until the mean is
    within 0.05 of four; where few blocks cannot come so near, until it would move away again."""
    made = list(bits)
    while abs(off := sum(made) / len(made) - MEAN) > CLOSE:
        place = made.index(max(made)) if off > 0 else made.index(min(made))
        step = -1 if off > 0 else 1
        if abs(off + step / len(made)) >= abs(off):
            break
        made[place] += step
    return made

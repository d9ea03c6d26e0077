"""What text says about tokens without any model: vectors from what stands beside what, and which tokens lie
over which.

Shapes: V tokens, D width.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from regraft.core.progress import advance
from regraft.tokenizers.byte_codec import ByteIds

REACH = 4
"""Tokens on either side that count as beside each other."""


def beside_vectors(rows: Iterable[Sequence[int]], count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (V, D) of tokens from rows of ids, and how often each occurs; a token that does not occur is
    zero.

    The leading singular vectors of the logarithm, where it is above zero, of how often two tokens stand
    within four places of each other over what chance would make it ("Neural Word Embedding as Implicit Matrix
    Factorization", Levy and Goldberg, 2014).

    Raises:
        ValueError: fewer different tokens occur than the vectors would have numbers.
    """
    beside = sp.csr_matrix((count, count), dtype=np.float64)
    counts_V = np.zeros(count)
    for number, row in enumerate(rows, 1):
        ids = np.asarray(row, np.int64)
        np.add.at(counts_V, ids, 1)
        for step in range(1, min(REACH, len(ids) - 1) + 1):
            ones = np.ones(len(ids) - step)
            beside += sp.csr_matrix((ones, (ids[:-step], ids[step:])), shape=(count, count))
        advance("counting neighbours in the text", number, number + 1)
    if int((counts_V > 0).sum()) <= width + 1:
        raise ValueError(
            f"the text holds {int((counts_V > 0).sum())} different tokens, too few for vectors of {width}:"
            " give more"
        )
    both = (beside + beside.T).tocoo()
    sums = np.asarray(both.sum(1)).ravel()
    above = np.maximum(np.log(both.data * sums.sum() / (sums[both.row] * sums[both.col])), 0)
    matrix = sp.csr_matrix((above, (both.row, both.col)), shape=(count, count))
    left, values, _ = svds(matrix, k=width, rng=0)
    return left * np.sqrt(values), counts_V


def overlaps(old: ByteIds, new: ByteIds, texts: Sequence[str]) -> dict[int, Counter[int]]:
    """How many bytes of text each new token shares with each old one, where both tokenizers cut the same
    text.

    A text that one of them does not keep as it is says nothing and is left out.

    Raises:
        ValueError: every text is left out.
    """
    found: dict[int, Counter[int]] = defaultdict(Counter)
    for number, text in enumerate(texts, 1):
        ours, theirs = new.spans(text.encode()), old.spans(text.encode())
        if ours is None or theirs is None:
            continue
        place = 0
        for start, stop, token in ours:
            while place and theirs[place][0] > start:
                place -= 1
            while place < len(theirs) and theirs[place][0] < stop:
                shared = min(stop, theirs[place][1]) - max(start, theirs[place][0])
                if shared > 0:
                    found[token][theirs[place][2]] += shared
                place += 1
            place = max(0, place - 1)
        advance("aligning text", number, len(texts))
    if not found:
        raise ValueError(
            "no text comes back whole from both tokenizers, so their tokens cannot be aligned: choose another"
            " --method"
        )
    return found

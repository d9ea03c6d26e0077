"""What grafts do to tokens of different kinds: by length in bytes, by how often they occur in the text, by
their type.

Shapes: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from torch import Tensor

from regraft.data.token_bytes import TokenBytes

LENGTHS = (
    (1, "1 byte"),
    (2, "2 bytes"),
    (4, "3 to 4 bytes"),
    (8, "5 to 8 bytes"),
    (16, "9 to 16 bytes"),
    (2**31, "longer"),
)
"""Bounds of the lengths of tokens, twice as long each."""
OFTEN = ((9, "below 10 times"), (99, "10 to 99 times"), (2**62, "100 times and more"))
"""Bounds of how often a token comes, a power of ten each."""


class TokenSums:
    """Sums by token over all text: divergence where it was read last, loss where it was to come."""

    def __init__(self, vocabulary: int):
        self.read_V, self.wanted_V = np.zeros(vocabulary), np.zeros(vocabulary)
        self.divergence_V, self.excess_V = np.zeros(vocabulary), np.zeros(vocabulary)

    def add(self, before: Tensor, after: Tensor, ids_BT: Tensor) -> None:
        """Count one batch, by log-probabilities (B, T, V) of the model as it was and with the grafts."""
        theirs, ours, target = before[:, :-1], after[:, :-1], ids_BT[:, 1:]
        divergence_BT = (theirs.exp() * (theirs - ours)).sum(-1)
        excess_BT = (theirs - ours).gather(-1, target[..., None])[..., 0]
        for ids, values, counts_V, sums_V in (
            (ids_BT[:, :-1], divergence_BT, self.read_V, self.divergence_V),
            (target, excess_BT, self.wanted_V, self.excess_V),
        ):
            each = ids.flatten().cpu().numpy()
            np.add.at(counts_V, each, 1)
            np.add.at(sums_V, each, values.flatten().double().cpu().numpy())

    def by_group(self, table: TokenBytes) -> dict[str, xr.DataArray]:
        """Means for every group of tokens that occurs in the text."""
        found = {}
        for name, these_V in groups(table, self.read_V).items():
            read, wanted = self.read_V[these_V].sum(), self.wanted_V[these_V].sum()
            if read and wanted:
                found[name] = (
                    read,
                    self.divergence_V[these_V].sum() / read,
                    self.excess_V[these_V].sum() / wanted,
                )
        stated = {
            "group_tokens": "tokens of the group that were read",
            "group_kl": (
                "nats per token from the model as it was, of the prediction behind a token of the group"
            ),
            "group_excess": "nats more than the model as it was, where a token of the group was to come",
        }
        coords = {"group": list(found)}
        columns = zip(*found.values(), strict=True)
        return {
            name: xr.DataArray(list(values), coords, ("group",), attrs={"units": units})
            for (name, units), values in zip(stated.items(), columns, strict=True)
        }


def groups(table: TokenBytes, occurrences_V: np.ndarray) -> dict[str, np.ndarray]:
    """Which tokens (V,) belong to each group; a token stands in one group of each of the three kinds."""
    lengths_V = np.array([len(content) for content in table.bytes_V])
    kinds_V = np.array(table.kind_V)
    text_V = kinds_V == "text"
    found, above = {}, 0
    for most, name in LENGTHS:
        found[name], above = text_V & (lengths_V > above) & (lengths_V <= most), most
    above = 0
    for most, name in OFTEN:
        found[name], above = (occurrences_V > above) & (occurrences_V <= most), most
    spaced_V = np.array([content[:1].isspace() for content in table.bytes_V])
    whole_V = np.array([_is_utf8(content) for content in table.bytes_V])
    return {
        **found,
        "opens with white space": text_V & spaced_V,
        "does not": text_V & ~spaced_V & whole_V,
        "part of a character": text_V & ~whole_V,
        **{f"{kind} tokens": kinds_V == kind for kind in ("special", "reserved")},
    }


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True

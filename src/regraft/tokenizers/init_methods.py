"""Rows for tokens that a model has never seen: mixtures of the rows that it has, by several methods side by
side.

`hybrid` is the house method: the pieces that the old tokenizer cuts a token into, weighted by likeness to the
whole and by length, and the nearest old tokens in a sentence encoder's space ("TokenAdapt", Sharthak et al.,
2025). The others are baselines. Shapes: N new tokens, V old tokens, D width, K nearest or chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from regraft.core.progress import advance
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.comparison import shown
from regraft.tokenizers.control_rows import USUAL_RANGE, DrawnRows, drawn
from regraft.tokenizers.cooccurrence import beside_vectors, overlaps
from regraft.tokenizers.encoder import Vectors
from regraft.tokenizers.mixtures import Mixture, blended, mixture, softmax, sparsemax
from regraft.tokenizers.nearest import nearest
from regraft.tokenizers.vocab_map import Matching

Method = Literal["hybrid", "local", "mean", "retok", "align", "focus", "pursuit", "random", "gaussian"]
METHODS: tuple[Method, ...] = ("hybrid", "local", "mean", "retok", "align", "focus", "pursuit")
"""The methods that mix old rows; `random` and `gaussian` draw rows, as controls."""
AUXILIARY_WIDTH, CONSIDERED = 128, 64
"""Width of vectors that are made from text alone, and old tokens that a new one is mixed of at most."""


@dataclass(frozen=True)
class InitSettings:
    """What the methods are told.

    Raises:
        ValueError: a value that means nothing.

    Examples:
        >>> regraft.InitSettings("hybrid", temperature=0.5).nearest
        3
        >>> regraft.InitSettings(temperature=0.0)
        Traceback (most recent call last):
        ...
        ValueError: ...
    """

    method: Method = "hybrid"
    """How rows of new tokens are estimated; see docs/tokenizers.md."""
    temperature: float = 0.3
    """Temperature of the weights."""
    nearest: int = 3
    """Nearest old tokens that are mixed in."""
    weight: float = 0.3
    """Share of the nearest tokens against the pieces."""
    threshold: float = 0.0
    """Least cosine of a nearest token."""
    atoms: int = 8
    """Shared tokens that matching pursuit adds up."""
    search: Literal["exact", "approximate"] = "exact"
    """How nearest tokens are found."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"a temperature of {self.temperature:g} chooses nothing: it must be above 0")
        if not math.isfinite(self.threshold):
            raise ValueError("a threshold must be a number: cosines lie between -1 and 1")
        if self.nearest < 1 or self.atoms < 1:
            raise ValueError("at least one nearest token and one atom are needed")
        if not 0 <= self.weight <= 1:
            raise ValueError(
                f"a weight of {self.weight:g} for the nearest tokens is no share: choose between 0 and 1"
            )


@dataclass(eq=False)
class TransplantCase:
    """Two vocabularies, what they share, and what the methods may look at: old rows, an encoder's vectors,
    some text."""

    old: ByteIds
    new: ByteIds
    matching: Matching
    table_VD: Tensor
    vectors: Vectors | None
    texts: Sequence[str]
    donor_VD: Tensor | None = None
    spread: float = USUAL_RANGE

    @property
    def contents(self) -> list[bytes]:
        """Bytes of the tokens that need rows."""
        return [self.new.table.bytes_V[i] for i in self.matching.missing]

    @cached_property
    def cuts(self) -> list[list[int]]:
        """The same as old ids."""
        return self.old.cut(self.contents)

    @cached_property
    def known(self) -> np.ndarray:
        """Old tokens that are whole text, so that an encoder can read them."""
        kinds = self.old.table.kind_V
        return np.array(
            [i for i, c in enumerate(self.old.table.bytes_V) if kinds[i] == "text" and readable(c)], np.int64
        )

    @cached_property
    def whole_NE(self) -> Tensor:
        """A vector of each new token: the encoder's, or without one the pieces' own directions by their
        lengths."""
        if self.vectors is not None:
            return self.vectors.of([shown(content) for content in self.contents])
        return torch.from_numpy(
            mixture(self.cuts, self.shares, len(self.table_VD)).weights_NV @ self.known_VE.numpy()
        )

    @cached_property
    def known_VE(self) -> Tensor:
        """A vector of every old token in the same space."""
        if self.vectors is None:
            return torch.nn.functional.normalize(self.table_VD.detach().float().cpu(), dim=-1)
        return self.vectors.of([shown(content) for content in self.old.table.bytes_V])

    @cached_property
    def shares(self) -> list[np.ndarray]:
        """Each piece's share of its token's bytes."""
        lengths = [np.array([len(self.old.table.bytes_V[i]) for i in ids], float) for ids in self.cuts]
        return [length / length.sum() if len(length) else length for length in lengths]

    @cached_property
    def anchors(self) -> np.ndarray:
        """New tokens of text that take old rows over."""
        text_V = np.array([kind == "text" for kind in self.new.table.kind_V])
        return np.flatnonzero(text_V & (self.matching.source_V >= 0))

    @cached_property
    def beside(self) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the new tokens from the text, and their counts."""
        rows = (self.new.encode(text.encode()) for text in self.texts)
        return beside_vectors(rows, len(self.new.table), AUXILIARY_WIDTH)


def readable(content: bytes) -> bool:
    """Whether a token is text that can be read: whole characters."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return bool(content)


def estimate(case: TransplantCase, settings: InitSettings, seed: int = 0) -> Mixture | DrawnRows:
    """The rows of every new token of text, by the method that is set: mixtures of old rows, or drawn ones."""
    count = len(case.table_VD)
    match settings.method:
        case "random" | "gaussian":
            return drawn(settings.method, len(case.contents), case.spread, seed)
        case "mean":
            return mixture([[]] * len(case.contents), [], count)
        case "retok":
            return mixture(case.cuts, [np.full(len(ids), 1 / max(1, len(ids))) for ids in case.cuts], count)
        case "align":
            return aligned(case)
        case "focus":
            return focused(case)
        case "pursuit":
            return pursued(case, settings.atoms)
        case "local":
            return local(case, settings)
    return blended(local(case, settings), near(case, settings), settings.weight)


def local(case: TransplantCase, settings: InitSettings) -> Mixture:
    """Pieces by their likeness to the whole (softmax), averaged with their shares of the length, softmax at
    the temperature."""
    known_VE, whole_NE = case.known_VE.numpy(), case.whole_NE.numpy()
    weights = []
    for number, (ids, share) in enumerate(zip(case.cuts, case.shares, strict=True)):
        alike = softmax(known_VE[ids] @ whole_NE[number]) if ids else share
        weights.append(softmax((alike + share) / 2, settings.temperature) if ids else share)
        if number % 4096 == 0:
            advance("weighing pieces", number, len(case.cuts))
    return mixture(case.cuts, weights, len(case.table_VD))


def near(case: TransplantCase, settings: InitSettings) -> Mixture:
    """The nearest old tokens above the threshold, softmax at the temperature; none for tokens that are no
    whole characters."""
    asked = np.array([i for i, content in enumerate(case.contents) if readable(content)], np.int64)
    values_NK, places_NK = nearest(
        case.whole_NE[asked], case.known_VE[case.known], settings.nearest, settings.search
    )
    parts: list[list[int]] = [[] for _ in case.contents]
    weights = [np.zeros(0) for _ in case.contents]
    for number, values, places in zip(asked.tolist(), values_NK.numpy(), places_NK.numpy(), strict=True):
        kept = (values >= settings.threshold) & (places >= 0)
        if kept.any():
            parts[number] = case.known[places[kept]].tolist()
            weights[number] = softmax(values[kept].astype(float), settings.temperature)
    return mixture(parts, weights, len(case.table_VD))


def aligned(case: TransplantCase) -> Mixture:
    """Old tokens by the bytes that they share with a new one in text that both cut, as in Trans-Tokenization;
    else its pieces.

    After "Trans-Tokenization and Cross-lingual Vocabulary Transfers" (Remy et al., 2024), where the alignment
    is of translations; here both sides are one text, so it is exact.
    """
    found = overlaps(case.old, case.new, case.texts)
    parts, weights = [], []
    for token, ids in zip(case.matching.missing.tolist(), case.cuts, strict=True):
        shared = found.get(token)
        parts.append(list(shared) if shared else ids)
        values = np.array(list(shared.values()) if shared else [1.0] * len(ids), float)
        weights.append(values / values.sum() if len(values) else values)
    return mixture(parts, weights, len(case.table_VD))


def focused(case: TransplantCase) -> Mixture:
    """Shared tokens by sparsemax of their likeness in vectors made from text; a token that the text lacks
    takes the mean.

    After "FOCUS: Effective Embedding Initialization" (Dobler and de Melo, 2023); the auxiliary vectors are
    factored counts instead of fastText's.
    """
    vectors_VE, counts_V = case.beside
    usable = case.anchors[counts_V[case.anchors] > 0]
    seen = np.flatnonzero(counts_V[case.matching.missing] > 0)
    asked = torch.from_numpy(vectors_VE[case.matching.missing[seen]])
    values_NK, places_NK = nearest(asked, torch.from_numpy(vectors_VE[usable]), CONSIDERED)
    shares_NK = sparsemax(values_NK.double().numpy())
    parts: list[list[int]] = [[] for _ in case.contents]
    weights = [np.zeros(0) for _ in case.contents]
    for number, shares, places in zip(seen.tolist(), shares_NK, places_NK.numpy(), strict=True):
        kept = shares > 0
        parts[number] = case.matching.source_V[usable[places[kept]]].tolist()
        weights[number] = shares[kept]
    return mixture(parts, weights, len(case.table_VD))


def pursued(case: TransplantCase, atoms: int) -> Mixture:
    """Shared tokens whose vectors, by orthogonal matching pursuit, add up to the new token's; the same sum of
    their old rows.

    After "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit" (Goddard and Fernandes
    Neto, 2025). The vectors are those of the model that the new tokenizer comes from, where one is given,
    else the encoder's, else from text.
    """
    if case.donor_VD is not None:
        space_VE = case.donor_VD.detach().float().cpu()
    elif case.vectors is not None:
        space_VE = case.vectors.of([shown(content) for content in case.new.table.bytes_V])
    else:
        space_VE = torch.from_numpy(case.beside[0]).float()
    usable = case.anchors[(space_VE[case.anchors].norm(dim=1) > 0).numpy()]
    wanted = np.flatnonzero((space_VE[case.matching.missing].norm(dim=1) > 0).numpy())
    chosen_NK, weights_NK = pursue(space_VE[case.matching.missing[wanted]], space_VE[usable], atoms)
    parts: list[list[int]] = [[] for _ in case.contents]
    weights = [np.zeros(0) for _ in case.contents]
    for number, chosen, shares in zip(
        wanted.tolist(), chosen_NK.numpy(), weights_NK.double().numpy(), strict=True
    ):
        parts[number] = case.matching.source_V[usable[chosen]].tolist()
        weights[number] = shares
    return mixture(parts, weights, len(case.table_VD))


def pursue(wanted_NE: Tensor, atoms_ME: Tensor, count: int, block: int = 1024) -> tuple[Tensor, Tensor]:
    """Orthogonal matching pursuit of many vectors at once: the atoms chosen for each (N, K) and their weights
    (N, K).

    Each round adds the atom that is most alike to what is left and solves for all weights anew.
    """
    count = min(count, len(atoms_ME))
    unit_ME = torch.nn.functional.normalize(atoms_ME.double(), dim=-1)
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(wanted_NE), block):
        target_NE = wanted_NE[start : start + block].double()
        left_NE = target_NE
        chosen_NK = torch.zeros(len(target_NE), 0, dtype=torch.long)
        weights_NK = torch.zeros(len(target_NE), 0, dtype=torch.float64)
        for _ in range(count):
            alike_NM = (left_NE @ unit_ME.T).abs().scatter(1, chosen_NK, -1.0)
            chosen_NK = torch.cat([chosen_NK, alike_NM.argmax(1, keepdim=True)], 1)
            picked_NKE = atoms_ME[chosen_NK].double()
            gram_NKK = picked_NKE @ picked_NKE.mT
            gram_NKK += (
                1e-9 * gram_NKK.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(gram_NKK.shape[1])
            )
            weights_NK = torch.linalg.solve(gram_NKK, (picked_NKE @ target_NE[..., None])[..., 0])
            left_NE = target_NE - torch.einsum("nk,nke->ne", weights_NK, picked_NKE)
        found.append((chosen_NK, weights_NK))
        advance("matching pursuit", min(start + block, len(wanted_NE)), len(wanted_NE))
    if not found:
        return torch.zeros(0, count, dtype=torch.long), torch.zeros(0, count)
    return torch.cat([chosen for chosen, _ in found]), torch.cat([weights for _, weights in found])

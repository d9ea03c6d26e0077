"""Residual geometry: how the cloud of residual states is shaped at every depth, and how each block moves it.

Statistics are streamed: counts, means and second moments in float64 over all tokens; pairwise measures on a
sample that is fixed beforehand, so that nothing depends on how the prompts were batched. Shapes: S depths, L
blocks, N tokens, n tokens of one recording, M sampled tokens, C categories, D width.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import cosine_similarity

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.files import expanded
from regraft.core.quantities import quantity
from regraft.core.signatures import TextFile
from regraft.data.corpus import corpus as read_corpus
from regraft.experiments.observe.cloud_spectrum import (
    TOP_DIRECTIONS,
    spectrum_quantities,
    variances_of_covariance,
    variances_of_rows,
)
from regraft.experiments.observe.stream_moves import (
    DISTANCES,
    PUBLISHED,
    StreamMoves,
    category_quantities,
    move_quantities,
)
from regraft.experiments.observe.token_states import Observed, observed
from regraft.model.model import Model

SAMPLE, PAIRS = 1024, 5000
"""Tokens whose states are kept for pairwise measures, and pairs: the standard error of a mean cosine is then
below 0.015."""
PAIRS_AT_ONCE = 256
"""Pairs whose states are held twice over, in float64: 16 MiB at a width of 4,096."""

MOST_BYTES = 1 << 30
"""Sampled states and second moments that are held at once, beside the states of one recording."""


PER_DEPTH = {
    "participation_ratio": (
        "dimensions",
        "1: all states along one direction; the width: spread alike over all.",
        "Gao et al. (2017)",
    ),
    "mean_norm": (
        "length of the stream",
        "A jump is a block that writes far more than there was.",
        PUBLISHED,
    ),
    "cosine_raw": (
        "mean cosine of sampled pairs",
        "Above the centred one by what all states share.",
        "Ethayarajh (2019)",
    ),
    "cosine_centred": (
        "mean cosine of sampled pairs around their mean",
        "Near 0: beside their mean the states have nothing in common.",
        PUBLISHED,
    ),
    "persistence": (
        "mean cosine with the last depth",
        "The depth from which it rises is where the end takes shape.",
        PUBLISHED,
    ),
    "separation": (
        "variance between categories / within",
        "Above 0 the kinds of prompts lie apart; it does not depend on where the origin is.",
        "",
    ),
}
"""What is measured at every depth: unit, how to read it, whose it is."""
PER_BLOCK = {
    "update_size": (
        "length of the update / length of the stream",
        "Above 1 the block writes more than there was.",
        "",
    ),
    "update_cosine": (
        "mean cosine of the update with the stream",
        "Below 0 the block takes away from what is there, above 0 it strengthens it.",
        PUBLISHED,
    ),
    "update_persistence": (
        "mean cosine of the update with the last depth",
        "High: the block writes the end itself; near 0: it writes what later blocks read.",
        PUBLISHED,
    ),
}
"""The same of every block."""


def geometry(
    model: Model,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    stack: str = "",
    corpus: TextFile = "",
    seed: int = 0,
) -> xr.Dataset:
    """Describe the cloud of residual states at every depth: dimension, directions, norms, updates, similarity
    of depths.

    Sources: participation ratio as in Gao et al. (2017); anisotropy as in Ethayarajh (2019); linear CKA,
    Kornblith et al. (2019). Participation ratio (sum of variances)^2 / sum of squared variances of the
    centred states; mean cosine of sampled pairs, raw and centred; each block's update relative to its input
    and its cosine with it; persistence, the cosine with the last depth; separation, the variance between
    categories of prompts over the variance within them. Beside them the published neighbours: shares of the
    last state (which add up to 1), drift over 1 to 16 blocks, cosine of the blocks' mean updates, shares of
    the variance in the first directions, cosines within and between categories.

    Args:
        prompts: texts to complete and look at; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        stack: encoder or decoder of a model with two stacks; by default the decoder.
        corpus: a text file of any length whose tokens are looked at in place of completions.
        seed: of everything drawn at random.

    Raises:
        ValueError: fewer than two tokens, or a stack that does not exist.

    Examples:
        >>> data = regraft.geometry(model, count=2, tokens=4)
        >>> dict(data["participation_ratio"].sizes), data["participation_ratio"].attrs["units"]
        ({'depth': 13}, 'dimensions')
    """
    seen = observed(
        model, prompts, count, tokens, stack, read_corpus(model, str(expanded(corpus))) if corpus else ()
    )
    if seen.tokens < 2:
        raise ValueError(f"{seen.tokens} token is too few for a cloud: give more or longer prompts")
    cloud = Cloud.of(seen, seed)
    return _dataset(seen, cloud)


def _dataset(seen: Observed, cloud: Cloud) -> xr.Dataset:
    """Every measure of the cloud, by depth, block and category."""
    depths, blocks = len(cloud.mean), [block.address for block in seen.stack.blocks]
    shown = {name: getattr(cloud, name) for name in ("persistence", *PER_BLOCK)}
    shown |= {"mean_norm": cloud.norm, "participation_ratio": cloud.participation_ratio()}
    shown |= {f"cosine_{name}": cloud.pair_cosine(name == "centred") for name in ("raw", "centred")}
    shown["separation"] = cloud.separation()
    return xr.Dataset(
        {
            **{name: quantity("depth", shown[name], *told) for name, told in PER_DEPTH.items()},
            **{
                name: quantity("block", shown[name], *told, correlate=name.replace("_", " "))
                for name, told in PER_BLOCK.items()
            },
            "cka": (("depth", "other"), cloud.cka(), {"units": "linear CKA"}),
            **spectrum_quantities(cloud.variances, seen.tokens),
            **move_quantities(cloud.moves),
            **category_quantities(cloud.moves, cloud.group_count.numpy(), cloud.group_mean[-1].numpy()),
        },
        coords={
            "depth": np.arange(depths),
            "other": np.arange(depths),
            "block": blocks,
            "other_block": blocks,
            "contributor": ["embedding", *blocks],
            "gap": list(DISTANCES),
            "directions": list(TOP_DIRECTIONS),
            "category": cloud.names,
            "other_category": cloud.names,
        },
        attrs={
            **seen.attributes,
            "tokens": seen.tokens,
            "sampled_tokens": len(cloud.sample[0]),
            "pairs": len(cloud.pairs[0]),
            "width": int(cloud.mean.shape[1]),
        },
    )


class Cloud:
    """Streamed statistics of the states at every depth."""

    mean: Tensor
    variance: Tensor
    squares: Tensor
    group_count: Tensor
    group_mean: Tensor
    norm: np.ndarray
    persistence: np.ndarray
    update_size: np.ndarray
    update_cosine: np.ndarray
    update_persistence: np.ndarray
    sample: Tensor
    pairs: tuple[Tensor, Tensor]
    names: list[str]
    moves: StreamMoves
    variances: list[np.ndarray]

    @classmethod
    def of(cls, seen: Observed, seed: int) -> Cloud:
        """Walk over the recordings, once where the second moments of all depths fit into memory, else once
        for as many as do."""
        order = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(seen.tokens, generator=order)[:SAMPLE].sort().values
        cloud = cls()
        cloud.names, cloud.moves = sorted(set(seen.categories)), StreamMoves()
        names = cloud.names
        labels = torch.tensor([names.index(category) for category in seen.categories])
        cloud.pairs = _pairs(len(chosen), order)
        sums, second, sampled = None, None, 0
        for first, states in seen.walk():
            if second is None:
                cloud.sample = torch.empty(
                    len(states), len(chosen), states[0].shape[1], dtype=states[0].dtype
                )
            second = _add_second_moments(second, states[: _depths_at_once(states, cloud.sample)])
            here = labels[first : first + len(states[0])].to(states[0].device)
            cloud.moves.add(states, here, len(names))
            parts = [_moments(h.double(), here, len(names)) for h in states]
            parts_SP = [torch.stack(values) for values in zip(*parts, strict=True)]
            parts_SP += list(_updates(states))
            sums = [a + b for a, b in zip(sums, parts_SP, strict=True)] if sums else parts_SP
            inside = chosen[(chosen >= first) & (chosen < first + len(states[0]))] - first
            for into_MD, h in zip(cloud.sample, states, strict=True):
                into_MD[sampled : sampled + len(inside)] = h[inside.to(h.device)].cpu()
            sampled += len(inside)
        assert sums is not None
        assert second is not None
        cloud._finish(seen.tokens, labels, sums)
        cloud._spread(seen, second)
        return cloud

    def _finish(self, count: int, labels: Tensor, sums: list[Tensor]) -> None:
        total, grouped, norms, persistence, size, along, towards = (s.cpu() for s in sums)
        self.mean = total / count
        self.group_count = torch.bincount(labels, minlength=grouped.shape[1]).double()
        self.group_mean = grouped / self.group_count[None, :, None]
        self.norm, self.persistence = ((s / count).numpy() for s in (norms, persistence))
        self.update_size, self.update_cosine, self.update_persistence = (
            (s / count).numpy() for s in (size, along, towards)
        )

    def _spread(self, seen: Observed, second_PDD: Tensor) -> None:
        """The covariances' traces and squared Frobenius norms, from second moments of the first depths; the
        others by walking."""
        depths = len(self.mean)
        self.variance, self.squares = (torch.zeros(depths, dtype=torch.float64) for _ in range(2))
        self.variances = []
        whole = self.sample.shape[1] == seen.tokens
        for start in range(0, depths, len(second_PDD)):
            part = slice(start, min(depths, start + len(second_PDD)))
            if start:
                second_PDD.zero_()
                for _, states in seen.walk():
                    _add_second_moments(second_PDD, states[part])
            for depth, moment_DD in zip(range(part.start, part.stop), second_PDD, strict=False):
                mean_D = self.mean[depth].to(moment_DD.device)
                covariance_DD = moment_DD.div_(seen.tokens).addr_(mean_D, mean_D, alpha=-1)
                self.variance[depth] = covariance_DD.trace()
                found = (
                    variances_of_rows(self.sample[depth])
                    if whole
                    else variances_of_covariance(covariance_DD, seen.tokens)
                )
                self.variances.append(found.cpu().numpy())
                self.squares[depth] = covariance_DD.square_().sum()

    def participation_ratio(self) -> np.ndarray:
        """Squared trace over squared Frobenius norm of the covariance: exact, without a decomposition; NaN
        for no spread."""
        return (self.variance**2 / self.squares).numpy()

    def separation(self) -> np.ndarray:
        """Variance between the categories' means over the mean variance within a category; NaN for a single
        category."""
        if len(self.group_count) < 2:
            return np.full(len(self.mean), np.nan)
        share = self.group_count / self.group_count.sum()
        between = ((self.group_mean - self.mean[:, None]).pow(2).sum(2) * share).sum(1)
        within = self.variance - between
        return (between / within).numpy()

    def pair_cosine(self, centred: bool) -> np.ndarray:
        """Mean cosine of the sampled pairs at every depth."""
        one, other = self.pairs
        found = []
        for sample_MD, mean_D in zip(self.sample, self.mean, strict=True):
            states_MD = sample_MD.double() - mean_D if centred else sample_MD.double()
            some = zip(one.split(PAIRS_AT_ONCE), other.split(PAIRS_AT_ONCE), strict=True)
            cosines = [cosine_similarity(states_MD[a], states_MD[b], dim=-1) for a, b in some]
            found.append(float(torch.cat(cosines).mean()))
        return np.array(found)

    def cka(self) -> np.ndarray:
        """Linear CKA of every depth with every other, on the sampled tokens."""
        return linear_cka(self.sample).numpy()


def linear_cka(states_SMD: Tensor) -> Tensor:
    """Linear CKA of S clouds over the same M tokens with each other, (S, S), by their centred Gram
    matrices."""
    rows = []
    for states_MD in states_SMD:
        centred_MD = states_MD.double() - states_MD.double().mean(0)
        rows.append((centred_MD @ centred_MD.t()).flatten())
    gram = torch.stack(rows)
    length = gram.norm(dim=1)
    return (gram @ gram.t()) / (length[:, None] * length[None, :])


def _pairs(sampled: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of different sampled tokens."""
    one = torch.randint(sampled, (PAIRS,), generator=generator)
    step = torch.randint(1, sampled, (PAIRS,), generator=generator)
    return one, (one + step) % sampled


def _moments(h_nD: Tensor, labels_n: Tensor, categories: int) -> tuple[Tensor, ...]:
    grouped = torch.zeros(categories, h_nD.shape[1], dtype=h_nD.dtype, device=h_nD.device).index_add_(
        0, labels_n, h_nD
    )
    return h_nD.sum(0), grouped, h_nD.norm(dim=1).sum()


def _depths_at_once(states: list[Tensor], sample_SMD: Tensor) -> int:
    """How many depths' second moments are held together, beside the sample."""
    room = MOST_BYTES - sample_SMD.numel() * sample_SMD.element_size()
    return max(1, room // (8 * states[0].shape[1] ** 2))


def _add_second_moments(total_PDD: Tensor | None, states: list[Tensor]) -> Tensor:
    """Add each depth's sum of outer products over some tokens, in place."""
    width = states[0].shape[1]
    if total_PDD is None:
        total_PDD = torch.zeros(len(states), width, width, dtype=torch.float64, device=states[0].device)
    for moment_DD, h in zip(total_PDD, states, strict=False):
        moment_DD.addmm_(h.double().t(), h.double())
    return total_PDD


def _updates(states: list[Tensor]) -> tuple[Tensor, ...]:
    """Sums over tokens: cosine with the last depth, update sizes, and the updates' cosines with stream and
    last depth."""
    last = states[-1].double()
    persistence = [cosine_similarity(h.double(), last, dim=1).sum() for h in states]
    size, along, towards = [], [], []
    for before, after in pairwise(states):
        h = before.double()
        move = after.double() - h
        size.append((move.norm(dim=1) / h.norm(dim=1)).sum())
        along.append(cosine_similarity(move, h, dim=1).sum())
        towards.append(cosine_similarity(move, last, dim=1).sum())
    return torch.stack(persistence), torch.stack(size), torch.stack(along), torch.stack(towards)

"""Direct logit attribution: what each block, branch and head adds to the answer's logit.

Shapes: N scored tokens, n of one recording, L blocks, H heads, K width of a head, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.core.tolerance import gap
from regraft.data.evaluation import evaluation
from regraft.experiments.observe.lens import token_coords
from regraft.model.model import Model
from regraft.model.norm_parameters import gains_of, takes_mean_away
from regraft.model.parts import Block, Branch, has_matrix, matrix_OI
from regraft.model.recording import Recording
from regraft.sweeps.metric_kinds import predicted_pairs

BRANCHES = {"attention": ("attn", "mixer"), "cross-attention": ("cross",), "mlp": ("mlp",)}
"""Branches of a block by what they are called here, and by kind."""
LOGITS = "logits"
PROVED_TOKENS = 4
"""Tokens of a recording at which every logit of the vocabulary is held to norm and matrix."""
SOURCE = "nostalgebraist (2020); Elhage et al., A Mathematical Framework for Transformer Circuits (2021)"


@dataclass(eq=False)
class Reader:
    """The final norm, frozen at each token's own scale, and the answer's row of the output matrix, as one
    direction for each token: `along` (n, D), and what is added whatever the stream is (n)."""

    along_nD: Tensor
    constant_n: Tensor

    def of(self, part_nD: Tensor) -> Tensor:
        """What a part of the stream adds to the logit, (n,)."""
        return (part_nD.double() * self.along_nD).sum(1)


def contributions(
    model: Model,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    against: Literal["nothing", "mean"] = "nothing",
) -> xr.Dataset:
    """Split the logit of every true next token among embedding, blocks, attention, MLPs and heads.

    Source: nostalgebraist (2020); Elhage et al. (2021). The stream that leaves the last block is a sum, and
    behind it stand the final norm, frozen at the scale that it has for this token, and one row of the output
    matrix: both are linear, so every summand adds its own share, and the shares add up to the logit. It is
    the direct share only: what a block changes in later ones counts there.

    Args:
        prompts: texts to complete and read; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        against: mean takes the mean over the vocabulary away from every logit: what is added to all tokens
            alike decides nothing.

    Raises:
        ValueError: the model predicts no next token, or its logits are no norm and matrix of the stream (a
            soft cap, for example).

    Examples:
        >>> data = regraft.contributions(model, count=2, tokens=4)
        >>> dict(data["by_block"].sizes), data["by_block"].attrs["units"]
        ({'block': 12, 'token': 6}, 'logits, from each block')
    """
    text = evaluation(model, prompts, count, tokens)
    parts = []
    for number, recording in enumerate(text.recordings):
        parts.append(_of_recording(recording, against))
        advance("recordings", number + 1, len(text.recordings))
    joined = {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
    _check(model, joined)
    data = _dataset(model, joined, token_coords(model, text))
    return data.assign_attrs(**text.attributes, against=against)


@torch.no_grad()
def _of_recording(recording: Recording, against: str) -> dict[str, np.ndarray]:
    """Every summand's share for the tokens of one recording, tokens last."""
    model, pairs = recording.model, predicted_pairs(recording)
    target_n = recording.ids_BT[pairs[0], pairs[1] + 1]
    blocks = model.main_blocks
    last_nD = recording.post(blocks[-1].index)[pairs]
    reader, official_n = _reader(recording, last_nD, target_n, against)
    shares = [_of_block(recording, block, pairs, reader) for block in blocks]
    own = reader.of(recording.pre(blocks[0].index)[pairs])
    by_block = torch.stack([share["block"][0] for share in shares])
    found = {
        "logit": official_n,
        "by_embedding": own,
        "by_block": by_block,
        "by_offset": reader.constant_n,
        "by_between": reader.of(last_nD) - own - by_block.sum(0),
        "by_branch": torch.stack([share["branch"] for share in shares], dim=1),
        "by_head": _side_by_side([share["head"] for share in shares]),
    }
    return {name: value.cpu().numpy() for name, value in found.items()}


def _reader(recording: Recording, last_nD: Tensor, target_n: Tensor, against: str) -> tuple[Reader, Tensor]:
    """The reader of every token, and the model's own logits of the targets (n)."""
    model = recording.model
    head, norm = model.parts.head, model.parts.final_norm
    assert head is not None
    if not has_matrix(head):
        raise ValueError(
            f"the output matrix of {model.name} is no plain matrix at hand, so its rows cannot be read"
        )
    matrix_VD = matrix_OI(head)
    row_nD = matrix_VD[target_n].double()
    bias = getattr(head, "bias", None)
    bias_n = bias[target_n].double() if isinstance(bias, Tensor) else torch.zeros_like(row_nD[:, 0])
    logits_nV = recording.head(last_nD[:, None])[:, 0]
    official_n = logits_nV.gather(1, target_n[:, None])[:, 0].double()
    if against == "mean":
        row_nD = row_nD - matrix_VD.double().mean(0)
        bias_n = bias_n - (bias.double().mean() if isinstance(bias, Tensor) else 0.0)
        official_n = official_n - logits_nV.double().mean(1)
    normed_nD, along_nD, constant_n = last_nD.double(), row_nD, bias_n
    if norm is not None:
        gains = gains_of(norm, last_nD.shape[1])
        along_nD = row_nD * gains.factor_D.double()
        if takes_mean_away(norm, last_nD.shape[1]):
            normed_nD = normed_nD - normed_nD.mean(1, keepdim=True)
            along_nD = along_nD - along_nD.mean(1, keepdim=True)
        scale_n1 = (normed_nD.square().mean(1, keepdim=True) + gains.eps).sqrt()
        along_nD, constant_n = along_nD / scale_n1, bias_n + row_nD @ gains.offset_D.double()
        normed_nD = normed_nD / scale_n1 * gains.factor_D.double() + gains.offset_D.double()
    plain_kV = normed_nD[:PROVED_TOKENS] @ matrix_VD.double().t()
    plain_kV = plain_kV + (bias.double() if isinstance(bias, Tensor) else 0.0)
    factor = _constant_factor(model, plain_kV, logits_nV[:PROVED_TOKENS].double())
    return Reader(along_nD * factor, constant_n * factor), official_n


def _constant_factor(model: Model, plain_kV: Tensor, official_kV: Tensor) -> float:
    """The constant by which a model multiplies its logits (1 in most), proved on the whole vocabulary.

    Raises:
        ValueError: no constant does it: something else stands behind the last block.
    """
    factor = float((official_kV * plain_kV).sum() / plain_kV.square().sum())
    off = gap(plain_kV * factor, official_kV)
    if not off <= model.rounding:
        raise ValueError(
            f"the logits of {model.name} are not its final norm and output matrix (they differ by {off:.1e}"
            " of the largest: a soft cap, for example), so no share of them adds up"
        )
    return factor


def _of_block(
    recording: Recording, block: Block, pairs: tuple[Tensor, Tensor], reader: Reader
) -> dict[str, Tensor]:
    """Shares of a block (1, n), its branches (kind, n), its heads (H, n); NaN where none adds up plainly."""
    update_nD = recording.post(block.index)[pairs].double() - recording.pre(block.index)[pairs].double()
    total = reader.of(update_nD)
    branch_rows, heads = [], torch.full((1, len(total)), float("nan"), dtype=total.dtype, device=total.device)
    for kinds in BRANCHES.values():
        row = torch.full_like(total, float("nan"))
        for branch in block.branches:
            if branch.kind in kinds and branch.sum_norm is None:
                found = recording[f"{block.address}.{branch.kind}_out"]
                share = reader.of(found[pairs])
                row = share if bool(row.isnan().all()) else row + share
                if branch.kind == "attn":
                    heads = _of_heads(recording, block, branch, pairs, reader, heads)
        branch_rows.append(row)
    return {"block": total[None], "branch": torch.stack(branch_rows), "head": heads}


def _of_heads(
    recording: Recording,
    block: Block,
    branch: Branch,
    pairs: tuple[Tensor, Tensor],
    reader: Reader,
    none: Tensor,
) -> Tensor:
    """Shares of single heads, (H, n): each head's part of the output projection."""
    model = recording.model
    if branch.out_norm is not None or branch.projection is None or not model.taps.exists(block.index, "z"):
        return none
    z_nHK = recording[f"{block.address}.z"][pairs]
    if z_nHK.dim() != 3 or not has_matrix(branch.projection):
        return none
    model.filled(block.index)
    through_nW = branch.factor * (reader.along_nD @ matrix_OI(branch.projection).double())
    return (through_nW.unflatten(1, z_nHK.shape[1:]) * z_nHK.double()).sum(2).t()


def _side_by_side(tables: list[Tensor]) -> Tensor:
    """(L, H, n) from tables of fewer heads, too; NaN behind a block's last head."""
    most = max(len(table) for table in tables)
    full = torch.full(
        (len(tables), most, tables[0].shape[1]), float("nan"), dtype=tables[0].dtype, device=tables[0].device
    )
    for row, table in enumerate(tables):
        full[row, : len(table)] = table
    return full


def _check(model: Model, found: dict[str, np.ndarray]) -> None:
    """Make sure that the shares add up to the model's own logits."""
    summed = found["by_embedding"] + found["by_block"].sum(0) + found["by_between"] + found["by_offset"]
    off = gap(torch.from_numpy(summed), torch.from_numpy(found["logit"]))
    assert off <= model.rounding, f"shares of the logits leave {off:.1e} of the largest"


TOLD = {
    "logit": ((), "the model's own logit of the true token", "All shares of a token add up to it."),
    "by_embedding": ((), "from the token's own embedding", "Large only where a word suggests the next."),
    "by_block": (("block",), "from each block", "Above 0 it says the answer, below it speaks against it."),
    "by_between": ((), "from what the model adds between blocks", "0 in nearly all models."),
    "by_offset": ((), "from the norm's offset and the head's bias", "The same in every context."),
    "by_branch": (("branch", "block"), "from each branch", "The branches of a block add up to it."),
    "by_head": (
        ("block", "head"),
        "from each head",
        "Heads, with the output projection's bias, add up to their attention.",
    ),
}
"""Every summand's own dimensions, before that of the tokens; what it is; how to read it."""


def _dataset(model: Model, found: dict[str, np.ndarray], coords: dict[str, Any]) -> xr.Dataset:
    blocks = [block.address for block in model.main_blocks]
    single = {name: found[name].mean() for name in ("by_embedding", "by_between", "by_offset")}
    means = [single["by_embedding"], *found["by_block"].mean(1), single["by_between"], single["by_offset"]]
    heads = found["by_head"].mean(2)
    over = f"{LOGITS}, mean over tokens"
    return xr.Dataset(
        {
            **{
                name: quantity((*dims, "token"), found[name], f"{LOGITS}, {unit}", reading, SOURCE)
                for name, (dims, unit, reading) in TOLD.items()
            },
            "contribution": quantity(
                "contributor", np.array(means), over, "All bars add up to the mean logit of the true token.",
                SOURCE,
            ),
            "head_contribution": quantity(
                ("block", "head"), heads, over,
                "A head far from 0 writes the answer (or against it) itself; the others work through later"
                " parts.", SOURCE,
            ),
        },
        coords={
            "block": blocks,
            "branch": list(BRANCHES),
            "head": np.arange(heads.shape[1]),
            "contributor": ["embedding", *blocks, "between blocks", "offset"],
            **coords,
        },
    )  # fmt: skip

"""Logit lens: what the model would say if it stopped after each block.

Shapes: S depths (blocks + 1), N scored tokens, B prompts, T positions, D width, V vocabulary, K tokens shown
on hover.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import log_softmax

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.quantities import quantity
from regraft.core.signatures import KeptFolder
from regraft.core.structure import largest_difference
from regraft.data.evaluation import Evaluation, evaluation
from regraft.experiments.observe.lens_summaries import (
    PUBLISHED,
    TOPS,
    depth_summaries,
    kind_summaries,
    prompt_map,
    tuned_quantities,
)
from regraft.export.lens_folder import open_lens
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.sweeps.metric_kinds import predicted_pairs

SHOWN = 5
"""Tokens that are named at each depth."""
FULL_LOGITS = 1 << 23
"""Scores that are held at once: 32 MiB in float32."""
DESCRIBED = 1 << 21
"""Scores of which probabilities, ranks and entropies are made at once: 8 MiB, and a few times that in
between."""
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "to",
        "in",
        "on",
        "at",
        "by",
        "for",
        "from",
        "with",
        "and",
        "or",
        "but",
        "so",
        "if",
        "as",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "it",
        "its",
        "he",
        "she",
        "they",
        "we",
        "i",
        "you",
        "his",
        "her",
        "their",
        "our",
        "my",
        "your",
        "this",
        "that",
        "these",
        "those",
        "not",
        "no",
        "do",
        "does",
        "did",
        "have",
        "has",
        "had",
        "will",
        "would",
        "can",
        "could",
        "may",
        "might",
        "must",
        "shall",
        "should",
        "there",
        "here",
        "who",
        "what",
        "which",
        "when",
        "where",
        "how",
        "why",
        "than",
        "then",
    ]
)


def lens(
    model: Model,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    k: int = 10,
    tuned: KeptFolder = "",
) -> xr.Dataset:
    """Read every depth through the final norm and the head: rank, probability and entropy of the next token.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020). For every depth and scored token: the
    true next token's rank and probability, the entropy in nats, and the tokens ranked first. From these: the
    crystallization depth (the first from which the true token stays within the top k), the first depth that
    ranks it first, each block's hurt rate (share of tokens whose rank got worse through it), and over depth,
    for all tokens, each kind of token and each category of prompts: mean and median rank, accuracy within the
    first 1, 5 and 10, mean probability and entropy.

    Args:
        prompts: texts to complete and read; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        k: how far up the true token must stay to count as crystallized.
        tuned: the folder of a tuned lens, through which every depth is read as well.

    Raises:
        ValueError: the model predicts no next token (an encoder), or has no output matrix.
        CheckpointError: the folder holds no lens that was tuned for this model.

    Examples:
        >>> data = regraft.lens(model, prompts=["The capital of France is"], tokens=2)
        >>> dict(data["rank"].sizes), data["rank"].attrs["units"]
        ({'depth': 13, 'token': 2}, 'tokens ahead of the true one')
    """
    if k < 1:
        raise ValueError(f"k is {k}: the true token must be allowed at least rank 0, so k is 1 or more")
    own_lens = open_lens(tuned, model) if tuned else None
    text = evaluation(model, prompts, count, tokens)
    parts = [read_depths(recording) for recording in text.recordings]
    dataset = _dataset(model, text, _joined(parts), k)
    if own_lens is not None:
        found = _joined([read_depths(recording, own_lens) for recording in text.recordings])
        dataset = dataset.assign(tuned_quantities(dataset, found)).assign_attrs(tuned_lens=str(tuned))
    dataset.attrs |= text.attributes
    dataset.attrs["last_depth_difference"] = max(part["gap"] for part in parts)
    return dataset


def _joined(parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {
        name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0] if name != "gap"
    }


@torch.no_grad()
def read_depths(
    recording: Recording, translated: Callable[[int, Tensor], Tensor] | None = None
) -> dict[str, Any]:
    """Every depth of one recording: arrays (S, N) and (S, N, K), and the last depth's distance from the
    model's logits. The scores of so many tokens are held at once as take 32 MiB.

    `translated` takes a depth and the stream there to the stream that is read; nothing reads it as it is.
    """
    model = recording.model
    prompt, position = predicted_pairs(recording)
    target_N = recording.ids_BT[prompt, position + 1]
    blocks = model.main_blocks
    streams = [recording.pre(block.index) for block in blocks] + [recording.post(blocks[-1].index)]
    whole = recording.ids_BT.numel() * model.vocabulary <= FULL_LOGITS
    found: dict[str, list[Any]] = {
        name: [] for name in ("rank", "probability", "entropy", "kl_to_end", "top", "top_probability")
    }
    official_NV, gap = _official(recording)[prompt, position], 0.0
    pieces = torch.arange(len(prompt)).split(
        len(prompt) if whole else max(1, FULL_LOGITS // model.vocabulary)
    )
    for depth, plain in enumerate(streams):
        stream = plain if translated is None else translated(depth, plain)
        told: dict[str, list[np.ndarray]] = {name: [] for name in found}
        for piece in pieces:
            at = (prompt[piece], position[piece])
            logits_nV = recording.head(stream)[at] if whole else recording.head(stream[at][:, None])[:, 0]
            for some in torch.arange(len(piece)).split(max(1, DESCRIBED // model.vocabulary)):
                if depth == len(blocks):
                    gap = max(gap, largest_difference(logits_nV[some], official_NV[piece[some]]))
                end_nV = official_NV[piece[some]].float()
                for name, value in _describe(logits_nV[some].float(), target_N[piece[some]], end_nV).items():
                    told[name].append(value.cpu().numpy())
        for name, values in told.items():
            found[name].append(np.concatenate(values))
    return {**{name: np.stack(values) for name, values in found.items()}, "gap": gap}


def _official(recording: Recording) -> Tensor:
    with torch.no_grad():
        return recording.model.run(**recording.inputs).logits


def _describe(logits_NV: Tensor, target_N: Tensor, end_NV: Tensor) -> dict[str, Tensor]:
    logp_NV, end_logp_NV = log_softmax(logits_NV, -1), log_softmax(end_NV, -1)
    true_N = logits_NV.gather(1, target_N[:, None])
    top = logp_NV.topk(min(SHOWN, logp_NV.shape[1]), -1)
    return {
        "rank": (logits_NV > true_N).sum(-1),
        "probability": logp_NV.gather(1, target_N[:, None])[:, 0].exp(),
        "entropy": -(logp_NV.exp() * logp_NV).nan_to_num(0.0).sum(-1),
        "kl_to_end": (end_logp_NV.exp() * (end_logp_NV - logp_NV)).nan_to_num(0.0).sum(-1).clamp_min(0),
        "top": top.indices,
        "top_probability": top.values.exp(),
    }


def _dataset(model: Model, text: Evaluation, found: dict[str, np.ndarray], k: int) -> xr.Dataset:
    within = found["rank"] < k
    stays = np.flip(np.logical_and.accumulate(np.flip(within, 0), axis=0), 0)
    first = found["rank"] == 0
    worse = (found["rank"][1:] > found["rank"][:-1]).mean(1)
    top_text = np.array([model.token_text(int(i)) for i in found["top"].ravel()], dtype=str).reshape(
        found["top"].shape
    )
    dims = ("depth", "token")
    depths = found["rank"].shape[0]
    data = xr.Dataset(
        {
            "first": (dims, top_text[..., 0], {"units": "token that is ranked first"}),
            "rank": (dims, found["rank"], {"units": "tokens ahead of the true one"}),
            "probability": (dims, found["probability"], {"units": "probability of the true token"}),
            "entropy": (dims, found["entropy"], {"units": "nats"}),
            "kl_to_end": (
                dims,
                found["kl_to_end"],
                {"units": "nats from what the model says at the end to what the lens says here"},
            ),
            "top": ((*dims, "place"), top_text, {"units": "token"}),
            "top_id": ((*dims, "place"), found["top"], {"units": "token id"}),
            "top_probability": ((*dims, "place"), found["top_probability"], {"units": "probability"}),
            "crystallization": quantity(
                "token",
                _first_depth(stays),
                f"depth from which the true token stays in the top {k}",
                "Early: the token is found by the first blocks; empty: it never stays among the first.",
                PUBLISHED,
            ),
            "first_top1": quantity(
                "token",
                _first_depth(first),
                "first depth that ranks the true token first",
                "Behind it the token may be lost again; the crystallization tells from where it stays.",
                PUBLISHED,
            ),
            "hurt_rate": (
                "block",
                worse,
                {"units": "share of tokens whose rank got worse through the block", "correlate": "hurt rate"},
            ),
        },
        coords={
            "depth": np.arange(depths),
            "block": [block.address for block in model.main_blocks],
            **token_coords(model, text),
        },
    )
    for split in ("type", "category"):
        data = data.assign(_split(data, split)).assign(kind_summaries(data, split))
    data.attrs["k"] = k
    for name in ("crystallization", "first_top1"):
        data.attrs[f"mean_{name}"] = (
            float(np.nanmean(data[name])) if bool(np.isfinite(data[name]).any()) else float("nan")
        )
    return data.assign(depth_summaries(data)).assign(prompt_map(data)).assign_coords(k=list(TOPS))


def _split(data: xr.Dataset, by: str) -> dict[str, xr.DataArray]:
    """The summaries for each kind of token or prompt, with the number of tokens behind them."""
    kinds = np.unique(data[by].values)
    rank = data["rank"].values
    rows = [data[by].values == kind for kind in kinds]
    worse = np.array([(rank[1:, row] > rank[:-1, row]).mean(1) for row in rows])
    named = {f"by_{by}": kinds}

    def mean(name: str) -> np.ndarray:
        values = [data[name].values[row] for row in rows]
        return np.array([np.nanmean(v) if np.isfinite(v).any() else np.nan for v in values])

    return {
        f"tokens_by_{by}": xr.DataArray([int(row.sum()) for row in rows], named, attrs={"units": "tokens"}),
        f"hurt_rate_by_{by}": xr.DataArray(
            worse,
            {**named, "block": data.block.values},
            (f"by_{by}", "block"),
            attrs={"units": "share of tokens"},
        ),
        **{
            f"{n}_by_{by}": xr.DataArray(mean(n), named, attrs={"units": "mean depth"})
            for n in ("crystallization", "first_top1")
        },
    }


def _first_depth(flags_SN: np.ndarray) -> np.ndarray:
    """First True along the depths; NaN where there is none."""
    return np.where(flags_SN.any(0), flags_SN.argmax(0).astype(float), np.nan)


def token_coords(model: Model, text: Evaluation) -> dict[str, Any]:
    """Coordinates of every scored token: its prompt, position, id, text, and kinds."""
    prompt, position, ids, word, category, kind = [], [], [], [], [], []
    number = 0
    for recording, batch in zip(text.recordings, text.order, strict=True):
        rows, columns = (index.tolist() for index in predicted_pairs(recording))
        for row, column in zip(rows, columns, strict=True):
            token = int(recording.ids_BT[row, column + 1])
            piece = model.token_text(token)
            ids.append(token)
            prompt.append(number + row)
            position.append(column + 1)
            word.append(piece)
            category.append(batch[row].category)
            kind.append(token_type(piece))
        number += len(batch)
    named = {
        "prompt": prompt,
        "position": position,
        "token_id": ids,
        "text": word,
        "category": category,
        "type": kind,
    }
    return {name: ("token", np.array(values)) for name, values in named.items()}


def token_type(piece: str) -> str:
    """Function word, content word, number or punctuation, by the token's own text."""
    bare = piece.strip().lower()
    if re.fullmatch(r"[\d.,]*\d[\d.,]*", bare):
        return "number"
    if not re.search(r"\w", bare):
        return "punctuation"
    return "function word" if bare in FUNCTION_WORDS else "content word"

"""Steering: the mean difference between two sets of texts, added to the stream; what it moves, what it costs,
and whether it moves texts that it was not made from.

Shapes: L blocks that are steered at, S strengths, N texts, D width of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.progress import advance
from regraft.core.signatures import TextFile
from regraft.data.evaluation import Batch, Recordings, batched, evaluation
from regraft.data.generation import check_writes, prompt_ids
from regraft.data.text_files import read_prompts
from regraft.export.changed_model import generate
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.sweeps.metrics import loss
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Add, Variant

STRENGTHS = (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the vector: both ways, none, and up to where text usually breaks down."""
FEWEST = 4
"""Texts of each set: half of them make the vector, half show how far it reaches."""
NOTHING = "nats per token above the whole model's own completions"


def steer(
    model: Model,
    towards: TextFile = "",
    away: TextFile = "",
    blocks: list[int] | None = None,
    strengths: list[float] | None = None,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
) -> xr.Dataset:
    r"""Add the mean difference of two sets of texts to the stream; measure what it moves and what it costs.

    The vector is the mean of the stream behind a block over all tokens but the first of every other text of
    one set, minus that of the other (Turner et al., 2023; Rimsky et al., 2024). Effect: how much less the one
    set loses, compared with the other, than without it; on the texts that it was made from, and on the
    others. Fluency: what the model's own completions lose. Each strength is shown by what the model writes
    under it.

    Args:
        towards: a file of texts to steer to: lines, or a JSON list.
        away: a file of texts to steer from.
        blocks: behind which blocks; by default at a quarter, half and three quarters of the depth.
        strengths: multiples of the vector.
        prompts: texts whose completions tell the fluency; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.

    Raises:
        ValueError: fewer than four texts in a set, a block or strength that does not exist, or a model that
            writes no text.

    Examples:
        >>> glad = "She laughs and sings.\nHe is glad.\nA merry song.\nThe sun shines.\n"
        >>> sad = "She weeps and sighs.\nHe is sad.\nA sad song.\nThe rain falls.\n"
        >>> _ = pathlib.Path("glad.txt").write_text(glad), pathlib.Path("sad.txt").write_text(sad)
        >>> data = regraft.steer(model, towards="glad.txt", away="sad.txt", blocks=[6], count=1, tokens=4)
        >>> dict(data["effect"].sizes), data["effect"].attrs["units"]
        ({'block': 1, 'strength': 7}, 'nats per token by which the texts steered to are preferred, ...')
    """
    chosen = _strengths(strengths)
    sets = [_texts(model, towards, "towards"), _texts(model, away, "away")]
    check_writes(model)
    behind = _blocks(model, blocks)
    made, held_out = ([_recordings(model, rows[half::2]) for rows in sets] for half in (0, 1))
    text = evaluation(model, prompts, count, tokens)
    vectors = [_difference(made, block) for block in behind]
    shape, results = (len(behind), len(chosen)), []
    found = {name: np.full(shape, np.nan) for name in ("effect", "held_out", "fluency")}
    for row, (block, vector_D) in enumerate(zip(behind, vectors, strict=True)):
        edits = [Variant([Add(f"{block.address}.resid_post", s * vector_D)]) for s in chosen]

        def measured(recordings: Recordings, edits: list[Variant] = edits) -> SweepResult:
            results.append(sweep(recordings, edits, loss()))
            return results[-1]

        found["effect"][row] = _preference(*(measured(one) for one in made))
        found["held_out"][row] = _preference(*(measured(one) for one in held_out))
        fluent = measured(text.recordings)
        found["fluency"][row] = fluent.mean("loss").numpy() - fluent.clean_mean("loss")
        advance("blocks", row + 1, len(behind))
    return _dataset(model, behind, chosen, found, vectors, held_out, text, results)


def _strengths(given: Sequence[float] | None) -> list[float]:
    chosen = list(given) if given else list(STRENGTHS)
    wrong = next((s for s in chosen if not -float("inf") < s < float("inf")), None)
    if wrong is not None:
        raise ValueError(f"a strength of {wrong} is no number to multiply by: write a finite one")
    return chosen


def _texts(model: Model, file: str, option: str) -> list[list[int]]:
    """Token ids of a set.

    Raises:
        ValueError: no file, or too few texts of two tokens.
    """
    if not file:
        raise ValueError(
            f"there are no texts to steer by: give a file of them with --{option} ({option}=...)"
        )
    rows = [row for row in map(model.encode, read_prompts(file)) if len(row) > 1]
    if len(rows) < FEWEST:
        raise ValueError(
            f"{file} holds {len(rows)} texts of two tokens or more: give at least {FEWEST}, half of which"
            " make the vector"
        )
    return rows


def _blocks(model: Model, given: Sequence[int] | None) -> list[Block]:
    """The blocks behind which the vector is added, all of the last stack."""
    stack = model.main_blocks
    last = len(stack) - 1
    numbers = list(given) if given else sorted({round(last * share) for share in (0.25, 0.5, 0.75)})
    wrong = next((n for n in numbers if not 0 <= n <= last), None)
    if wrong is not None:
        raise ValueError(f"there is no block {wrong} to steer behind: there are {len(stack)}, 0 to {last}")
    return [stack[n] for n in numbers]


def _recordings(model: Model, rows: list[list[int]]) -> Recordings:
    """Texts recorded in batches; an encoder-decoder reads the first half of each and writes the second."""
    rows = sorted(rows, key=len)
    batches: list[Batch] = []
    for batch in batched(rows, [len(row) for row in rows]):
        if model.two_stacks:
            halves = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in batch]
            batches.append(([a for a, _ in halves], [b for _, b in halves]))
        else:
            batches.append((batch, None))
    return Recordings(model, batches)


def _mean(recordings: Recordings, block: Block) -> Tensor:
    """Mean of the stream behind a block over all real tokens but each text's first, (D,): the first one is
    another kind of vector in most models."""
    total, tokens = 0.0, 0
    for recording in recordings:
        real = recording.real_at(block.index).clone()
        real[:, 0] = False
        stream_ND = recording.post(block.index)[real].double()
        total, tokens = total + stream_ND.sum(0), tokens + len(stream_ND)
    assert isinstance(total, Tensor)
    return total / tokens


def _difference(sets: Sequence[Recordings], block: Block) -> Tensor:
    towards, away = (_mean(recordings, block) for recordings in sets)
    return (towards - away).to(sets[0].model.dtype)


def _preference(towards: SweepResult, away: SweepResult) -> np.ndarray:
    """How much less the one set loses than the other, more than in the clean run, (S,)."""
    changed = away.mean("loss") - towards.mean("loss")
    return changed.numpy() - (away.clean_mean("loss") - towards.clean_mean("loss"))


def _written(
    model: Model, block: Block, vector_D: Tensor, strengths: list[float], prompt: str, tokens: int
) -> list[str]:
    """What the model writes behind a prompt under each strength, at every position."""
    ids = prompt_ids(model, prompt)
    edits = [Add(f"{block.address}.resid_post", s * vector_D) for s in strengths]
    return [str(generate(model, [ids], edits=edit, tokens=tokens, attention_mask="all")) for edit in edits]


def _dataset(
    model: Model,
    behind: list[Block],
    strengths: list[float],
    found: dict[str, np.ndarray],
    vectors: list[Tensor],
    held_out: Sequence[Recordings],
    text: Any,
    results: list[SweepResult],
) -> xr.Dataset:
    dims, shown = ("block", "strength"), max(text.flat, key=lambda one: len(one.completion_ids))
    longest = max(1, len(shown.completion_ids))
    other = [_difference(held_out, block) for block in behind]
    texts = [
        _written(model, block, vector, strengths, shown.prompt, longest)
        for block, vector in zip(behind, vectors, strict=True)
    ]
    rows = np.stack([vector.float().cpu().numpy() for vector in vectors])
    units = "nats per token by which the texts steered to are preferred, above clean"
    return xr.Dataset(
        {
            "effect": (dims, found["effect"], {"units": f"{units}, on the texts of the vector"}),
            "held_out": (dims, found["held_out"], {"units": f"{units}, on other texts"}),
            "fluency": (dims, found["fluency"], {"units": NOTHING}),
            "written": (dims, np.array(texts, dtype=object).astype(str), {"units": "text behind the prompt"}),
            "vector": (("block", "feature"), rows, {"units": "what one time the vector adds to the stream"}),
            "length": ("block", [float(v.norm()) for v in vectors], {"units": "length of the vector"}),
            "agreement": (
                "block",
                [
                    float(torch.cosine_similarity(v.double(), o.double(), dim=0))
                    for v, o in zip(vectors, other, strict=True)
                ],
                {"units": "cosine with the vector that the other texts make"},
            ),
        },
        coords={"block": [block.address for block in behind], "strength": strengths},
        attrs={**sweep_attributes(*results), "prompt": shown.prompt, **text.attributes},
    )

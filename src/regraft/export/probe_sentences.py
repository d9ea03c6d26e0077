"""A few fixed sentences, read and continued by a model as it was and with grafts in it: to look at, beside
the numbers of a certificate.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.data.generation import Sampling, until_end, write_on
from regraft.export.profile import STATES
from regraft.model.model import Model
from regraft.modules.logits_view import LogitsView
from regraft.modules.placement import Swaps, all_placed, logits_of

PROBES = (
    "The capital of France is",
    "Question: Is Berlin in Europe? Answer:",
    "Once upon a time there was a",
    "12 + 30 =",
    "She opened the door and",
    "def add(a, b):\n    return",
)
"""The sentences: facts, a story, a sum, prose and code; the same for every model, so that pages compare."""
NEXT, WRITTEN = 10, 16
"""Most probable next tokens that are shown, and tokens that are written on."""
SOURCE = "embedding-transplant studies (deformers)"


def probe_quantities(model: Model, swaps: Swaps) -> dict[str, Any]:
    """The ten next tokens behind each sentence, how many are the same, what is written on, and how fast.

    Nothing of a model that writes no text. A tree head is searched as the model's own `generate` searches it:
    for the best token alone.
    """
    if model.tokenizer is None or model.parts.head is None or model.parts.labels or not model.causal:
        return {}
    rows = [model.encode(text) for text in PROBES]
    tokens = np.zeros((2, len(rows), NEXT), np.int64)
    chances = np.zeros((2, len(rows), NEXT))
    for state, name in enumerate(STATES):
        with _state(model, swaps, name):
            for place, row in enumerate(rows):
                best = next_chances(model, row).topk(min(NEXT, model.table_rows))
                tokens[state, place, : len(best.indices)] = best.indices.tolist()
                chances[state, place, : len(best.values)] = best.values.tolist()
    shared = [len({*before} & {*after}) for before, after in zip(*tokens.tolist(), strict=True)]
    texts, rates = _written(model, swaps, rows)
    each = ("state", "probe", "place")
    names = [[[model.token_text(i) for i in row] for row in side] for side in tokens.tolist()]
    return {
        "probe_token": (each, names, {"units": "next token, the most probable first"}),
        "probe_probability": quantity(
            each, chances, "probability of the next token",
            "Both models' ten most probable tokens behind the same sentence; where the lists differ, the"
            " graft is seen.", SOURCE,
        ),
        "probe_shared": quantity(
            "probe", shared, f"tokens of the {NEXT} most probable that are in both lists",
            f"{NEXT}: the same tokens, perhaps in another order.", SOURCE,
        ),
        "continuation": (("state", "probe"), texts, {"units": f"up to {WRITTEN} tokens, written greedily"}),
        "decode_rate": quantity(
            "state", rates, "tokens/s, greedy, one text at a time, in generate, with keys and values kept",
            "Both states by turns in one run. A small model's time is mostly its blocks: a head matters more,"
            " the larger its vocabulary is beside them.", SOURCE,
        ),
    }  # fmt: skip


@contextmanager
def _state(model: Model, swaps: Swaps, name: str, search: bool = False) -> Iterator[None]:
    """The model as it was, or with the grafts; with `search` a tree head looks for the best token alone."""
    with ExitStack() as stack:
        if name == STATES[1]:
            stack.enter_context(all_placed(model.hf, swaps))
            for view in (new for _, new in swaps if search and isinstance(new, LogitsView)):
                stack.enter_context(view.asked(GenerationConfig(do_sample=False, num_beams=1)))
        yield


@torch.no_grad()
def next_chances(model: Model, row: Sequence[int]) -> Tensor:
    """Probabilities (V) of what comes next; an encoder-decoder reads the text and begins to write."""
    inputs = {"input_ids": torch.tensor([list(row)], device=model.device)}
    if model.two_stacks:
        start = getattr(model.hf.config, "decoder_start_token_id", None) or 0
        inputs["decoder_input_ids"] = torch.tensor([[start]], device=model.device)
    logits_1TV = logits_of(model, inputs)
    assert logits_1TV is not None
    return logits_1TV[0, -1].double().softmax(-1).cpu()


def _written(
    model: Model, swaps: Swaps, rows: Sequence[Sequence[int]]
) -> tuple[list[list[str]], list[float]]:
    """What each state writes behind each sentence, and tokens per second over all of them, by turns."""
    texts: list[list[str]] = [[], []]
    seconds, count = [0.0, 0.0], [0, 0]
    for place, row in enumerate(rows):
        batch_1T = torch.tensor([list(row)], device=model.device)
        for state, name in enumerate(STATES):
            with _state(model, swaps, name, search=True):
                if not place:
                    write_on(model, batch_1T, Sampling(2))
                began = time.perf_counter()
                (ids,) = write_on(model, batch_1T, Sampling(WRITTEN))
                seconds[state] += time.perf_counter() - began
            kept = until_end(model, ids)
            count[state] += min(len(kept) + 1, len(ids))
            texts[state].append("".join(map(model.token_text, kept)))
        advance("sentences written on", place + 1, len(rows))
    return texts, [n / s for n, s in zip(count, seconds, strict=True)]

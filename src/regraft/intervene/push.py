"""Push: activations of a charged question, put into a neutral text, and how far they push each answer.

Shapes: L blocks, H heads, C components, K targets.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from regraft.data.given import check_sayable
from regraft.engine.metric import log_probability
from regraft.engine.outcome import sweep_attributes
from regraft.engine.sweep import sweep
from regraft.engine.variant import Replace, Variant
from regraft.model.opened import Model
from regraft.model.recording import Recording


def push(
    model: Model,
    question: str = "Question: Is Madrid the capital of Spain? Answer:",
    baseline: str = "The day after Tuesday is",
    targets: list[str] | None = None,
    decoder_text: str = "",
) -> xr.Dataset:
    """Put each component's activation on a question into a neutral text and measure how far it pushes the answers.

    Components are every block's MLP output and every attention head; each is stored at the question's last position and put
    in at the baseline's last position. Push: change of the log-probability of a target there.

    Args:
        question: the charged text.
        baseline: an unrelated, neutral text of any length.
        targets: the answers, one token each; by default " yes" and " no".
        decoder_text: what an encoder-decoder has written before the answer, in both runs; by default nothing.

    Raises:
        ValueError: a target that is not one token, or a model that predicts no next token.
    """
    wanted = list(targets) if targets else [" yes", " no"]
    if not model.causal:
        raise ValueError(f"{model.name} does not write text from left to right, so a text has no next token to push")
    if not model.two_stacks and decoder_text:
        raise ValueError(f"{model.name} has no decoder of its own: what it goes on from is the text itself")
    if not targets:
        check_sayable(model, (question, baseline, *wanted), "the English question, text and answers that ship with regraft")
    charged, neutral = (model.record(text, decoder_text if model.two_stacks else None) for text in (question, baseline))
    places, labels, kinds, variants, lacking = [], [], [], [], []
    for block in model.main_blocks:
        for kind, site in (("mlp", "mlp_out"), ("head", "z")):
            if not model.taps.exists(block.index, site):
                lacking.append(f"{block.address}.{site}")
                continue
            count = model.tap(f"{block.address}.{site}").heads if kind == "head" else 1
            for index in range(count):
                address = f"{block.address}.head.{index}" if kind == "head" else f"{block.address}.mlp_out"
                variants.append(Variant([Replace(address, charged[address][0, -1], position=-1)]))
                labels.append(f"L{block.address}H{index}" if kind == "head" else f"MLP{block.address}")
                kinds.append(kind)
                places.append((block.address, index))
    if not variants:
        raise ValueError(f"{model.name} has neither an MLP output nor heads that could be put into another text")
    result = sweep(neutral, variants, [log_probability(target) for target in wanted])
    values = np.stack([result.values[name][:, 0].numpy() for name in result.values], axis=1)
    clean = np.array([float(result.clean[name][0]) for name in result.clean])
    return xr.Dataset(
        {
            "push": (("component", "target"), values - clean, {"units": "nats: change of the target's log-probability"}),
            "clean": ("target", clean, {"units": "nats: log-probability on the baseline itself"}),
            "on_question": ("target", _on_question(charged, wanted), {"units": "nats: log-probability on the question"}),
        },
        coords={
            "component": labels,
            "kind": ("component", kinds),
            "component_block": ("component", [block for block, _ in places]),
            "head": ("component", [index if kind == "head" else -1 for kind, (_, index) in zip(kinds, places, strict=True)]),
            "target": wanted,
        },
        attrs={**sweep_attributes(result), "question": question, "baseline": baseline, "without": ", ".join(lacking)},
    )


def _on_question(charged: Recording, targets: list[str]) -> np.ndarray:
    found = sweep(charged, [], [log_probability(target) for target in targets])
    return np.array([float(found.clean[name][0]) for name in found.clean])

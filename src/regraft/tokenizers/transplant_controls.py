"""What rows that know nothing of their tokens would have cost, beside what the method's cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from regraft.core.quantities import quantity
from regraft.model.model import Model
from regraft.tokenizers.control_rows import CONTROLS
from regraft.tokenizers.init_methods import InitSettings, TransplantCase
from regraft.tokenizers.transplantation import distances_after, scores_after, transplant, writes_text

SOURCE = "Initializing New Word Embeddings for Pretrained Language Models (Hewitt, 2021)"
HOW = (
    "The same transplant with rows drawn at random for the new tokens, never healed: random ones as before"
    " any training, gaussian ones as the old rows are distributed. What the method is better by is what it"
    " knows."
)


def control_quantities(
    model: Model,
    case: TransplantCase,
    settings: InitSettings,
    domains: Mapping[str, Sequence[str]],
    multiple: int,
    seed: int,
) -> dict[str, Any]:
    """Bits per byte, or how far embeddings move, with control rows; nothing where no row is new, or rows are
    drawn anyway."""
    if not len(case.matching.missing) or settings.method in CONTROLS:
        return {}
    found = []
    for kind in CONTROLS:
        done = transplant(model, case, replace(settings, method=kind), multiple, seed)
        if writes_text(model):
            found.append([score.bits_per_byte for score in scores_after(done, domains)])
        else:
            found.append(distances_after(done, domains))
    name, units = (
        ("bits_per_byte_control", "bits per byte of text")
        if writes_text(model)
        else ("distance_control", "1 - cosine between a text's embeddings, mean over texts")
    )
    return {name: quantity(("control", "domain"), found, units, HOW, SOURCE)}

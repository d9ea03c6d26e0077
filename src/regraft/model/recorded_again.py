"""The same prompts recorded by another copy of a model: on another card, or on another machine."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regraft.model.block_call import capture, without_cache
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.model.regions import Regions


@dataclass(frozen=True, eq=False)
class Given:
    """What a recording was made of: tensors on the CPU and what counts of them."""

    inputs: dict[str, Tensor]
    ids_BT: Tensor
    mask_BT: Tensor
    scored_BT: Tensor
    scored_is_given: bool
    notes: tuple[str, ...]
    regions: Regions | None

    @classmethod
    def of(cls, recording: Recording) -> Given:
        """What a recording was made of."""
        return cls(
            {name: tensor.cpu() for name, tensor in recording.inputs.items()},
            recording.ids_BT.cpu(),
            recording.mask_BT.cpu(),
            recording.scored_BT.cpu(),
            recording.scored_is_given,
            tuple(recording.notes),
            recording.regions,
        )


def recorded_again(model: Model, given: Given) -> Recording:
    """One clean run of what another recording was made of."""
    device = model.device
    inputs = {name: tensor.to(device) for name, tensor in given.inputs.items()}
    with model.held():
        taken = capture(model.hf, model.parts, {**inputs, **without_cache(model.hf)})
        return Recording(
            model,
            inputs,
            given.ids_BT.to(device),
            given.mask_BT.to(device),
            given.scored_BT.to(device),
            taken,
            given.scored_is_given,
            model.state(),
            model.fingerprint(),
            list(given.notes),
            given.regions,
        )

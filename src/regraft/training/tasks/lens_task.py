"""Training a tuned lens: at every depth it is to say what the model says at the end.

Shapes: B sequences, T tokens, R positions that are read, L blocks, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regraft.model.block_call import run_head
from regraft.model.model import Model
from regraft.modules.placement import trunk_blocks
from regraft.modules.tuned_lens import TunedLens
from regraft.training.tasks.head_task import distance


class LensTask:
    """A tuned lens beside a frozen model.

    Loss in nats: the divergence of what the lens says at a depth from what the model says at the end, mean
    over positions and depths. Of a batch `positions` are read at random places: the head over the whole
    vocabulary, once for each depth, is nearly all the work. The places follow from the batch, so that a run
    that is taken up again reads what it would have read. Measured beside it, the same for the plain lens.
    """

    def __init__(self, model: Model, graft: TunedLens, positions: int = 128, seed: int = 0):
        if not model.causal or model.parts.head is None or model.two_stacks:
            raise ValueError(
                f"{model.name} does not write text with one stack, so there is no lens to tune: a depth of it"
                " is read through the head of a decoder"
            )
        self.model, self.root, self.lens = model, model.hf, graft
        self.graft: nn.Module = graft
        self.positions = positions
        self.seed = seed

    def blocks(self) -> list[nn.Module]:
        """Blocks of the trunk."""
        return trunk_blocks(self.model)

    def losses(self, ids_BT: Tensor) -> Mapping[str, Tensor]:
        """Parts of the loss on a batch."""
        recording = self.model.record(ids_BT, attention_mask="all")
        blocks = self.model.main_blocks
        streams = [recording.pre(b.index) for b in blocks] + [recording.post(blocks[-1].index)]
        count = ids_BT.numel()
        places = torch.Generator().manual_seed(self.seed + int(ids_BT.sum()))
        chosen = torch.randperm(count, generator=places)[: self.positions].to(ids_BT.device)
        flat = [stream.flatten(0, 1)[chosen] for stream in streams]
        calls = recording.taken.calls

        def says(stream_RD: Tensor, graph: bool) -> Tensor:
            logits = run_head(self.model.hf, self.model.parts, calls, stream_RD[:, None], graph).logits
            return logits[:, 0].float().log_softmax(-1)

        with self.model.held():
            end_RV = says(flat[-1], False)
            tuned = [distance(says(self.lens(d, flat[d]), True), end_RV) for d in range(len(blocks))]
            with torch.no_grad():
                plain = [distance(says(flat[d], False), end_RV) for d in range(len(blocks))]
        return {"kl": torch.stack(tuned).mean(), "_plain": torch.stack(plain).mean()}

"""nnsight, as its documentation has it: the cells of one block are invokes of one trace, one forward on their
batch.

The guide on activation patching says of the layer by position map: "cache the clean run once and batch a
whole layer's positions into one forward pass"; heads are zeroed at `c_proj.input`, blocks are left out with
`skip`.
"""

from __future__ import annotations

import nnsight
import torch
from nnsight.modeling.transformers import TransformersModel
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.peers.cases import Task
from benchmarks.peers.worker import Outcome, Peer, difference, open_hf, serve, timed


class NNsight(Peer):
    packages = ("nnsight",)
    refused = {"swap": "has no way to reorder blocks"}

    def load(self, folders: dict[str, str]) -> None:
        """Wrap the GPT-2 shape; a tokenizer must be there, though only token ids are passed."""
        words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="a"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
        self.model = TransformersModel(open_hf(folders["gpt2"]), tokenizer=tokenizer, task="text-generation")

    def grid(self, task: Task) -> Outcome:
        """One trace for the clean run, one for each block with an invoke for each position."""
        clean, corrupted = torch.tensor([task.clean]), torch.tensor([task.corrupted])
        resid, fixed = timed(lambda: self._clean_resid(clean))
        rows, seconds = timed(
            lambda: {str(b): self._positions(b, corrupted, resid[b], task) for b in task.blocks}
        )
        return Outcome(rows, fixed + task.scale * seconds)

    def _clean_resid(self, clean: Tensor) -> list[Tensor]:
        model = self.model
        with model.trace(clean):
            resid = nnsight.save([block.input.detach() for block in model.transformer.h])
        return resid

    def _positions(self, block: int, corrupted: Tensor, resid_BTD: Tensor, task: Task) -> list[float]:
        model = self.model
        with model.trace() as tracer:
            row = nnsight.save([])
            for position in range(corrupted.shape[1]):
                with tracer.invoke(corrupted):
                    model.transformer.h[block].input[:, position, :] = resid_BTD[:, position, :]
                    row.append(difference(model.output.logits[0, -1], task))
        return [float(value) for value in row]

    def heads(self, task: Task) -> Outcome:
        """One trace for each block with an invoke for each head."""
        corrupted = torch.tensor([task.corrupted])
        rows, seconds = timed(lambda: {str(b): self._heads_of(b, corrupted, task) for b in task.blocks})
        return Outcome(rows, task.scale * seconds)

    def _heads_of(self, block: int, corrupted: Tensor, task: Task) -> list[float]:
        model, width = self.model, task.shape["head_width"]
        with model.trace() as tracer:
            row = nnsight.save([])
            for head in range(task.shape["heads"]):
                with tracer.invoke(corrupted):
                    model.transformer.h[block].attn.c_proj.input[:, :, head * width : (head + 1) * width] = 0
                    row.append(difference(model.output.logits[0, -1], task))
        return [float(value) for value in row]

    def knockout(self, task: Task) -> Outcome:
        """One trace for each block, which is skipped."""
        corrupted = torch.tensor([task.corrupted])
        rows, seconds = timed(lambda: {str(b): [self._without(b, corrupted, task)] for b in task.blocks})
        return Outcome(rows, task.scale * seconds)

    def _without(self, block: int, corrupted: Tensor, task: Task) -> float:
        model = self.model
        with model.trace(corrupted):
            model.transformer.h[block].skip(model.transformer.h[block].input)
            value = nnsight.save(difference(model.output.logits[0, -1], task))
        return float(value)

    def record(self, task: Task) -> Outcome:
        """One trace that saves the stream that enters each block."""
        ids = torch.tensor([task.corrupted])
        times = [timed(lambda: self._clean_resid(ids))[1] for _ in range(5)]
        return Outcome({}, sorted(times)[2])


if __name__ == "__main__":
    serve(NNsight())

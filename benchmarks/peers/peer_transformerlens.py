"""TransformerLens: its own patching helper on a bridge over the same Hugging Face weights, unfolded."""

from __future__ import annotations

from collections.abc import Callable

import pandas
import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.patching import generic_activation_patch, get_act_patch_resid_pre

from benchmarks.peers.cases import Task
from benchmarks.peers.worker import Outcome, Peer, difference, open_hf, serve, timed


class TransformerLens(Peer):
    packages = ("transformer-lens",)
    refused = {"swap": "has no way to reorder blocks"}

    def load(self, folders: dict[str, str]) -> None:
        """Bridge the GPT-2 shape, the only one whose cases TransformerLens can run."""
        folder = folders["gpt2"]
        self.model = TransformerBridge.boot_transformers(
            folder, hf_model=open_hf(folder), device="cpu"
        ).eval()

    def grid(self, task: Task) -> Outcome:
        """`get_act_patch_resid_pre` with the cache of the clean run."""
        clean, corrupted = torch.tensor([task.clean]), torch.tensor([task.corrupted])
        index = pandas.DataFrame(
            [(block, position) for block in task.blocks for position in range(len(task.clean))],
            columns=["layer", "pos"],
        )
        (_, cache), fixed = timed(lambda: self.model.run_with_cache(clean))
        values, seconds = timed(
            lambda: get_act_patch_resid_pre(
                self.model, corrupted, cache, last(task), index_axis_names=None, index_df=index
            )
        )
        return Outcome(in_rows(values, task), fixed + task.scale * seconds)

    def heads(self, task: Task) -> Outcome:
        """`generic_activation_patch` at `z`, with a setter that zeroes one head at every position."""
        corrupted = torch.tensor([task.corrupted])
        index = pandas.DataFrame(
            [(block, head) for block in task.blocks for head in range(task.shape["heads"])],
            columns=["layer", "head"],
        )
        nothing = ActivationCache(
            {f"blocks.{b}.attn.hook_z": torch.empty(0) for b in task.blocks}, self.model
        )
        values, seconds = timed(
            lambda: generic_activation_patch(
                self.model, corrupted, nothing, last(task), zero_head, activation_name="z", index_df=index
            )
        )
        return Outcome(in_rows(values, task), task.scale * seconds)

    def knockout(self, task: Task) -> Outcome:
        """Put the stream that entered a block in place of the one that leaves it."""
        corrupted = torch.tensor([task.corrupted])

        def cells() -> dict[str, list[float]]:
            rows = {}
            for block in task.blocks:
                hooks = around(f"blocks.{block}")
                rows[str(block)] = [float(last(task)(self.model.run_with_hooks(corrupted, fwd_hooks=hooks)))]
            return rows

        values, seconds = timed(cells)
        return Outcome(values, task.scale * seconds)

    def record(self, task: Task) -> Outcome:
        """`run_with_cache` of the stream that enters each block."""
        ids = torch.tensor([task.corrupted])
        names = {f"blocks.{block}.hook_resid_pre" for block in task.blocks}
        times = [
            timed(lambda: self.model.run_with_cache(ids, names_filter=lambda n: n in names))[1]
            for _ in range(5)
        ]
        return Outcome({}, sorted(times)[2])


def last(task: Task) -> Callable[[Tensor], Tensor]:
    """The metric, read off the logits of all positions (B, T, V)."""
    return lambda logits_BTV: difference(logits_BTV[0, -1], task)


def zero_head(z_BTHW: Tensor, index: list[int], cache: ActivationCache) -> Tensor:
    """A patch setter: one head's `z` becomes 0 at every position."""
    z_BTHW[:, :, index[1]] = 0
    return z_BTHW


def around(block: str) -> list[tuple[str, Callable]]:
    """Two hooks that undo a block."""
    kept: list[Tensor] = []

    def keep(resid_BTD: Tensor, hook: object) -> None:
        kept.append(resid_BTD)

    def put_back(resid_BTD: Tensor, hook: object) -> Tensor:
        return kept.pop()

    return [(f"{block}.hook_resid_pre", keep), (f"{block}.hook_resid_post", put_back)]


def in_rows(values: Tensor, task: Task) -> dict[str, list[float]]:
    """Flat values as one list for each block."""
    return {
        str(block): row.tolist()
        for block, row in zip(task.blocks, values.view(len(task.blocks), -1), strict=True)
    }


if __name__ == "__main__":
    serve(TransformerLens())

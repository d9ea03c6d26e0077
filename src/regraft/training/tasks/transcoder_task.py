"""Training transcoder adapters: the target model teaches them what its tuning changed.

Target and adapted model are walked block by block in lockstep, so that no model's states are all held; the
runs that switch from one to the other at a cutoff go on from the states that the walk passes there. Shapes: B
sequences, T tokens, D width, F features, V vocabulary, L blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.data.records import COUNTED, PADDING
from regraft.model.block_call import BlockCall, call_block, passed_through, run_head
from regraft.model.model import Model
from regraft.modules.backbone import mlps_of
from regraft.modules.transcoder import Transcoders, beside
from regraft.training.distributed import anywhere


@dataclass(frozen=True)
class TranscoderLoss:
    """How much each part of the loss counts.

    Examples:
        >>> regraft.TranscoderLoss(l1=0.01).bridge  # weight of the mixed runs
        2.0
    """

    kl: float = 1.0
    """Weight of the divergence of the target's predictions from the adapted model's."""
    bridge: float = 2.0
    """Weight of the mean divergence of the two runs that switch models at a cutoff."""
    nmse: float = 1.0
    """Weight of the stream's squared error over the target's mean square, mean over depths."""
    l1: float = 0.001
    """Weight of the features' sizes, each times the length of its decoder column."""
    ramp: float = 0.0
    """Share of the steps over which the weight of the sizes rises from 0."""
    by_layer: bool = False
    """Divide each block's sizes by the root mean square length of the stream there."""
    dead: float = 0.0
    """Weight of how far below zero the encoder is for features that have been silent."""
    silent_for: int = 100
    """Batches, one of each process together, without a token above zero after which a feature is dead."""
    next_token: float = 0.0
    """Weight of the loss on the text itself, which asks for no target."""

    def __post_init__(self) -> None:
        """Make sure that nothing counts less than nothing.

        Raises:
            ValueError: a weight below 0, or a ramp longer than the run.
        """
        names = ("kl", "bridge", "nmse", "l1", "dead", "next_token", "silent_for")
        wrong = next((name for name in names if not getattr(self, name) >= 0), None)
        if wrong is not None:
            raise ValueError(f"{wrong} is {getattr(self, wrong)}: write 0 or more")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is {self.ramp}: it is a share of the steps, 0 to 1")


@dataclass(eq=False)
class _Walker:
    """A model whose blocks are called one by one, on any stream."""

    model: Model
    calls: list[BlockCall] = field(default_factory=list)
    times: int = 1
    count: int = 0

    def __post_init__(self) -> None:
        recording = self.model.record([[0, 1, 2, 3]], attention_mask="all")
        self.known = recording.taken.calls

    def begin(self, inputs: dict[str, Tensor], times: int = 1) -> Tensor:
        """Learn what the blocks are called with for some inputs, set `times` times one below the other;
        returns the stream that enters the first."""
        repeated = {name: torch.cat([tensor] * times) for name, tensor in inputs.items()}
        taken = passed_through(self.model.hf, self.model.parts, self.known, repeated)
        self.calls, self.times = taken.calls, times
        return taken.stream[0]

    def block(self, number: int, stream_BTD: Tensor) -> Tensor:
        """One block's output."""
        self.count += self.times
        module = self.model.main_blocks[number].module
        return call_block(module, self.calls[number], stream_BTD, lambda path, tensor: tensor)

    def scores(self, state_RD: Tensor) -> Tensor:
        """Scores (R, V) of states that leave the last block: each is a row of its own to the head, since a
        model may read fewer positions than there are states."""
        head = run_head(self.model.hf, self.model.parts, self.calls, state_RD[:, None], graph=True)
        return head.logits[:, 0].float()


class TranscoderTask:
    """Adapters beside a model's MLPs, taught by another model of its build.

    A batch is ids (B, T), all of which count, or (B, 2, T) with what each token is (`PADDING`, `PROMPT`,
    `COUNTED`) beside. `cutoff` fixes where the mixed runs switch, for tests; by default each batch draws one
    of 0 to L evenly. `calls` counts the blocks that a batch went through; one that two runs go
    through together counts twice.

    Raises:
        ValueError: a cutoff outside 0 to L.
    """

    def __init__(
        self,
        carrier: Model,
        target: Model,
        graft: Transcoders,
        weights: TranscoderLoss | None = None,
        batches: int = 0,
        cutoff: int | None = None,
    ):
        self.weights, self.transcoders, self.steps = weights or TranscoderLoss(), graft, batches
        self.graft: nn.Module = graft
        self.root: nn.Module = nn.ModuleList([carrier.hf, target.hf])
        self.carrier, self.mlps = carrier, mlps_of(carrier)
        self.adapted, self.target = _Walker(carrier), _Walker(target)
        self.depth, self.same_ends = len(carrier.main_blocks), same_ends(carrier, target)
        if cutoff is not None and not 0 <= cutoff <= self.depth:
            raise ValueError(f"the cutoff {cutoff} is outside 0 to {self.depth}, the number of blocks")
        self.cutoff = cutoff

    @property
    def calls(self) -> int:
        """Blocks that batches went through since the task was made."""
        return self.adapted.count + self.target.count

    def blocks(self) -> list[nn.Module]:
        """Blocks of both trunks."""
        return [block.module for w in (self.adapted, self.target) for block in w.model.main_blocks]

    def losses(self, batch: Tensor) -> Mapping[str, Tensor]:
        """Parts of the loss on a batch, and what is measured beside: the active features of a token (mean
        over blocks), and the share of tokens whose most probable next one is the target's."""
        ids_BT, kind_BT = split_batch(_trimmed(batch))
        real_BT, inputs = kind_BT > PADDING, inputs_of(ids_BT, kind_BT)
        cutoff = int(torch.randint(self.depth + 1, ())) if self.cutoff is None else self.cutoff
        with beside(self.carrier.hf, self.mlps, self.transcoders):
            with self.transcoders.hearing() as heard:
                walk = self._walk(inputs, real_BT, cutoff)
            parts = self._predictions(walk, ids_BT, kind_BT)
        parts["nmse"] = self.weights.nmse * walk["nmse"]
        parts |= self._sparsity([own[0] for own in heard], walk, real_BT)
        self.transcoders.batches += 1
        return parts

    def _walk(self, inputs: dict[str, Tensor], real_BT: Tensor, cutoff: int) -> dict[str, Tensor]:
        """Both models, block by block, and from the cutoff on the runs that switch there: the streams at the
        end, the error over all depths, and the mean square of the stream in front of every block.

        What enters the adapted model's blocks behind the cutoff, its own run and the one that comes from the
        target, goes through them together.
        """
        wanted, found = self.target.begin(inputs), self.adapted.begin(inputs)
        rows, bridged = len(found), self._bridges(cutoff)
        errors, sizes, switched = [pooled_error(found, wanted, real_BT)], [], found
        for number in range(self.depth):
            if number == cutoff and bridged:
                self.adapted.begin(inputs, times=2)
                found, switched = torch.cat([found, wanted]), found
            sizes.append(_mean(found[:rows].detach().float().pow(2).sum(-1), real_BT))
            if number >= cutoff and bridged:
                switched = self.target.block(number, switched)
            with torch.no_grad():
                wanted = self.target.block(number, wanted)
            found = self.adapted.block(number, found)
            errors.append(pooled_error(found[:rows], wanted, real_BT))
        if cutoff == self.depth and bridged:
            found, switched = torch.cat([found, wanted]), found
        return {
            "wanted": wanted, "found": found, "switched": switched, "nmse": torch.stack(errors).mean(),
            "sizes": torch.stack(sizes),
        }  # fmt: skip

    def _bridges(self, cutoff: int) -> bool:
        """Whether there are mixed runs of their own: where embedding and head are the same, a run that
        switches in front of the first block or behind the last is one model's own from end to end."""
        return bool(self.weights.bridge) and not (self.same_ends and cutoff in (0, self.depth))

    def _predictions(self, walk: Mapping[str, Tensor], ids_BT: Tensor, kind_BT: Tensor) -> dict[str, Tensor]:
        """What is asked of the predictions of the adapted run and of the two mixed ones."""
        weights, counted_BT = self.weights, predicts_counted(kind_BT)
        with torch.no_grad():
            wanted_RV = self.target.scores(walk["wanted"][counted_BT]).log_softmax(-1)
        runs = walk["found"].split(len(ids_BT))
        scores_RV = self.adapted.scores(torch.cat([run[counted_BT] for run in runs]))
        found_RV, *mixed = scores_RV.split(len(wanted_RV))
        parts = {"kl": weights.kl * divergence(wanted_RV, found_RV)}
        if weights.bridge and not mixed:
            parts["bridge"] = weights.bridge * divergence(wanted_RV, found_RV) / 2
        elif weights.bridge:
            (to_adapted,), to_target = mixed, self.target.scores(walk["switched"][counted_BT])
            both = divergence(wanted_RV, to_target) + divergence(wanted_RV, to_adapted)
            parts["bridge"] = weights.bridge * both / 2
        if weights.next_token:
            next_R = ids_BT.roll(-1, 1)[counted_BT]
            parts["next_token"] = weights.next_token * nn.functional.cross_entropy(found_RV, next_R)
        parts["_agreement"] = (found_RV.argmax(-1) == wanted_RV.argmax(-1)).float().mean()
        return parts

    def _sparsity(
        self, heard: list[tuple[Tensor, Tensor]], walk: Mapping[str, Tensor], real_BT: Tensor
    ) -> dict[str, Tensor]:
        """The features' sizes, how far silent ones are below zero, and how many are active."""
        weights, sums, active, fired, below = self.weights, [], [], [], []
        for adapter, (before_BTF, found_BTF), size in zip(
            self.transcoders, heard, walk["sizes"], strict=True
        ):
            before_BTF, found_BTF = before_BTF[: len(real_BT)], found_BTF[: len(real_BT)]
            # a product with the columns' lengths, so that no second tensor of all features is made; in single
            # precision, whatever the rest of the step is in
            with torch.autocast(found_BTF.device.type, enabled=False):
                size_BT = found_BTF.float() @ adapter.dec.weight.float().norm(dim=0)
            mean = _mean(size_BT, real_BT)
            sums.append(mean / size.sqrt() if weights.by_layer else mean)
            above_BTF = (found_BTF.detach() > 0) & real_BT[..., None]
            active.append(above_BTF.sum() / real_BT.sum())
            fired.append(above_BTF.flatten(0, 1).any(0))
            if weights.dead:
                below.append(torch.relu(-before_BTF[real_BT].float()).mean(0))
        silent_LF = self.transcoders.silent_LF
        silent_LF.copy_(torch.where(anywhere(torch.stack(fired)), 0, silent_LF + 1))
        dead_LF = silent_LF >= weights.silent_for
        parts = {"l1": weights.l1 * self._risen() * torch.stack(sums).sum()}
        if weights.dead:
            parts["dead"] = weights.dead * (torch.stack(below) * dead_LF).sum() / max(1, int(dead_LF.sum()))
        return {**parts, "_active": torch.stack(active).mean(), "_dead": dead_LF.float().mean()}

    def _risen(self) -> float:
        """Share of the weight of the sizes that is reached."""
        rising = self.weights.ramp * self.steps
        return min(1.0, float(self.transcoders.batches) / rising) if rising else 1.0


def same_ends(first: Model, second: Model) -> bool:
    """Whether two models of one build are the same, to the bit, in all that is outside their blocks."""

    def outside(model: Model) -> dict[str, Tensor]:
        inside = {
            id(t) for block in model.main_blocks for t in block.module.state_dict(keep_vars=True).values()
        }
        return {name: t for name, t in model.hf.state_dict(keep_vars=True).items() if id(t) not in inside}

    ours, theirs = outside(first), outside(second)
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in ours.items())


def _trimmed(batch: Tensor) -> Tensor:
    """A batch without the columns at its end in which no row has a token."""
    if batch.dim() == 2:
        return batch
    filled = (batch[:, 1] > PADDING).any(0).nonzero()
    return batch[..., : int(filled[-1]) + 1] if len(filled) else batch


def split_batch(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and what each token is (B, T)."""
    if batch.dim() == 3:
        return batch[:, 0], batch[:, 1]
    return batch, torch.full_like(batch, COUNTED)


def inputs_of(ids_BT: Tensor, kind_BT: Tensor) -> dict[str, Tensor]:
    """Arguments of a forward pass; a mask where something is padding."""
    mask_BT = kind_BT > PADDING
    whole = bool(mask_BT.all())
    return {"input_ids": ids_BT} if whole else {"input_ids": ids_BT, "attention_mask": mask_BT.long()}


def predicts_counted(kind_BT: Tensor) -> Tensor:
    """True at positions (B, T) whose next token counts."""
    found_BT = torch.zeros_like(kind_BT, dtype=torch.bool)
    found_BT[:, :-1] = (kind_BT[:, 1:] == COUNTED) & (kind_BT[:, :-1] > PADDING)
    return found_BT


def pooled_error(found_BTD: Tensor, wanted_BTD: Tensor, real_BT: Tensor) -> Tensor:
    """Mean square error over the mean square of what is wanted, over all real tokens together."""
    wanted_BTD = wanted_BTD.detach().float()
    error_BT = (found_BTD.float() - wanted_BTD).pow(2).sum(-1)
    return _mean(error_BT, real_BT) / (_mean(wanted_BTD.pow(2).sum(-1), real_BT) + 1e-8)


def _mean(values_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Mean over the real tokens: sums first, so that no tensor of theirs alone is made of all tokens'."""
    return values_BT.where(real_BT, 0.0).sum() / real_BT.sum()


def divergence(wanted_RV: Tensor, scores_RV: Tensor) -> Tensor:
    """KL of the distributions that scores tell from wanted log-probabilities, nats, mean over the rows."""
    return _Divergence.apply(scores_RV, wanted_RV).mean()  # type: ignore[no-any-return]


class _Divergence(torch.autograd.Function):
    """KL row by row, (R,). The gradient of the scores is what they tell less what is wanted; written so,
    since taken through logarithms it costs several passes more over what is the largest tensor of a step."""

    @staticmethod
    def forward(ctx: Any, scores_RV: Tensor, wanted_RV: Tensor) -> Tensor:
        found_RV, share_RV = scores_RV.log_softmax(-1), wanted_RV.exp()
        ctx.save_for_backward(found_RV, share_RV)
        return (wanted_RV - found_RV).mul_(share_RV).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        found_RV, share_RV = ctx.saved_tensors
        return found_RV.exp().sub_(share_RV).mul_(grads[0][:, None]), None

"""Pairs of small models, and the losses of adapters by whole forward passes, for the tests of transcoders."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import torch

from families import FAMILIES
from regraft import load
from regraft.core.structure import main_tensor, with_main_tensor
from regraft.data.records import COUNTED, PADDING
from regraft.modules.backbone import mlps_of
from regraft.modules.transcoder import Transcoders, TranscoderShape, beside


def pair(name, seed=1):
    """A base and a target of one shape, whose matrices differ a little everywhere."""
    torch.manual_seed(seed)
    base = FAMILIES[name]().eval()
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.05 * torch.randn_like(parameter) * parameter.std())
    return load(base, pack=False), load(target, pack=False)


def hybrid(base, target):
    """The target with the base's MLPs, opened anew."""
    made = load(copy.deepcopy(target.hf), pack=False)
    with torch.no_grad():
        for theirs, ours in zip(mlps_of(made), mlps_of(base), strict=True):
            theirs.load_state_dict(ours.state_dict())
    return load(made.hf, pack=False)


def trained(model, features=24, seed=3):
    """Adapters as training might leave them: decoders that are not zero."""
    torch.manual_seed(seed)
    graft = Transcoders(TranscoderShape(model.width, features, len(mlps_of(model))))
    with torch.no_grad():
        for adapter in graft:
            adapter.dec.weight.normal_(0, 0.05)
            adapter.dec.bias.normal_(0, 0.02)
    return graft


def forward(model, inputs, start=None, stream=None):
    """Log-probabilities and the stream at every depth of a whole forward pass; from block `start` on, the
    stream is another."""
    seen = []

    def put(module, args, kwargs):
        if args:
            return (stream, *args[1:]), kwargs
        return args, with_main_tensor(kwargs, stream)

    def before(module, args, kwargs):
        seen.append(main_tensor((args, kwargs)))

    with ExitStack() as hooks:
        for number, block in enumerate(model.main_blocks):
            if number == start:
                handle = block.module.register_forward_pre_hook(put, with_kwargs=True)
                hooks.callback(handle.remove)
            handle = block.module.register_forward_pre_hook(before, with_kwargs=True)
            hooks.callback(handle.remove)
        last = model.main_blocks[-1].module

        def after(module, args, outcome):
            if start == len(model.main_blocks):
                outcome = with_main_tensor(outcome, stream)
            seen.append(main_tensor(outcome))
            return outcome

        hooks.callback(last.register_forward_hook(after).remove)
        logits = model.hf(**inputs, use_cache=False).logits
    return logits.float().log_softmax(-1), seen


def losses(carrier, target, graft, ids_BT, kind_BT, cutoff):
    """Every unweighted part of the loss by whole forward passes, row by row and token by token."""
    inputs = {"input_ids": ids_BT, "attention_mask": (kind_BT > PADDING).long()}
    wanted, taught = forward(target, inputs)
    with beside(carrier.hf, mlps_of(carrier), graft), graft.hearing() as heard:
        found, learnt = forward(carrier, inputs)
        features = [own[0][1] for own in heard]
        to_adapted, _ = forward(carrier, inputs, cutoff, taught[cutoff])
    to_target, _ = forward(target, inputs, cutoff, learnt[cutoff])
    counted = [
        (row, place)
        for row in range(len(ids_BT)) for place in range(ids_BT.shape[1] - 1)
        if kind_BT[row, place] > PADDING and kind_BT[row, place + 1] == COUNTED
    ]  # fmt: skip
    real = [(r, p) for r in range(len(ids_BT)) for p in range(ids_BT.shape[1]) if kind_BT[r, p] > PADDING]

    def divergence(logp):
        each = [(wanted[r, p].exp() * (wanted[r, p] - logp[r, p])).sum() for r, p in counted]
        return torch.stack(each).mean()

    errors = []
    for theirs, ours in zip(taught, learnt, strict=True):
        error = sum(((ours[r, p] - theirs[r, p]) ** 2).sum() for r, p in real)
        errors.append(error / sum((theirs[r, p] ** 2).sum() for r, p in real))
    sizes = []
    for adapter, found_BTF in zip(graft, features, strict=True):
        columns = adapter.dec.weight.norm(dim=0)
        sizes.append(torch.stack([(found_BTF[r, p] * columns).sum() for r, p in real]).mean())
    active = [torch.stack([(f[r, p] > 0).float().sum() for r, p in real]).mean() for f in features]
    return {
        "kl": divergence(found),
        "bridge": (divergence(to_target) + divergence(to_adapted)) / 2,
        "nmse": torch.stack(errors).mean(),
        "l1": torch.stack(sizes).sum(),
        "next_token": -torch.stack([found[r, p, ids_BT[r, p + 1]] for r, p in counted]).mean(),
        "_active": torch.stack(active).mean(),
    }

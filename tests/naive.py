"""The naive reference: a hook and a full forward for every variant. Nothing here uses the engine.

Blocks, projections and sublayers are found with `get_submodule` and the addresses that the parts report;
routes are run by putting other blocks into the model's own list, where each keeps the arguments that the
model passes to it in its own place.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from regraft.core.structure import main_tensor, with_main_tensor
from regraft.model.block_call import without_cache
from regraft.sweeps.variants import Add, Noise, Replace, Scale, Zero


def changed(edit, x: torch.Tensor, lengths: list[int], features) -> torch.Tensor:
    """The activation (B, T, W) with one edit applied, prompt by prompt and position by position."""
    x = x.clone()
    columns = list(range(x.shape[-1])) if features is None else features.tolist()
    for b in range(x.shape[0]):
        wanted = edit.position
        wanted = (
            list(range(x.shape[1]))
            if wanted is None
            else [wanted]
            if isinstance(wanted, int)
            else list(wanted)
        )
        for k, p in enumerate(wanted):
            t = p + lengths[b] if p < 0 else p
            old = x[b, t, columns]
            if isinstance(edit, Zero):
                new = torch.zeros_like(old)
            elif isinstance(edit, Scale):
                new = old * edit.factor
            elif isinstance(edit, (Replace, Add)):
                value = edit.value.flatten(2) if edit.value.dim() == 4 else edit.value
                value = value[b if len(value) > 1 else 0, t] if value.dim() == 3 else value
                value = value[k if len(value) > 1 else 0] if value.dim() == 2 else value
                new = value if isinstance(edit, Replace) else old + value
            else:
                raise NotImplementedError(type(edit))
            x[b, t, columns] = new
    return x


def hooked(stack: ExitStack, module: nn.Module, side: str, change) -> None:
    """Register a hook that passes the module's input or output through `change`."""

    def shaped(x):
        return change(x)

    if side == "input":

        def before(m, args, kwargs):
            if args:
                return (shaped(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": shaped(kwargs["hidden_states"])}

        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(
            lambda m, a, out: with_main_tensor(out, shaped(main_tensor(out)))
        )
    stack.callback(handle.remove)


@contextmanager
def routed(model, route):
    """Put the route's blocks into the model's list; every block is called with its own place's arguments."""
    if route is None:
        yield
        return
    clean = {}
    handles = []
    for block in model.blocks:

        def note(m, args, kwargs, index=block.index):
            clean[index] = (args, kwargs)

        handles.append(block.module.register_forward_pre_hook(note, with_kwargs=True))
    yield_inputs = model.naive_inputs
    with torch.no_grad():
        model.hf(**yield_inputs)
    for handle in handles:
        handle.remove()

    class Own(nn.Module):
        def __init__(self, index, module):
            super().__init__()
            self.__dict__["index"], self.__dict__["block"] = index, module or model.blocks[index].module

        def __getattr__(self, name):
            return getattr(model.blocks[self.__dict__["index"]].module, name)

        def forward(self, *args, **kwargs):
            given = next(t for t in [*args, *kwargs.values()] if isinstance(t, torch.Tensor) and t.dim() == 3)
            own_args, own_kwargs = clean[self.index]
            memory = model.naive_memory(args, kwargs, own_args, own_kwargs)
            if own_args:
                own_args = (given, *own_args[1:])
            else:
                own_kwargs = {**own_kwargs, "hidden_states": given}
            own_args, own_kwargs = memory(own_args, own_kwargs)
            return self.block(*own_args, **own_kwargs)

    with ExitStack() as stack:
        for part in model.parts.stacks:
            original = getattr(part.owner, part.attribute)
            stops = [s for s in route.stops if part.first <= s.block < part.stop]
            setattr(part.owner, part.attribute, nn.ModuleList([Own(s.block, s.module) for s in stops]))
            stack.callback(setattr, part.owner, part.attribute, original)
        config = model.hf.config
        if len(model.parts.stacks) == 1 and hasattr(config, "num_hidden_layers"):
            stack.callback(setattr, config, "num_hidden_layers", config.num_hidden_layers)
            config.num_hidden_layers = len(route.stops)
            kinds = vars(config).get("layer_types")
            if kinds:
                stack.callback(setattr, config, "layer_types", kinds)
                config.layer_types = [kinds[s.block] for s in route.stops]
        yield


def logits(model, recording, variant) -> torch.Tensor:
    """Logits (B, T, V) of one variant by one full forward with hooks."""
    lengths = recording.lengths_B.tolist()
    inputs = {**recording.inputs, **without_cache(model.hf)}
    model.naive_inputs = inputs
    model.naive_memory = _memory_from(recording)
    with ExitStack() as stack:
        stack.enter_context(routed(model, variant.route))
        for edit in variant.edits:
            _hook_edit(stack, model, recording, edit, lengths)
        with torch.no_grad():
            result = model.hf(**inputs)
            return result.last_hidden_state if model.parts.head is None else result.logits


def _memory_from(recording):
    """Keep the encoder output of this run (not of the clean one) in the arguments of a decoder's block."""
    if not recording.model.two_stacks:
        return lambda args, kwargs, own_args, own_kwargs: lambda a, k: (a, k)

    def choose(args, kwargs, own_args, own_kwargs):
        def fill(a, k):
            live = [*args[1:], *kwargs.values()]
            positions = [
                i
                for i, t in enumerate(a)
                if i and isinstance(t, torch.Tensor) and t.dim() == 3 and t.is_floating_point()
            ]
            names = [
                n
                for n, t in k.items()
                if isinstance(t, torch.Tensor) and t.dim() == 3 and n != "hidden_states"
            ]
            now = [t for t in live if isinstance(t, torch.Tensor) and t.dim() == 3 and t.is_floating_point()]
            a = list(a)
            for i in positions:
                a[i] = now[0]
            return tuple(a), {**k, **{n: now[0] for n in names}}

        return fill

    return choose


def _hook_edit(stack, model, recording, edit, lengths) -> None:
    site = model.site(edit.site)
    if site.name in ("final_norm", "embed", "logits"):
        module = {
            "final_norm": model.parts.final_norm,
            "embed": model.parts.embedding,
            "logits": model.parts.head,
        }[site.name]
        hooked(stack, module, "output", lambda x: changed(edit, x, lengths, None))
        return
    if model.two_stacks and site.block < model.parts.stacks[0].stop:
        mask = recording.inputs.get("attention_mask", torch.ones_like(recording.inputs["input_ids"]))
        lengths = mask.sum(1).tolist()
    block = model.blocks[site.block]
    if site.name == "resid_mid" and block.branches[-2].sum_norm is None:
        seen = {}
        keep = block.module.register_forward_pre_hook(
            lambda m, a, k: seen.__setitem__("pre", a[0] if a else k["hidden_states"]), with_kwargs=True
        )
        stack.callback(keep.remove)
        for branch in block.branches[:-2]:
            hooked(
                stack,
                branch.last,
                "output",
                lambda x, b=branch: seen.__setitem__("pre", seen["pre"] + b.factor * x) or x,
            )
        factor = block.branches[-2].factor

        def steer(out):
            middle = seen["pre"] + factor * out
            return (changed(edit, middle, lengths, None) - seen["pre"]) / factor

        hooked(stack, block.branches[-2].last, "output", steer)
        return
    tap = model.taps[site]
    tokens = recording.positions_of(site.block)

    def change(x):
        added = tap.factor * x.reshape(-1, tokens, x.shape[-1])
        return (changed(edit, added, lengths, tap.features) / tap.factor).reshape(x.shape)

    hooked(stack, tap.module, tap.side, change)


__all__ = ["Noise", "changed", "logits"]

"""Addresses of activations, and where each one is tapped.

An address is `BLOCK.NAME`, with the stack in front where there are two (`encoder.3.resid_post`), or one of
`embed`, `final_norm` and `logits`. Shapes: B prompts, T positions, D width of the stream, H heads, W width of
the tapped tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.checkpoint.roles import KEY_NAMES, PACKED_NAMES, QUERY_NAMES, VALUE_NAMES
from regraft.model.parts import (
    HEAD_COUNTS,
    MLP_MODULES,
    Block,
    Branch,
    Parts,
    acts_linear,
    in_width,
    out_width,
)

BLOCK_SITES = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "cross_out", "mixer_out", "mlp_out", "q", "k", "v",
    "z", "pattern",
    "mlp_in",
    "mlp_act",
)  # fmt: skip
NUMBERED = ("head", "neuron", "q", "k", "v", "sae")
"""Sites that may bear a number: a head's share of z, a neuron, a head's query, key or value, a feature."""
MODEL_SITES = ("embed", "final_norm", "logits")
DICTIONARY = "sae"
FEATURE = "feature"
"""Another word for a dictionary's features in addresses."""
"""The features of a dictionary that was attached to a block."""
_ADDRESS = re.compile(r"^(?:(encoder|decoder)\.)?(\d+)\.([a-z_]+)(?:\.(\d+))?$")


class SiteError(ValueError):
    """An address that does not exist in this model, with the reason."""


@dataclass(frozen=True)
class Site:
    """A parsed address: `block` counts over the whole model, `index` is the head's or the neuron's number."""

    address: str
    block: int | None
    name: str
    index: int | None = None


@dataclass(frozen=True, eq=False)
class Tap:
    """Where a site is read and written: input or output of a module, and which of its W features.

    `features` is None for all of them; `heads` is the number of heads that they divide into (0: not divided).
    `factor` is a constant by which the block multiplies the tensor on its way: what is read and written is
    the product.
    """

    module: nn.Module
    side: Literal["input", "output"]
    features: Tensor | None = None
    heads: int = 0
    factor: float = 1.0


def activation_width(tap: Tap, stream: int) -> int:
    """How many numbers an activation has at each position, in a model whose stream has so many."""
    if tap.features is not None:
        return len(tap.features)
    if not acts_linear(tap.module):
        return stream
    return (in_width if tap.side == "input" else out_width)(tap.module)


def addition(branch: Branch) -> Tap:
    """Where what a branch adds to the stream is read and written."""
    return Tap(branch.last, "output", factor=branch.factor)


def behind(branch: Branch) -> Tap:
    """Where the stream behind a branch is steered: the norm that returns it, else what the branch adds to
    it."""
    return addition(branch) if branch.sum_norm is None else Tap(branch.sum_norm, "output")


def outer_tap(parts: Parts, name: str) -> Tap:
    """Where a site outside the blocks is read and written: embedding, final norm or logits."""
    whole = {"embed": parts.embedding, "final_norm": parts.final_norm, "logits": parts.head}[name]
    assert whole is not None
    return Tap(whole, "output")


def parse_site(address: str, parts: Parts) -> Site:
    """Read an address such as `5.head.2`.

    Raises:
        SiteError: the words are no address, or the block does not exist.
    """
    if address in MODEL_SITES:
        return Site(address, None, address)
    match = _ADDRESS.match(address)
    if not match:
        raise SiteError(
            f"{address!r} is no site: write BLOCK.NAME, for example 5.resid_pre, 5.head.2 or 5.neuron.26"
        )
    stack_name, number, name, index = match.groups()
    if name == FEATURE:
        address, name = address.replace(f".{FEATURE}", f".{DICTIONARY}"), DICTIONARY
    stack = next((stack for stack in parts.stacks if stack.name == (stack_name or "")), None)
    if stack is None:
        known = " or ".join(repr(s.name) if s.name else "no stack name" for s in parts.stacks)
        raise SiteError(f"{address!r}: this model's sites begin with {known}")
    if int(number) >= len(stack.blocks):
        raise SiteError(
            f"{address!r}: there are {len(stack.blocks)} blocks here, 0 to {len(stack.blocks) - 1}"
        )
    if name in ("head", "neuron") and index is None:
        raise SiteError(f"{address!r} needs a number: for example {number}.{name}.0")
    if name not in (*BLOCK_SITES, "head", "neuron", DICTIONARY) or (
        index is not None and name not in NUMBERED
    ):
        raise SiteError(
            f"{address!r} is no site; a block has {', '.join(BLOCK_SITES)}, and of single heads and neurons"
            " head.N, q.N, k.N, v.N and neuron.N"
        )
    return Site(address, stack.first + int(number), name, None if index is None else int(index))


def head_count(branch: Branch, config: Any, z_width: int) -> int:
    """Number of attention heads, read from the attention module or the configuration; 0 where nothing
    tells."""
    module = branch.attention
    for name in HEAD_COUNTS:
        count = getattr(module, name, None)
        if isinstance(count, int) and count > 0 and z_width % count == 0:
            return count
    width = getattr(module, "head_dim", None)
    if isinstance(width, int) and width > 0 and z_width % width == 0:
        return z_width // width
    count = getattr(config, "num_attention_heads", 0)
    return count if isinstance(count, int) and count > 0 and z_width % count == 0 else 0


class Taps:
    """Every block's sites: a `Tap`, or the sentence that says why there is none."""

    def __init__(self, parts: Parts, config: Any, attention_kind: str):
        self.parts = parts
        self.table: list[dict[str, Tap | str]] = [
            _block_taps(block, config, attention_kind) for block in parts.blocks
        ]

    def __getitem__(self, site: Site) -> Tap:
        """The tap of a site inside a block.

        Raises:
            SiteError: with the reason why this block does not have the site.
        """
        assert site.block is not None
        table = self.table[site.block]
        if site.name == DICTIONARY:
            raise SiteError(f"{site.address} is no activation of the model's own: edit it, or read it")
        base = {"head": "z", "neuron": "mlp_act"}.get(site.name, site.name)
        tap = table[base]
        if isinstance(tap, str):
            raise SiteError(f"{site.address} does not exist here: {tap}")
        if site.index is None:
            return tap
        return self._part_of(site, tap)

    def _part_of(self, site: Site, tap: Tap) -> Tap:
        assert acts_linear(tap.module)
        assert site.index is not None
        if tap.features is not None:
            features = tap.features
        else:
            features = torch.arange((in_width if tap.side == "input" else out_width)(tap.module))
        width = len(features)
        count = width if site.name == "neuron" else tap.heads
        if count == 0:
            raise SiteError(
                f"{site.address} does not exist here: the number of heads is not told by this block"
            )
        if site.index >= count:
            noun = "neurons" if site.name == "neuron" else "heads"
            raise SiteError(
                f"{site.address} does not exist here: this block has {count} {noun}, 0 to {count - 1}"
            )
        size = width // count
        return Tap(tap.module, tap.side, features[site.index * size : (site.index + 1) * size])

    def refuse(self, block: int, name: str, reason: str) -> None:
        """Strike a site whose identity failed."""
        self.table[block][name] = reason

    def exists(self, block: int, name: str) -> bool:
        """Whether the block has the site."""
        return not isinstance(self.table[block][name], str)


def _block_taps(block: Block, config: Any, attention_kind: str) -> dict[str, Tap | str]:
    attn, cross, mixer, mlp = (block.branch(kind) for kind in ("attn", "cross", "mixer", "mlp"))
    nothing = block.reason or "this block has none"
    no_attention = block.reason or "this block has no attention"
    no_mlp = block.reason or "this block has no MLP whose output is added to the stream"
    table: dict[str, Tap | str] = dict.fromkeys(BLOCK_SITES, nothing)
    table["resid_pre"] = Tap(block.module, "input")
    table["resid_post"] = Tap(block.module, "output")
    table["attn_out"] = addition(attn) if attn else no_attention
    table["cross_out"] = addition(cross) if cross else "this block has no cross-attention"
    table["mixer_out"] = addition(mixer) if mixer else "this block has no recurrent mixer"
    table["mlp_out"] = addition(mlp) if mlp else no_mlp
    table["resid_mid"] = _mid_tap(block)
    table["mlp_in"] = _mlp_input(block, mlp) if mlp else no_mlp
    table["mlp_act"] = _projection_input(mlp, "mlp") if mlp else no_mlp
    for name in ("z", "q", "k", "v", "pattern"):
        table[name] = no_attention
    if attn:
        table["z"] = _projection_input(attn, "attention")
        if isinstance(table["z"], Tap):
            assert attn.projection is not None
            heads = head_count(attn, config, in_width(attn.projection))
            table["z"] = Tap(table["z"].module, "input", None, heads)
        table |= _query_key_value(attn, table["z"])
        table["pattern"] = _pattern_tap(attn, attention_kind)
    return table


def _projection_input(branch: Branch, noun: str) -> Tap | str:
    if branch.projection is None:
        return f"this {noun} has no single output projection (a mixture of experts has one for each expert)"
    return Tap(branch.projection, "input")


def _mlp_input(block: Block, mlp: Branch) -> Tap | str:
    """What the module around an MLP's maps is given: a norm of the stream, in most models."""
    inner = mlp.projection or mlp.module
    path = next(name for name, module in block.module.named_modules() if module is inner)
    names = path.split(".")
    for length in range(1, len(names) + 1):  # the outermost: an adapter may stand around an MLP in its place
        if names[length - 1] in MLP_MODULES:
            return Tap(block.module.get_submodule(".".join(names[:length])), "input")
    return "this block's MLP is no module of its own"


def _mid_tap(block: Block) -> Tap | str:
    """Behind the last addition before the MLP. Written by writing that branch's addition, unless the stream
    is normed."""
    if block.parallel:
        return "attention and MLP read the stream side by side, so there is no stream between them"
    if len(block.branches) < 2 or block.branches[-1].kind != "mlp":
        return block.reason or "there are not two branches one after the other in this block"
    return behind(block.branches[-2])


def _pattern_tap(attn: Branch, attention_kind: str) -> Tap | str:
    if attn.recurrent:
        return "linear attention forms no pattern"
    if attention_kind != "eager":
        return (
            f"{attention_kind} attention does not return its weights: load the model with attention='eager'"
        )
    return Tap(attn.attention, "output") if attn.attention is not None else "no attention module was found"


def _query_key_value(attn: Branch, z: Tap | str) -> dict[str, Tap | str]:
    if attn.recurrent:
        return dict.fromkeys("qkv", "linear attention mixes its projections before they meet")
    if isinstance(z, str) or attn.attention is None or not z.heads:
        return dict.fromkeys("qkv", "the number of heads is not told by this block")
    head_width = in_width(z.module) // z.heads
    linears = {name: m for name, m in attn.attention.named_modules() if acts_linear(m)}
    last = {name.rpartition(".")[2]: module for name, module in linears.items()}
    separate = {}
    for site, names in (("q", QUERY_NAMES), ("k", KEY_NAMES), ("v", VALUE_NAMES)):
        module = next((last[name] for name in names if name in last), None)
        if module is not None:
            separate[site] = module
    if len(separate) == 3:
        return {site: _separate_tap(site, module, z.heads, head_width) for site, module in separate.items()}
    packed = next((last[name] for name in PACKED_NAMES if name in last), None)
    if packed is None:
        return dict.fromkeys("qkv", "no query, key and value projections were found in this attention")
    return packed_taps(packed, z.heads, head_width, interleaved=False)


def _separate_tap(site: str, module: nn.Module, heads: int, head_width: int) -> Tap | str:
    width = out_width(module)
    if width % head_width or (site == "q" and width != heads * head_width):
        return (
            f"this projection is {width} wide, not a multiple of a head's {head_width} (it holds more than"
            f" {site})"
        )
    return Tap(module, "output", None, width // head_width)


def packed_taps(packed: nn.Module, heads: int, head_width: int, interleaved: bool) -> dict[str, Tap | str]:
    """The three roles of one packed projection: one after the other, or head by head (`interleaved`)."""
    width = out_width(packed)
    q_width = heads * head_width
    kv_width, odd = divmod(width - q_width, 2)
    if odd or kv_width <= 0 or kv_width % head_width:
        return dict.fromkeys(
            "qkv", f"a packed projection of width {width} does not divide into queries, keys, values"
        )
    features = torch.arange(width)
    if interleaved:
        if kv_width != q_width:
            return dict.fromkeys("qkv", "a packed projection of grouped heads has no layout that was proved")
        q, k, v = (part.reshape(-1) for part in features.view(heads, 3, head_width).unbind(1))
    else:
        q, k, v = features.split([q_width, kv_width, kv_width])
    counts = (heads, kv_width // head_width, kv_width // head_width)
    return {
        site: Tap(packed, "output", part, count)
        for site, part, count in zip("qkv", (q, k, v), counts, strict=True)
    }

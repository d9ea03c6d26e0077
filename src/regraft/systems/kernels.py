"""Kernels of softmax attention: the same numbers made in different ways, each beside eager in float64.

Shapes: B texts, H query heads, G key heads, q queries, s keys, K width of a head.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

PHASES = ("prefill", "decode", "backward")
"""T queries on T keys, each reading those before it; one query on T keys; the gradients of the first."""
BECAUSE = "because"
"""In the warning by which PyTorch says why a kernel was passed over."""
Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""Query (B, H, q, K), key and value (B, G, s, K), whether queries read only what stands before them; the
output (B, H, q, K)."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one call."""

    texts: int
    heads: int
    key_heads: int
    width: int
    keys: int


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention; `skips` where it leaves out what a causal mask hides."""

    name: str
    attend: Attend
    skips: bool = False
    package: str = ""
    gpu: bool = False

    def why_not(self, device: torch.device) -> str:
        """Why it cannot run here at all; empty where it can."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        return "needs a GPU" if self.gpu and device.type != "cuda" else ""


def eager(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Softmax attention written out."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if causal:
        scores = scores.masked_fill(~_before(scores), float("-inf"))
    return scores.softmax(-1) @ value


def _before(scores: Tensor) -> Tensor:
    return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()


def _sdpa(backend: SDPBackend | None) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        shared = query.shape[1] != key.shape[1]
        with sdpa_kernel(backend) if backend else nullcontext():
            return scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=shared)

    return attend


def _flex(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def hide(score: Tensor, b: Tensor, h: Tensor, q: Tensor, s: Tensor) -> Tensor:
        return torch.where(s <= q, score, float("-inf"))

    run = torch.compile(flex_attention) if query.device.type == "cuda" else flex_attention
    out = run(
        query, key, value, score_mod=hide if causal else None, enable_gqa=query.shape[1] != key.shape[1]
    )
    assert isinstance(out, Tensor)
    return out


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    found = importlib.import_module("flash_attn").flash_attn_func
    return found(*(one.transpose(1, 2) for one in (query, key, value)), causal=causal).transpose(1, 2)


def _sage(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    return importlib.import_module("sageattention").sageattn(query, key, value, is_causal=causal)


KERNELS = (
    Kernel("eager", eager),
    Kernel("dispatched", _sdpa(None), skips=True),
    Kernel("math", _sdpa(SDPBackend.MATH)),
    Kernel("flash", _sdpa(SDPBackend.FLASH_ATTENTION), skips=True),
    Kernel("memory-efficient", _sdpa(SDPBackend.EFFICIENT_ATTENTION), skips=True, gpu=True),
    Kernel("cudnn", _sdpa(SDPBackend.CUDNN_ATTENTION), skips=True, gpu=True),
    Kernel("flex", _flex),
    Kernel("flash-attn", _flash_attn, skips=True, package="flash_attn", gpu=True),
    Kernel("sage", _sage, skips=True, package="sageattention", gpu=True),
)
"""Every kernel that is looked for; PyTorch's own choice among its four is `dispatched`."""


def inputs(shape: AttentionShape, phase: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Query, key and value of a seed's own, alike for all kernels."""
    drawn = torch.Generator().manual_seed(shape.keys)
    queries = 1 if phase == "decode" else shape.keys
    sizes = [(shape.heads, queries), (shape.key_heads, shape.keys), (shape.key_heads, shape.keys)]
    made = [torch.randn(shape.texts, *size, shape.width, generator=drawn) for size in sizes]
    return tuple(one.to(device, dtype).requires_grad_(phase == "backward") for one in made)


def call_of(kernel: Kernel, given: tuple[Tensor, ...], phase: str) -> Callable[[], Tensor]:
    """One call of a kernel; backward runs forward as well, and returns the queries' gradient."""
    query, key, value = given
    if phase != "backward":
        return torch.no_grad()(lambda: kernel.attend(query, key, value, phase == "prefill"))

    def back() -> Tensor:
        out = kernel.attend(query, key, value, True)
        return torch.autograd.grad(out.sum(), given)[0]

    return back


def tried(kernel: Kernel, given: tuple[Tensor, ...], phase: str) -> tuple[Tensor | None, str]:
    """What a kernel makes of inputs, or why it does not take them."""
    if why := kernel.why_not(given[0].device):
        return None, why
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            return call_of(kernel, given, phase)(), ""
        except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
            told = [str(error), *(str(one.message) for one in said)]
    # PyTorch warns why its kernels do not take a shape, and then only says that none is left
    return None, next((one for one in told if BECAUSE in one), told[0]).strip().splitlines()[0]


def work(shape: AttentionShape, phase: str, skips: bool = False) -> int:
    """Floating-point operations of both products and, backward, of the four behind them. A kernel that leaves
    hidden pairs out does half, and makes its scores once more on the way back."""
    queries = 1 if phase == "decode" else shape.keys
    products = {"prefill": 2, "decode": 2, "backward": 7 if skips else 6}[phase]
    whole = 2 * products * shape.texts * shape.heads * queries * shape.keys * shape.width
    return whole // 2 if skips and phase != "decode" else whole


def read_bytes(shape: AttentionShape, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token more has to read."""
    return 2 * shape.texts * shape.key_heads * shape.keys * shape.width * dtype.itemsize


def chosen(given: tuple[Tensor, ...], phase: str) -> str:
    """Which of PyTorch's kernels its dispatcher takes."""
    query, key, value = given
    number = torch.ops.aten._fused_sdp_choice(
        query, key, value, is_causal=phase != "decode", enable_gqa=query.shape[1] != key.shape[1]
    )
    return SDPBackend(number).name.removesuffix("_ATTENTION").lower().replace("_", " ")

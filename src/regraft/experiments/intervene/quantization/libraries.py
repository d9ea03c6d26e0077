"""Ways of other libraries to quantize a whole model, each as copies of blocks that a route can run.

A library that is not installed, or that cannot work on a model, says why. Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.pytorch_utils import Conv1D

from regraft.core.silence import silent
from regraft.data.corpus import corpus
from regraft.experiments.intervene.quantization.rounding import MadeWhenRun, all_small, rounded_when_run
from regraft.model.cpu_pack import copied
from regraft.model.model import Model
from regraft.model.parts import Block, matrix_OI

BITS = 4
"""Bits that all libraries offer."""
INT4: torch.dtype = vars(torch)["int4"]
CALIBRATION_PASSAGES = 64
"""Passages that GPTQ is calibrated on."""
NF4_BLOCK = 64
"""Values that share a scale in the format of bitsandbytes."""

Copies = Callable[[Model, Sequence[Block], int], list[MadeWhenRun]]
"""From the blocks, what stands in their places, each made anew at each call."""


@dataclass(frozen=True)
class Method:
    """One way to quantize: its name, the package that it needs, its bits, what it puts in the blocks' places,
    and whether that runs from few bits, so that its memory and speed mean something."""

    name: str
    package: str
    bits: int
    copies: Copies
    packed: bool = False


def missing(package: str) -> str:
    """Why a package cannot be used, or nothing."""
    if not package or importlib.util.find_spec(package) is not None:
        return ""
    return f"{package.replace('_', '-')} is not installed"


def _rtn(bits: int) -> Copies:
    return lambda model, blocks, group: [
        rounded_when_run(model, block, bits, group=group) for block in blocks
    ]


def _torchao(bits: int) -> Copies:
    def copies(model: Model, blocks: Sequence[Block], group: int) -> list[MadeWhenRun]:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

        def small(linear: nn.Linear) -> nn.Module:
            per = PerGroup(whole_group(linear.in_features, group))
            holder = nn.Sequential(linear)
            quantize_(holder, Int8WeightOnlyConfig() if bits == 8 else IntxWeightOnlyConfig(INT4, per))
            # A method of its own bound to itself: with it a block that is let go stays until Python next
            # looks for such circles, and with all of them memory is that of many blocks.
            vars(holder[0]).pop("extra_repr", None)
            return holder[0]

        return packed_when_run(blocks, small)

    return copies


def _nf4(model: Model, blocks: Sequence[Block], group: int) -> list[MadeWhenRun]:
    """Four-bit NormalFloat, in blocks of 64 values whatever the group; layers that transformers keeps in
    floats stay so."""
    from bitsandbytes.nn.modules import LinearNF4, Params4bit

    def small(linear: nn.Linear) -> nn.Module:
        if linear.in_features % NF4_BLOCK:
            raise ValueError(
                f"it needs inputs in blocks of {NF4_BLOCK}, and a matrix has {linear.in_features}"
            )
        inputs, outputs, bias = linear.in_features, linear.out_features, linear.bias
        packed = LinearNF4(inputs, outputs, bias is not None, compute_dtype=model.dtype)
        packed.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")  # pyright: ignore[reportCallIssue]
        packed.bias = bias
        return packed.to(linear.weight.device)

    return packed_when_run(blocks, small, tuple(model.hf._keep_in_fp32_modules or ()))


def _bnb_int8(model: Model, blocks: Sequence[Block], group: int) -> list[MadeWhenRun]:
    """Eight bits with one scale for each output, large inputs apart (Dettmers et al., 2022), whatever the
    group."""
    from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

    def small(linear: nn.Linear) -> nn.Module:
        inputs, outputs, bias = linear.in_features, linear.out_features, linear.bias
        packed = Linear8bitLt(inputs, outputs, bias is not None, has_fp16_weights=False)
        weight = linear.weight.data.clone()
        packed.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False)  # pyright: ignore[reportCallIssue]
        packed.bias = bias
        return packed.to(linear.weight.device)

    return packed_when_run(blocks, small, tuple(model.hf._keep_in_fp32_modules or ()))


def _hqq(model: Model, blocks: Sequence[Block], group: int) -> list[MadeWhenRun]:
    """Half-quadratic quantization (Badri and Shaji, 2023): scale and zero of each group are fitted to the
    weights, without data."""
    quantize = importlib.import_module("hqq.core.quantize")

    def small(linear: nn.Linear) -> nn.Module:
        config = quantize.BaseQuantizeConfig(nbits=BITS, group_size=whole_group(linear.in_features, group))
        plain = plain_linear(linear)
        place = str(linear.weight.device)
        packed = quantize.HQQLinear(plain, config, compute_dtype=model.dtype, device=place, del_orig=False)
        packed.linear_layer = None  # the plain layer, which it would keep beside the packed one
        return packed

    return packed_when_run(blocks, small, tuple(model.hf._keep_in_fp32_modules or ()))


def packed_when_run(
    blocks: Sequence[Block], small: Callable[[nn.Linear], nn.Module], kept: tuple[str, ...] = ()
) -> list[MadeWhenRun]:
    """Stand-ins of blocks that put what `small` makes in the place of every linear map, those named `kept`
    excepted."""
    keep = all_small(blocks)
    return [MadeWhenRun(partial(replaced_linears, block.module, small, kept), keep) for block in blocks]


def _gptq(model: Model, blocks: Sequence[Block], group: int) -> list[MadeWhenRun]:
    """GPTQ by llmcompressor, calibrated on passages of text that suits the model.

    The library works on a model of its own, of which the blocks' numbers are kept.
    """
    with quiet():
        datasets = importlib.import_module("datasets")
        compressor = importlib.import_module("llmcompressor")
        modifier = importlib.import_module("llmcompressor.modifiers.gptq").GPTQModifier
        rows = [row for row in corpus(model) if len(row) > 1][:CALIBRATION_PASSAGES]
        text = datasets.Dataset.from_dict(
            {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        )
        changed = with_linears(model.hf)
        targets: dict[int, list[str]] = {}
        for block in blocks:
            for name, linear in linears(changed.get_submodule(block.path)):
                targets.setdefault(whole_group(linear.in_features, group), []).append(f"{block.path}.{name}")
        schemes = {}
        for size, names in targets.items():
            schemes[f"group_{size}"] = {"targets": names, "weights": integer_weights(BITS, size)}
        compressor.oneshot(
            model=changed, dataset=text, recipe=[modifier(config_groups=schemes)],
            num_calibration_samples=len(rows), max_seq_length=max(map(len, rows)),
        )  # fmt: skip
    numbers = [dict(changed.get_submodule(block.path).named_parameters()) for block in blocks]
    return [MadeWhenRun(partial(_with_numbers, *pair)) for pair in zip(blocks, numbers, strict=True)]


def _with_numbers(block: Block, numbers: Mapping[str, Tensor]) -> nn.Module:
    """The block with other numbers, without what a library has put into its own."""
    made = with_linears(block.module)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(numbers[name])
    return made


METHODS = (
    Method("RTN 8 bits", "", 8, _rtn(8)),
    Method("RTN 4 bits", "", BITS, _rtn(BITS)),
    Method("torchao int8", "torchao", 8, _torchao(8), packed=True),
    Method("torchao int4", "torchao", BITS, _torchao(BITS), packed=True),
    Method("GPTQ 4 bits", "llmcompressor", BITS, _gptq),
    Method("bitsandbytes int8", "bitsandbytes", 8, _bnb_int8, packed=True),
    Method("NF4", "bitsandbytes", BITS, _nf4, packed=True),
    Method("HQQ 4 bits", "hqq", BITS, _hqq, packed=True),
)
"""Ours, then those of each library."""


def integer_weights(bits: int, group: int) -> dict[str, Any]:
    """Symmetric integers in groups along the inputs, as the package compressed-tensors says it."""
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}


def with_linears(module: nn.Module) -> nn.Module:
    """A copy whose transposed linear maps (Conv1D) are plain ones with the same numbers: what these libraries
    know."""
    made = copied(module)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                setattr(parent, name, plain_linear(child))
    return made


def plain_linear(layer: nn.Module) -> nn.Linear:
    """A plain linear map with the numbers of a linear layer: the very same memory, where they do not lie
    transposed there."""
    weight_OI, bias = matrix_OI(layer).detach().contiguous(), layer.bias
    plain = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=isinstance(bias, Tensor), device="meta")
    plain.weight = nn.Parameter(weight_OI, requires_grad=False)
    if isinstance(bias, Tensor):
        plain.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return plain


def linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Every plain linear map inside, by name."""
    return [(name, child) for name, child in module.named_modules() if type(child) is nn.Linear]


def replaced_linears(
    module: nn.Module, make: Callable[[nn.Linear], nn.Module], kept: tuple[str, ...] = ()
) -> nn.Module:
    """A copy with what `make` makes of it in the place of every plain or transposed linear map whose own name
    is not among those kept.

    No float matrix is copied on the way: what is made and let go at once would leave holes in the memory.
    """
    chosen = {
        id(child): make(plain_linear(child))
        for name, child in module.named_modules()
        if type(child) in (nn.Linear, Conv1D) and name.rpartition(".")[2] not in kept
    }
    return copied(module, chosen)


def whole_group(inputs: int, group: int) -> int:
    """The longest group that divides both the inputs and the group asked for: these libraries know no shorter
    last group.

    Raises:
        ValueError: there is none but 1.
    """
    common = math.gcd(inputs, group)
    if common == 1:
        raise ValueError(
            f"groups of {group} do not divide {inputs} inputs: choose --group with a divisor in common, 64"
            " for example"
        )
    return common


def held_bytes(module: nn.Module) -> int:
    """Bytes that a module's parameters take in memory, scales and the inner tensors of a library's own types
    counted."""
    beside = [t for part in module.modules() for t in vars(part).get("meta", {}).values()]  # HQQ's scales
    return sum(_tensor_bytes(t) for t in [*module.parameters(), *beside] if isinstance(t, Tensor))


def _tensor_bytes(tensor: Tensor) -> int:
    if is_traceable_wrapper_subclass(tensor):
        return sum(_tensor_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    state = getattr(tensor, "quant_state", None)
    scales = [state.absmax, state.code] if state is not None else [getattr(tensor, "SCB", None)]
    return sum(t.numel() * t.element_size() for t in [tensor, *scales] if t is not None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what these libraries print, log and warn of off the user's screen, also when a block is packed;
    their errors still come."""
    with silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

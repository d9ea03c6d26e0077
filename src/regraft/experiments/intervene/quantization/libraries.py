"""Ways of other libraries to quantize a whole model, each as copies of blocks that a route can run.

A library that is not installed, or that cannot work on a model, says why. Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.pytorch_utils import Conv1D

from regraft.data.corpus import corpus
from regraft.experiments.intervene.quantization.rounding import quantized_block
from regraft.model.load import quiet_transformers
from regraft.model.model import Model
from regraft.model.parts import Block

BITS = 4
INT4: torch.dtype = vars(torch)["int4"]
CALIBRATION_PASSAGES = 64
NF4_BLOCK = 64

Copies = Callable[[Model, Sequence[Block], int], list[nn.Module]]


@dataclass(frozen=True)
class Method:
    """One way to quantize: its name, the package that it needs, and whether what it makes is held in few bits when it runs."""

    name: str
    package: str
    bits: int
    copies: Copies
    held: bool


def missing(package: str) -> str:
    """Why a package cannot be used, or nothing."""
    if not package or importlib.util.find_spec(package) is not None:
        return ""
    return f"{package.replace('_', '-')} is not installed"


def _rtn(bits: int) -> Copies:
    return lambda model, blocks, group: [quantized_block(model, block, bits, group=group) for block in blocks]


def _torchao(bits: int) -> Copies:
    def copies(model: Model, blocks: Sequence[Block], group: int) -> list[nn.Module]:
        with quiet():
            from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

            made = [with_linears(block.module) for block in blocks]

            def small(linear: nn.Linear) -> nn.Module:
                per = PerGroup(whole_group(linear.in_features, group))
                holder = nn.Sequential(linear)
                quantize_(holder, Int8WeightOnlyConfig() if bits == 8 else IntxWeightOnlyConfig(INT4, per))
                return holder[0]

            for block in made:
                replace_linears(block, small)
        return made

    return copies


def _nf4(model: Model, blocks: Sequence[Block], group: int) -> list[nn.Module]:
    """Four-bit NormalFloat, in blocks of 64 values whatever the group; layers that transformers keeps in floats stay so."""
    with quiet():
        from bitsandbytes.nn.modules import LinearNF4, Params4bit

        made = [with_linears(block.module) for block in blocks]

        def small(linear: nn.Linear) -> nn.Module:
            if linear.in_features % NF4_BLOCK:
                raise ValueError(f"it needs inputs in blocks of {NF4_BLOCK}, and a matrix has {linear.in_features}")
            inputs, outputs, bias = linear.in_features, linear.out_features, linear.bias
            packed = LinearNF4(inputs, outputs, bias is not None, compute_dtype=model.dtype)
            weight = linear.weight.data.clone()
            packed.weight = Params4bit(weight, requires_grad=False, quant_type="nf4")  # pyright: ignore[reportCallIssue]
            packed.bias = bias
            return packed.to(linear.weight.device)

        for block in made:
            replace_linears(block, small, tuple(model.hf._keep_in_fp32_modules or ()))
    return made


def _gptq(model: Model, blocks: Sequence[Block], group: int) -> list[nn.Module]:
    """GPTQ by llmcompressor, calibrated on passages of text that suits the model."""
    with quiet():
        datasets = importlib.import_module("datasets")
        compressor = importlib.import_module("llmcompressor")
        modifier = importlib.import_module("llmcompressor.modifiers.gptq").GPTQModifier
        rows = [row for row in corpus(model) if len(row) > 1][:CALIBRATION_PASSAGES]
        text = datasets.Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
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
    made = [with_linears(block.module) for block in blocks]
    for block, module in zip(blocks, made, strict=True):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(changed.get_parameter(f"{block.path}.{name}"))
    return made


METHODS = (
    Method("RTN 8 bits", "", 8, _rtn(8), held=False),
    Method("RTN 4 bits", "", BITS, _rtn(BITS), held=False),
    Method("torchao int8", "torchao", 8, _torchao(8), held=True),
    Method("torchao int4", "torchao", BITS, _torchao(BITS), held=True),
    Method("GPTQ 4 bits", "llmcompressor", BITS, _gptq, held=False),
    Method("NF4", "bitsandbytes", BITS, _nf4, held=True),
)


def integer_weights(bits: int, group: int) -> dict[str, Any]:
    """Symmetric integers in groups along the inputs, as the package compressed-tensors says it."""
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}


def with_linears(module: nn.Module) -> nn.Module:
    """A copy whose transposed linear maps (Conv1D) are plain ones with the same numbers: what these libraries know."""
    made = copy.deepcopy(module)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                inputs, outputs = child.weight.shape
                plain = nn.Linear(inputs, outputs, device=child.weight.device, dtype=child.weight.dtype)
                plain.weight = nn.Parameter(child.weight.detach().t().contiguous(), requires_grad=False)
                plain.bias = child.bias
                setattr(parent, name, plain)
    return made


def linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Every plain linear map inside, by name."""
    return [(name, child) for name, child in module.named_modules() if type(child) is nn.Linear]


def replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module], kept: tuple[str, ...] = ()) -> None:
    """Put what `make` makes of it in the place of every plain linear map whose own name is not among those kept."""
    for name, linear in linears(module):
        parent, _, own = name.rpartition(".")
        if own in kept:
            continue
        setattr(module.get_submodule(parent), own, make(linear))


def whole_group(inputs: int, group: int) -> int:
    """The longest group that divides both the inputs and the group asked for: these libraries know no shorter last group.

    Raises:
        ValueError: there is none but 1.
    """
    common = math.gcd(inputs, group)
    if common == 1:
        raise ValueError(
            f"groups of {group} do not divide {inputs} inputs: choose --group with a divisor in common, 64 for example"
        )
    return common


def held_bytes(module: nn.Module) -> int:
    """Bytes that a module's parameters take in memory, scales and the inner tensors of a library's own types counted."""
    return sum(_tensor_bytes(parameter) for parameter in module.parameters())


def _tensor_bytes(tensor: Tensor) -> int:
    if is_traceable_wrapper_subclass(tensor):
        return sum(_tensor_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    state = getattr(tensor, "quant_state", None)
    scales = [state.absmax, state.code] if state is not None else []
    return sum(t.numel() * t.element_size() for t in [tensor, *scales])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what these libraries print, log and warn of off the user's screen; their errors still come."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

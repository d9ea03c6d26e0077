"""A model without its weights, and how the tensors of its files come into it: by transformers' own rules.

What names in the files become which parameters (renamed, stacked, divided) is transformers' knowledge. It is
asked for one module's tensors at a time, with the functions that `from_pretrained` itself uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig

from regraft.checkpoint.locate import CheckpointError
from regraft.core.silence import silent
from regraft.streaming.pages import Pages

META = torch.device("meta")


class _EmptyOnMeta(TorchFunctionMode):
    """While inside, `torch.empty`, which parameters are made of, takes no memory; buffers are computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = META
        return func(*args, **kwargs)


def empty_model(make: Callable[[], Any]) -> Any:
    """A model as `make` builds it, in evaluation mode, its parameters without numbers.

    Raises:
        CheckpointError: a buffer that no file holds would be without numbers, too.
    """
    with silent(), no_init_weights(), _EmptyOnMeta():
        hf = make()
    for module in hf.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                empty(module, name)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and name in module._non_persistent_buffers_set:
                raise CheckpointError(
                    f"{type(hf).__name__} computes {name} from numbers that are not there yet: it cannot be"
                    " streamed"
                )
    hf.tie_weights()
    return hf.eval()


def empty(module: nn.Module, name: str) -> None:
    """Let the numbers of a parameter go; its shape and type stay."""
    old = module._parameters[name]
    assert old is not None
    module._parameters[name] = nn.Parameter(torch.empty_like(old, device=META), requires_grad=False)


class Loader:
    """Brings tensors of files into a model, by the names that they have there.

    They come into a twin first, which no one else sees: the live model may have stand-ins in the place of its
    blocks while a block is read, or may just be running. `hand_over` gives them to the live module.
    """

    def __init__(self, twin: Any, dtype: torch.dtype, device: torch.device, pages: Pages):
        self.hf, self.dtype, self.device, self.pages = twin, dtype, device, pages
        self.plan = twin._get_dtype_plan(dtype)
        self.types: dict[str, torch.dtype] = {}

    def targets(self, names: Iterable[str]) -> dict[str, str]:
        """The first parameter that each tensor of the files becomes a part of; "" where there is none."""
        rules = get_model_conversion_mapping(self.hf)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        known: dict[str, Any] = self.hf.state_dict()
        prefix = self.hf.base_model_prefix
        found = {}
        for name in names:
            target, _ = rename_source_key(name, renamings, converters, prefix, known)
            if target not in known and name in known:
                target, _ = rename_source_key(name, [], [], prefix, known)
            found[name] = target if target in known else ""
            if target in known and known[target].is_floating_point():
                self.types[name] = known[target].dtype
        return found

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Put some tensors of the files where they belong in the twin, on pages of their own.

        Raises:
            CheckpointError: a shape is not the model's.
        """
        config = LoadStateDictConfig(
            device_map={"": self.device}, dtype=self.dtype, dtype_plan=self.plan,
            weight_mapping=cast(Any, get_model_conversion_mapping(self.hf)),
        )  # fmt: skip
        given = {name: self._converted(name, tensor) for name, tensor in tensors.items()}
        with silent(), torch.no_grad():
            info, _ = convert_and_load_state_dict_in_model(self.hf, dict(given), config)
        wrong = sorted(str(key[0]) for key in info.mismatched_keys)
        if wrong:
            raise CheckpointError(f"the shapes of {', '.join(wrong[:4])} disagree with the config.json")
        if info.conversion_errors:
            raise CheckpointError(
                f"{next(iter(info.conversion_errors))} cannot be made of what the files hold"
            )

    def _converted(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor in the type of the parameter that it becomes, or a part of."""
        wanted = self.types.get(name, tensor.dtype)
        return tensor if tensor.dtype == wanted else self.pages.copy(tensor, wanted)

    def hand_over(self, path: str, module: nn.Module) -> None:
        """Give a live module the numbers that the twin's module at the same path has; the twin's is empty
        then."""
        there = self.hf.get_submodule(path)
        for (_, full), (_, own) in zip(there.named_modules(), module.named_modules(), strict=True):
            for name, parameter in full.named_parameters(recurse=False):
                if not parameter.is_meta:
                    own._parameters[name] = parameter.requires_grad_(False)
                    empty(full, name)
            for name, buffer in full.named_buffers(recurse=False):
                if name not in full._non_persistent_buffers_set:
                    own._buffers[name] = buffer

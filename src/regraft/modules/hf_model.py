"""A model with grafts in it as a Hugging Face model of its own type: a config, and a wrapper around the plain
architecture.

Importing this module makes the type known to `AutoConfig` and `AutoModelForCausalLM` (and the
sequence-to-sequence one); `import regraft` sees to it (`regraft/core/auto_classes.py`).
An export may also carry this file and those that it imports, for use with remote code and without regraft:
they import each other relatively, so that they are copied as they are.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from .byte_embedding import ByteEmbedding
from .graft_kinds import fresh, put
from .logits_view import LogitsView
from .transcoder import Transcoders


class GraftedConfig(PreTrainedConfig):
    """What a model with grafts is: the plain model's config, every graft's sizes and places, tensors with two
    names."""

    model_type = "regraft"

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        grafts: list[dict[str, Any]] | None = None,
        ties: dict[str, str] | None = None,
        **others: Any,
    ):
        self.base = base or {}
        self.grafts = grafts or []
        self.ties = ties or {}
        super().__init__(**{**others, "tie_word_embeddings": bool(self.ties)})

    def plain(self) -> PreTrainedConfig:
        """The plain model's config."""
        stated = copy.deepcopy(self.base)
        return AutoConfig.for_model(stated.pop("model_type"), **stated)


class GraftedModel(PreTrainedModel):
    """A plain model whose embedding or head is a graft, or whose MLPs have adapters beside them."""

    config_class = GraftedConfig
    base_model_prefix = "base"
    _supports_sdpa = True

    def __init__(self, config: GraftedConfig):
        super().__init__(config)
        plain = config.plain()
        plain._attn_implementation = config._attn_implementation
        self.base = getattr(transformers, config.base["architectures"][0])(plain)
        kept = set()
        for stated in config.grafts:
            graft = fresh(stated["sizes"])
            if isinstance(graft, ByteEmbedding) and self.base.dtype != torch.float32:
                graft.answers_in = self.base.dtype
            placed = put(graft, self.base, stated["places"])
            if not isinstance(graft, Transcoders):
                for place, new in zip(stated["places"], placed, strict=True):
                    kept |= {f"base.{place}.{name}" for name, _ in new.named_parameters()}
        self._keep_in_fp32_modules_strict = kept
        for module in self.base.modules():
            if isinstance(module, PreTrainedModel):
                module._tied_weights_keys, module.all_tied_weights_keys = {}, {}
        self._tied_weights_keys = {f"base.{name}": f"base.{first}" for name, first in config.ties.items()}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every tensor is read from a file, and a file that lacks one is refused."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The plain model's forward pass, with the grafts in their places."""
        return self.base(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, be it a graft or not."""
        return self.base.get_input_embeddings()

    @classmethod
    def can_generate(cls) -> bool:
        """Yes: by the plain model's own `generate`."""
        return True

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a folder or hub id as any model, and its settings of generation."""
        found = super().from_pretrained(source, *args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        asked = {
            name: kwargs[name]
            for name in ("revision", "subfolder", "token", "cache_dir", "local_files_only")
            if name in kwargs
        }
        with suppress(OSError):
            model.base.generation_config = GenerationConfig.from_pretrained(source, **asked)
        model.generation_config = model.base.generation_config
        return found

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The plain model's `generate`; of a tree head's rows only what the kind of search needs is computed,
        exactly."""
        view = next((module for module in self.base.modules() if isinstance(module, LogitsView)), None)
        if view is None:
            return self.base.generate(inputs, generation_config, *args, **kwargs)
        asked, _ = self.base._prepare_generation_config(generation_config, **kwargs)
        every = bool(args) or any(kwargs.get(name) is not None for name in READS_ROWS)
        with view.asked(asked, every=every):
            return self.base.generate(inputs, generation_config, *args, **kwargs)


READS_ROWS = (
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "assistant_model",
    "custom_generate",
    "negative_prompt_ids",
)
"""Arguments of `generate` that may read a whole row of scores."""


def shared(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are another name's parameter, each with the name under which it comes
    first."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            found[name] = first[id(parameter)]
    return found


AutoConfig.register(GraftedConfig.model_type, GraftedConfig, exist_ok=True)
AutoModelForCausalLM.register(GraftedConfig, GraftedModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(GraftedConfig, GraftedModel, exist_ok=True)

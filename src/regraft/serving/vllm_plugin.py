"""vLLM's way in: its entry point, the config that it reads an exported folder with, switches of a running
engine.

vLLM loads `register` by the entry point `vllm.general_plugins` in every process that it starts. Nothing here
imports vLLM, so that the entry point costs a process nothing where no such model is served.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from regraft.modules.graft_kinds import TRANSCODER
from regraft.modules.hf_model import GraftedConfig, GraftedModel

SITE = re.compile(r"(\d+)\.feature\.(\d+)")
"""How a feature is named: `5.feature.317`."""


@dataclass(frozen=True)
class Switches:
    """How adapters run: their strength (0 off, 1 as trained), factors and fixed values of single features by
    name (`5.feature.317`)."""

    strength: float = 1.0
    scaled: Mapping[str, float] = field(default_factory=dict)
    clamped: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make sure that every feature's name can be read, none is switched twice, and all are numbers.

        Raises:
            ValueError: one cannot, one is both scaled and clamped, or one is no finite number.
        """
        for value in (self.strength, *self.scaled.values(), *self.clamped.values()):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{value!r} is no finite number: a strength, factor or value is one")
        both = sorted(set(self.scaled) & set(self.clamped))
        if both:
            raise ValueError(f"{both[0]} is to be scaled and clamped: choose one")
        for name in (*self.scaled, *self.clamped):
            place_of(name)


def switches_of(stated: Mapping[str, Any]) -> Switches:
    """Switches as `--hf-overrides` states them.

    Raises:
        ValueError: a word that is none of theirs, or what `Switches` refuses.
    """
    known = [one.name for one in fields(Switches)]
    wrong = next((name for name in stated if name not in known), None)
    if wrong is not None:
        raise ValueError(f"switched says {wrong!r}: it may say {', '.join(known)}")
    return Switches(**stated)


def check_features(switches: Switches, blocks: int, features: int) -> None:
    """Make sure that there are such features.

    Raises:
        ValueError: there is no such block or feature.
    """
    for block, feature in map(place_of, (*switches.scaled, *switches.clamped)):
        if block >= blocks or feature >= features:
            raise ValueError(
                f"there is no feature {block}.feature.{feature}: there are blocks 0 to {blocks - 1} with"
                f" features 0 to {features - 1}"
            )


def share_of(features: int, parts: int, rank: int) -> range:
    """Which features one of several parallel processes holds.

    Raises:
        ValueError: they do not part evenly.
    """
    if features % parts:
        raise ValueError(
            f"{features} features do not part evenly over {parts} processes: choose a tensor parallel size"
            f" that divides {features}"
        )
    own = features // parts
    return range(rank * own, (rank + 1) * own)


def mlp_at(root: nn.Module, place: str) -> tuple[nn.Module, str, nn.Module]:
    """Parent, name and module of an MLP by its place in the plain model.

    Raises:
        ValueError: the class that serves it has no module there.
    """
    where, _, name = place.rpartition(".")
    try:
        parent = root.get_submodule(where)
        return parent, name, parent.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"vLLM's {type(root).__name__} has no module {place}, which an adapter could stand beside"
        ) from error


def place_of(name: str) -> tuple[int, int]:
    """Block and number of a feature's name.

    Raises:
        ValueError: it is no feature's name.
    """
    found = SITE.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no feature: write BLOCK.feature.NUMBER, for example 5.feature.317")
    return int(found[1]), int(found[2])


class ServedConfig(GraftedConfig):
    """A grafted model's config as vLLM asks for it: the sizes of attention and caches are the plain model's.

    `switched` (in `--hf-overrides`) says how the adapters run from the start: `strength`, `scaled`, `clamped`
    as in `Switches`.
    """

    def __init__(self, switched: dict[str, Any] | None = None, **others: Any):
        self.switched = switched or {}
        super().__init__(**others)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """The plain model's config, made once: vLLM writes into what it is given."""
        if not self.base:
            return self  # transformers makes one of nothing, to know the defaults
        if "_plain_made" not in self.__dict__:
            made = self.plain()
            made.architectures, made.tie_word_embeddings = self.base.get("architectures"), bool(self.ties)
            self.__dict__["_plain_made"] = made
        return self.__dict__["_plain_made"]

    def to_dict(self) -> dict[str, Any]:
        """What the file says, without the config that was made of it."""
        return {name: value for name, value in super().to_dict().items() if name != "_plain_made"}


def adapters_of(config: GraftedConfig) -> tuple[dict[str, Any], list[str]]:
    """Sizes of a config's adapters, and the places of the MLPs that they stand beside.

    Raises:
        ValueError: there are other grafts, or none.
    """
    kinds = [stated["sizes"]["kind"] for stated in config.grafts]
    if kinds != [TRANSCODER]:
        raise ValueError(
            f"vLLM serves {TRANSCODER}, and this folder holds {', '.join(kinds) or 'no graft'}: open it with"
            " transformers"
        )
    stated = config.grafts[0]
    return dict(stated["sizes"]["shape"]), list(stated["places"])


def register() -> None:
    """Make exported folders known to vLLM: their config, and the class that runs them. A second call changes
    nothing."""
    registry = importlib.import_module("vllm").ModelRegistry
    known_to_transformers()
    if GraftedModel.__name__ not in registry.get_supported_archs():
        registry.register_model(GraftedModel.__name__, "regraft.serving.vllm_model:ServedModel")


def known_to_transformers() -> None:
    """Open exported folders with the config that vLLM asks for, by transformers, too, which must know a class
    of models for it: the same one under the same name."""
    AutoConfig.register(GraftedConfig.model_type, ServedConfig, exist_ok=True)
    opened = type(GraftedModel.__name__, (GraftedModel,), {"config_class": ServedConfig})
    AutoModelForCausalLM.register(ServedConfig, opened, exist_ok=True)


def switch(
    engine: Any,
    strength: float = 1.0,
    scaled: Mapping[str, float] | None = None,
    clamped: Mapping[str, float] | None = None,
) -> None:
    """From now on the adapters of a running `vllm.LLM` run so, as if nothing had been switched before; what
    the engine kept of earlier texts is dropped, since other adapters wrote it.

    Args:
        engine: the `vllm.LLM`, made with `worker_extension_cls=EXTENSION`.
        strength: of all adapters: 0 is off, 1 as trained.
        scaled, clamped: factors and fixed values of single features by name, `{"5.feature.317": 0.0}`.

    Raises:
        ValueError: a feature that does not exist, one that is both scaled and clamped, an engine made without
            the extension, or one that is still writing.
    """
    given, config = Switches(strength, dict(scaled or {}), dict(clamped or {})), engine.llm_engine.vllm_config
    shape, places = adapters_of(config.model_config.hf_config)
    check_features(given, len(places), shape["features"])
    if config.parallel_config.worker_extension_cls != EXTENSION:
        raise ValueError(f"this engine cannot be switched while it runs: make it with {OPTION}")
    engine.collective_rpc(SwitchedWorker.switch_adapters.__name__, kwargs=asdict(given))
    if not engine.reset_prefix_cache():
        raise ValueError("what was kept of earlier texts is still in use: switch when nothing is written")


class SwitchedWorker:
    """What is added to vLLM's workers, so that plain numbers reach the model in every process."""

    model_runner: Any

    def switch_adapters(self, **given: Any) -> None:
        """Run the adapters so from now on."""
        self.model_runner.get_model().switch(Switches(**given))


EXTENSION = f"{SwitchedWorker.__module__}.{SwitchedWorker.__qualname__}"
"""How vLLM is told of it."""
OPTION = f'worker_extension_cls="{EXTENSION}"'
"""The same, as an argument of `vllm.LLM`."""

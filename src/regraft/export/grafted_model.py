"""A model with grafts in it as a Hugging Face folder, read again and compared before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
import xarray as xr
from safetensors.torch import save_file
from torch import Tensor, nn

from regraft.core.files import check_empty
from regraft.core.silence import silent
from regraft.core.strict_json import json_text
from regraft.export.card import graft_card
from regraft.export.graft_folder import swaps_of
from regraft.export.stored_types import narrowed, stored_types
from regraft.export.verified_folder import (
    CARD,
    CERTIFICATE,
    Probe,
    Verified,
    Writing,
    probe_inputs,
    write_verified,
)
from regraft.model.model import Model
from regraft.modules.graft_kinds import Graft, sizes
from regraft.modules.hf_model import GraftedConfig, GraftedModel, shared
from regraft.modules.placement import all_placed

CODE = (
    "hf_model.py", "graft_kinds.py", "byte_embedding.py", "tree_head.py", "trees.py", "logits_view.py",
    "transcoder.py",
)  # fmt: skip
"""What a folder carries for remote code."""
OTHERWISE = "read again, the folder's outputs differ from the grafts' by {gap} of the largest: it is not kept"


def write_grafted(
    model: Model, grafts: Sequence[Graft], certificate: xr.Dataset, target: Path, remote_code: bool = False
) -> str:
    """Write the model with its grafts; returns one sentence.

    Args:
        model: an opened model.
        grafts: what takes its parts' places.
        target: the folder to write.
        certificate: what the grafts were measured to change, written into the model card and beside it.
        remote_code: carry regraft's own files along, so that `trust_remote_code=True` opens the folder
            without regraft.

    Returns:
        What was written and how it was read back, in a sentence.

    Raises:
        RunFolderError: the target is not empty.
        ValueError: read again, a tensor of the folder differs by a bit, or its outputs by more than rounding.

    Examples:
        >>> few = regraft.TrainingPlan(steps=2, batch=2)
        >>> made = regraft.fit_embedding(model, "to-write", plan=few, warm=2, length=16)
        >>> certificate = regraft.evaluate_grafts(model, ["to-write/graft"], length=16, most=2)
        >>> graft = regraft.attach(pathlib.Path("to-write/graft"), model)
        >>> print(regraft.write_grafted(model, [graft], certificate, pathlib.Path("written")))
        written opens with transformers behind `import regraft`; read again, its tensors are the grafts'
        to the bit ...
    """
    check_empty(target, "--save")
    model.check_whole("a model is written from all its weights")
    swaps, inputs = swaps_of(model, grafts), probe_inputs(model, model.table_rows, seed=3)
    config = grafted_config(model, grafts)
    with all_placed(model.hf, swaps), torch.no_grad():
        probe = Probe(inputs, model.run(**inputs)[0], OTHERWISE)
        config.ties = shared(model.hf)
        config.tie_word_embeddings = bool(config.ties)
        types = stored_types(model)
        held = {name: t for name, t in model.hf.state_dict().items() if name not in config.ties}
        tensors = {f"base.{name}": _plain(narrowed(name, t, types)) for name, t in held.items()}

    def fill(config: GraftedConfig, fresh: Path) -> None:
        if remote_code:
            _add_code(fresh, config, model.two_stacks)
        config.save_pretrained(fresh)
        save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
        model.hf.generation_config.save_pretrained(fresh)

    def read(fresh: Path) -> nn.Module:
        with silent():
            return GraftedModel.from_pretrained(fresh, dtype=model.dtype, attn_implementation=model.attention)

    def texts(fresh: Path, verified: Verified) -> dict[str, str]:
        certified = json_text(certificate.to_dict(), indent=1) + "\n"
        return {CERTIFICATE: certified, CARD: graft_card(model, grafts, certificate)}

    how = Writing(fill=fill, types=False, read=read, tensors=tensors)
    verified = write_verified(model, config, probe, target, texts, how)
    opens = "with trust_remote_code=True, or " if remote_code else ""
    return (
        f"{target} opens with transformers {opens}behind `import regraft`; read again, its tensors are the"
        f" grafts' to the bit and its outputs differ by {verified.difference:.1g} of the largest (rounding"
        f" alone: at most {model.rounding:.1g})"
    )


def grafted_config(model: Model, grafts: Sequence[Graft]) -> GraftedConfig:
    """The config of the whole: the plain one, untied where a graft has parted embedding and head, and the
    grafts' places."""
    base = model.hf.config.to_dict()
    base["architectures"] = [type(model.hf).__name__]
    base["tie_word_embeddings"] = False
    stated = [
        {
            "sizes": sizes(graft),
            "places": [place for old, new in swaps_of(model, [graft]) for place in _places(model, old, new)],
        }
        for graft in grafts
    ]
    names = (
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "is_encoder_decoder",
        "decoder_start_token_id",
    )
    common = {name: base[name] for name in names if base.get(name) is not None}
    config = GraftedConfig(base=base, grafts=stated, architectures=[GraftedModel.__name__], **common)
    config.dtype = model.dtype
    return config


def _places(model: Model, old: nn.Module, new: nn.Module) -> list[str]:
    """Names of every place that a graft stands in."""
    with all_placed(model.hf, [(old, new)]):
        return [name for name, module in model.hf.named_modules(remove_duplicate=False) if module is new]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _add_code(folder: Path, config: GraftedConfig, two_stacks: bool) -> None:
    """Copy what the classes need, which import each other relatively, and say in the config where they
    are."""
    for name in CODE:
        text = resources.files("regraft.modules").joinpath(name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
    auto = "AutoModelForSeq2SeqLM" if two_stacks else "AutoModelForCausalLM"
    module = Path(CODE[0]).stem
    config.auto_map = {
        "AutoConfig": f"{module}.{GraftedConfig.__name__}",
        auto: f"{module}.{GraftedModel.__name__}",
    }

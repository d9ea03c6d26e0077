"""Sparse autoencoders and transcoders as SAELens writes them: `cfg.json` and `sae_weights.safetensors`.

Shapes: D width of what is read, E width of what is written, F features.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regraft.core.files import expanded
from regraft.model.dictionary import Dictionary, Kind, Scaled
from regraft.model.sites import DICTIONARY, SiteError, activation_width

if TYPE_CHECKING:
    from regraft.model.model import Model

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
KINDS: dict[str, tuple[Kind, bool]] = {
    "standard": ("standard", False),
    "jumprelu": ("jumprelu", False),
    "topk": ("topk", False),
    "gated": ("gated", False),
    "transcoder": ("standard", True),
    "skip_transcoder": ("standard", True),
    "jumprelu_transcoder": ("jumprelu", True),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
"""Each architecture: how its features are computed, and whether it writes elsewhere than it reads."""
HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "z",
    "mlp.hook_post": "mlp_act",
    "hook_mlp_in": "resid_mid",
    "mlp.hook_in": "mlp_in",
}
"""TransformerLens' names of a block's activations, and ours; `mlp_in` is what the MLP is given."""
_HOOK = re.compile(r"^blocks\.(\d+)\.(.+)$")
_LAYER = re.compile(r"^(?:model\.|transformer\.)?(?:layers|h)\.(\d+)$")


def read_dictionary(folder: Path | str, site: str = "") -> tuple[Dictionary, int]:
    """A dictionary from its folder, and the number of the block that it belongs to.

    Args:
        folder: with `cfg.json` and `sae_weights.safetensors`.
        site: where it reads, for example 5.resid_post, where the configuration does not tell.

    Raises:
        ValueError: a file is missing or damaged, an architecture or a scaling that is not known, weights
            whose shapes do not fit together, or a place that is not told.
    """
    path = expanded(folder)
    config, weights = _config(path), _weights(path)
    told = {**config, **(config.get("metadata") or {})}
    architecture = told.get("architecture", "standard")
    if architecture not in KINDS:
        raise ValueError(
            f"{path / CONFIG} says architecture {architecture!r}, which is not known here: {', '.join(KINDS)}"
        )
    kind, transcodes = KINDS[architecture]
    scaled = told.get("normalize_activations") or "none"
    if scaled not in ("none", "constant_norm_rescale", "layer_norm"):
        raise ValueError(
            f"{path / CONFIG} scales activations by {scaled!r}, an average that is not in the folder: fold it"
            " into the weights with SAELens before saving"
        )
    block, reads = _place(site, 0) if site else _place(str(told.get("hook_name", "")), 1, path)
    writes = _place(str(told.get("hook_name_out", "")), 1, path)[1] if transcodes else reads
    shape = _shapes(path, weights, kind)
    centred = bool((told.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))
    return Dictionary(
        kind,
        reads,
        writes,
        weights["W_enc"],
        weights["b_gate" if kind == "gated" else "b_enc"],
        weights["W_dec"],
        weights["b_dec"],
        threshold_F=weights.get("threshold"),
        most=int(told.get("k") or told.get("activation_fn_kwargs", {}).get("k") or 0),
        by_decoder_norm=bool(told.get("rescale_acts_by_decoder_norm")) and kind == "topk",
        magnitude_F=weights.get("r_mag"),
        magnitude_bias_F=weights.get("b_mag"),
        skip_ED=weights.get("W_skip"),
        subtracts_bias=bool(told.get("apply_b_dec_to_input", not transcodes)) and shape[0] == shape[2],
        scaled=cast(Scaled, scaled),
        centred=centred and reads in ("resid_pre", "resid_mid", "resid_post"),
        source=path.name,
    ), block


def attached(model: Model, folder: Path | str, site: str) -> str:
    """Attach the dictionary of a folder to a model's block; returns the address of its features.

    Raises:
        ValueError: it cannot be read, or its widths are not those of the activations.
    """
    known, number = read_dictionary(folder, site)
    block = next((b for b in model.blocks if b.address == str(number)), None)
    if block is None:
        raise SiteError(f"{folder} belongs to block {number}, and there are {len(model.blocks)} here")
    widths = {known.reads: known.encoder_DF.shape[0], known.writes: known.decoder_FE.shape[1]}
    for name, width in widths.items():
        address = f"{block.address}.{name}"
        own = activation_width(model.tap(address), model.width)
        if own != width:
            raise ValueError(
                f"{folder} is of another width: {address} has {own} numbers here, its weights are made for"
                f" {width}"
            )
    model.dictionaries[block.index] = known.to(model.device)
    return f"{block.address}.{DICTIONARY}"


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{folder} is no folder of a sparse autoencoder: it has no {CONFIG} that can be read"
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{folder / CONFIG} holds no configuration")
    return found


def _weights(folder: Path) -> dict[str, Tensor]:
    try:
        return {name: t.float() for name, t in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {' '.join(str(error).split())}") from error


def _shapes(folder: Path, weights: dict[str, Tensor], kind: str) -> tuple[int, int, int]:
    """D, F and E, from weights that fit together.

    Raises:
        ValueError: one is missing, or has another shape.
    """
    needed = ["W_enc", "W_dec", "b_dec", *(("b_gate", "r_mag", "b_mag") if kind == "gated" else ("b_enc",))]
    needed += ["threshold"] if kind == "jumprelu" else []
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ValueError(f"{folder / WEIGHTS} has no {', '.join(missing)}")
    enc, dec = tuple(weights["W_enc"].shape), tuple(weights["W_dec"].shape)
    if len(enc) != 2 or len(dec) != 2 or enc[1] != dec[0]:
        raise ValueError(f"{folder / WEIGHTS}: W_enc {enc} and W_dec {dec} do not fit together")
    wanted = {name: (enc[1],) for name in ("b_enc", "b_gate", "b_mag", "r_mag", "threshold")}
    wanted |= {"b_dec": (dec[1],), "W_skip": (dec[1], enc[0])}
    for name, shape in wanted.items():
        if name in weights and tuple(weights[name].shape) != shape:
            raise ValueError(f"{folder / WEIGHTS}: {name} is {tuple(weights[name].shape)}, not {shape}")
    return enc[0], enc[1], dec[1]


def _place(hook: str, form: int, folder: Path | None = None) -> tuple[int, str]:
    """The block and our name of a place, from an address (form 0) or a name of TransformerLens (form 1)."""
    if form == 0:
        number, _, name = hook.partition(".")
        if number.isdigit() and name in {*HOOKS.values()}:
            return int(number), name
        raise ValueError(
            f"{hook!r} is no place of a sparse autoencoder: write BLOCK.NAME with one of"
            f" {', '.join(dict.fromkeys(HOOKS.values()))}"
        )
    match, layer = _HOOK.match(hook), _LAYER.match(hook)
    if layer:
        return int(layer[1]), "resid_post"
    if match and match[2] in HOOKS:
        return int(match[1]), HOOKS[match[2]]
    where = f"{folder / CONFIG}" if folder else "the configuration"
    raise ValueError(
        f"{where} says hook {hook!r}, which is no activation of a block here: name the place, for example"
        " site='5.resid_post'"
    )

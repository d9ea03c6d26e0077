"""How packed projections divide into roles: which rows of one matrix are queries, keys and values, or gate
and up.

The order of queries, keys and values is the one that the self-check proved. Gate and up are told apart by
what they are: an MLP is linear in its up rows and not in its gate rows. For a checkpoint whose weights are
not loaded, both are proved on a small random model of the same configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.func import functional_call

from regraft.core.randomness import drawing_from
from regraft.model.from_files import read_config
from regraft.model.hooks import reading
from regraft.model.load import open_live
from regraft.model.model import Model
from regraft.model.parts import Block, is_linear
from regraft.model.recording import Recording, record
from regraft.model.selfcheck import sample_ids
from regraft.model.sites import Tap

LINEAR, CURVED = 1e-4, 1e-3
"""Of the two halves of a packed gate one enters linearly and one bends: rounding lies below the first, an
activation above the second."""
_SHRUNK_BLOCKS, _SHRUNK_ROWS, _SHRUNK_EXPERTS = 2, 64, 2
"""Sizes of the small model of the same code on which a layout is proved."""


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Which indices along `axis` of a packed matrix belong to which role."""

    axis: int
    parts: dict[str, Tensor]

    def take(self, matrix: Tensor, role: str) -> Tensor:
        """The rows (or columns) of one role."""
        return matrix.index_select(self.axis, self.parts[role].to(matrix.device))

    def shape(self, whole: tuple[int, int], role: str) -> tuple[int, int]:
        """The shape of one role's part."""
        count = len(self.parts[role])
        return (count, whole[1]) if self.axis == 0 else (whole[0], count)


def pattern(path: str) -> str:
    """A tensor's name inside its block, without the numbers of experts and without `.weight`."""
    return re.sub(r"\.\d+\.", ".#.", path.removesuffix(".weight"))


def layouts_of(model: Model) -> dict[str, PackedLayout]:
    """The layouts of a live model's packed projections, by their names inside a block."""
    found: dict[str, PackedLayout] = {}
    for block in model.blocks:
        names = {module: name for name, module in block.module.named_modules()}
        taps = {role: model.taps.table[block.index][role] for role in "qkv"}
        packed = {
            role: tap for role, tap in taps.items() if isinstance(tap, Tap) and tap.features is not None
        }
        if packed:
            module = next(iter(packed.values())).module
            axis = 0 if isinstance(module, nn.Linear) else 1
            parts = {role: tap.features for role, tap in packed.items() if tap.features is not None}
            found.setdefault(pattern(names[module]), PackedLayout(axis, parts))
        for path in _packed_mlp(block):
            if pattern(path) not in found and (layout := _prove_gate(model, block, path)) is not None:
                found[pattern(path)] = layout
    return found


def _packed_mlp(block: Block) -> list[str]:
    """Parameters that may hold gate and up together: as wide on one side as what the down projection takes,
    twice."""
    if block.branch("mlp") is None:
        return []
    linear = {f"{name}.weight" for name, module in block.module.named_modules() if is_linear(module)}
    named = [(name, p) for name, p in block.module.named_parameters() if name in linear or p.dim() == 3]
    return [
        name for name, p in named if re.search(r"(gate_up_proj|Wi|w13|gate_and_up_proj)(\.weight)?$", name)
    ]


def _prove_gate(model: Model, block: Block, path: str) -> PackedLayout | None:
    """The one way to halve a parameter such that the MLP is linear in one half and curved in the other."""
    ids = sample_ids(model.table_rows, model.probe)
    recording = record(model, [ids], [ids] if model.two_stacks else None, attention_mask="all")
    weight = block.module.get_parameter(path)
    proved = []
    for dim in (weight.dim() - 2, weight.dim() - 1):
        size = weight.shape[dim]
        if size % 2:
            continue
        order = torch.arange(size, device=weight.device)
        for first, second in ((order[: size // 2], order[size // 2 :]), (order[::2], order[1::2])):
            bends = [_bend(recording, block, path, dim, half) for half in (first, second)]
            axis = dim - (weight.dim() - 2)
            if bends[1] < LINEAR and bends[0] > CURVED:
                proved.append(PackedLayout(axis, {"gate": first.cpu(), "up": second.cpu()}))
            if bends[0] < LINEAR and bends[1] > CURVED:
                proved.append(PackedLayout(axis, {"gate": second.cpu(), "up": first.cpu()}))
    return proved[0] if len(proved) == 1 else None


def _bend(recording: Recording, block: Block, path: str, dim: int, half: Tensor) -> float:
    """Second difference of the MLP's output as these rows are scaled by 0, 1 and 2, relative to the whole
    change."""
    branch = block.branch("mlp")
    assert branch is not None
    weight = block.module.get_parameter(path).detach()
    outs = []
    for scale in (0.0, 1.0, 2.0):
        changed = weight.index_copy(dim, half, weight.index_select(dim, half) * scale)

        def run(*args: Any, changed: Tensor = changed, **kwargs: Any) -> Any:
            return functional_call(block.module, {path: changed}, args, kwargs)

        shape = (recording.prompts, recording.positions_of(block.index))
        with torch.no_grad(), reading({"it": Tap(branch.module, "output")}, shape) as seen:
            recording.run_block(block.index, recording.pre(block.index), 1, module=run)
        outs.append(seen["it"].double())
    whole = (outs[2] - outs[0]).abs().max()
    return float((outs[0] - 2 * outs[1] + outs[2]).abs().max() / whole) if float(whole) > 0 else float("nan")


def layouts_from_config(folder: Path) -> tuple[dict[str, PackedLayout], str]:
    """The layouts proved on a random model of two blocks with the folder's configuration; else the reason why
    not."""
    if not (folder / "config.json").is_file():
        return {}, "there is no config.json, by which their layout could be proved"
    try:
        config = read_config(folder, remote_code=False)
        _shrink(config)
        with drawing_from(0):
            hf = transformers.AutoModel.from_config(config, trust_remote_code=False)
        return layouts_of(open_live(hf.float(), None, folder.name, None, pack=False)), ""
    except (
        ValueError,
        TypeError,
        LookupError,
        OSError,
        RuntimeError,
        AttributeError,
        ImportError,
        StrictDataclassError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return {}, f"no small model of this configuration could be made to prove their layout ({reason})"


def _shrink(config: Any) -> None:
    """Fewer blocks, tokens and experts, the same widths."""
    config.num_hidden_layers = min(config.num_hidden_layers, _SHRUNK_BLOCKS)
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(config, name, None):
            setattr(config, name, list(getattr(config, name))[: config.num_hidden_layers])
    config.vocab_size = min(config.vocab_size, _SHRUNK_ROWS)
    for name in ("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(getattr(config, name), _SHRUNK_EXPERTS if "per_tok" not in name else 1))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, getattr(config, name) % config.vocab_size)

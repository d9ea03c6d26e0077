"""The types that numbers are kept in: by the name of a tensor's like, with a prefix or without, and never for
codes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.export.stored_types import cast_as_stored, pattern, round_as_stored, stored_types
from regraft.model.load import load
from small import opened

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


def types_in(tmp_path, **tensors):
    """The types in two files that hold tensors of these types."""
    names = list(tensors)
    for number, some in enumerate((names[::2], names[1::2])):
        file = tmp_path / f"model-{number}.safetensors"
        save_file({name.replace("__", "."): torch.ones(3).to(tensors[name]) for name in some}, file)
    return stored_types(SimpleNamespace(folder=tmp_path))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.layers.12.mlp.w2.weight", "model.layers.#.mlp.w2.weight"),
        ("h.0.experts.31.bias", "h.#.experts.#.bias"),
        ("stack.7", "stack.#"),
        ("w1.conv1d.2b.weight", "w1.conv1d.2b.weight"),
    ],
)
def test_a_number_between_dots_stands_for_every_block(name, wanted):
    assert pattern(name) == wanted


def test_every_file_is_read_and_the_commonest_type_is_that_of_new_names(tmp_path):
    kinds = {
        "h__0__a": HALF,
        "h__1__a": HALF,
        "h__0__n": SINGLE,
        "b": BRAIN,
        "d": DOUBLE,
        "h__1__n": SINGLE,
        "h__2__a": HALF,
    }
    found = types_in(tmp_path, **kinds)
    assert found == {"": HALF, "h.#.a": HALF, "h.#.n": SINGLE, "b": BRAIN, "d": DOUBLE}


@pytest.mark.parametrize("code", [torch.uint8, torch.int8, torch.int32, torch.float8_e4m3fn])
def test_files_that_hold_codes_tell_no_types(tmp_path, code):
    assert types_in(tmp_path, a=HALF, b=HALF, c=code) == {}


def test_positions_and_masks_beside_the_numbers_are_no_codes(tmp_path):
    assert types_in(tmp_path, a=HALF, position_ids=torch.int64, mask=torch.bool) == {"": HALF, "a": HALF}


def test_where_there_are_no_numbers_there_are_no_types(tmp_path):
    assert types_in(tmp_path, position_ids=torch.int64, mask=torch.bool) == {}
    assert stored_types(SimpleNamespace(folder=None)) == {}


def named(*names):
    """A module whose parameters bear these names; each holds a third, which every type rounds differently."""
    module = nn.Module()
    for name in names:
        *owners, last = name.split(".")
        at = module
        for owner in owners:
            if not hasattr(at, owner):
                at.add_module(owner, nn.Module())
            at = getattr(at, owner)
        at.register_parameter(last, nn.Parameter(torch.full((2,), 1 / 3)))
    return module


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("h.3.a.weight", HALF),
        ("base.h.0.a.weight", HALF),
        ("base.h.5.norm.weight", BRAIN),
        ("norm.weight", SINGLE),
        ("base.norm.weight", SINGLE),
        ("head.weight", DOUBLE),
        ("new.weight", HALF),
        ("h.0.a_norm.weight", HALF),
        ("weight", HALF),
    ],
)
def test_a_tensor_has_the_type_of_its_like_with_a_prefix_or_without(name, wanted):
    """A norm at the end of the model is no like of each block's, whichever stands first in the file."""
    types = {
        "": HALF, "norm.weight": SINGLE, "other.head.weight": DOUBLE, "h.#.norm.weight": BRAIN,
        "h.#.a.weight": HALF,
    }  # fmt: skip
    if name == "weight":
        types = {"": HALF, "some_weight": SINGLE}
    for order in (list(types), list(reversed(types))):
        module = cast_as_stored(named(name), {known: types[known] for known in order})
        assert next(module.parameters()).dtype == wanted, order


def test_rounding_goes_to_the_type_on_disk_and_stays_in_the_type_that_is_computed_in():
    types = {"": HALF, "a": BRAIN, "b": SINGLE, "c": HALF}
    for order in (("a", "b", "c"), ("b", "a"), ("a", "b")):
        module = named(*order)
        assert round_as_stored(module, types), "the last one need not be the one that is rounded"
        for name, p in module.named_parameters():
            assert torch.equal(p, torch.full((2,), 1 / 3).to(types[name]).float())
            assert p.dtype == SINGLE
        assert not round_as_stored(module, types), "what is rounded stays"
    assert not round_as_stored(named("b"), types)


def test_without_types_nothing_is_rounded_or_cast():
    module = named("a")
    assert not round_as_stored(module, {})
    assert cast_as_stored(module, {}) is module
    assert module.a.dtype == SINGLE
    assert module.a[0] == torch.tensor(1 / 3)


def test_what_holds_whole_numbers_is_left_alone():
    module = nn.Module()
    module.register_parameter("codes", nn.Parameter(torch.tensor([3, 4099]), requires_grad=False))
    module.register_parameter("a", nn.Parameter(torch.tensor([1 / 3])))
    types = {"": HALF}
    assert round_as_stored(module, types)
    assert cast_as_stored(module, types).codes.tolist() == [3, 4099]
    assert (module.codes.dtype, module.a.dtype) == (torch.int64, HALF)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_folder_whose_names_lack_the_prefix_is_written_in_its_own_types(prefix, tmp_path):
    """The norm behind the last block in single precision, which puts it first in the file; everything else in
    half."""
    hf = opened("llama").hf
    hf.save_pretrained(tmp_path / "given")
    kinds = {name: SINGLE if name == "model.norm.weight" else BRAIN for name, _ in hf.named_parameters()}
    state = {name: tensor.to(kinds[name]) for name, tensor in hf.state_dict().items()}
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in state.items()}
    save_file(renamed, tmp_path / "given" / "model.safetensors", metadata={"format": "pt"})
    types = stored_types(load(tmp_path / "given", pack=False))
    module = cast_as_stored(hf, types)
    assert {name: p.dtype for name, p in module.named_parameters()} == kinds


def test_a_half_precision_checkpoint_with_positions_is_written_in_half_precision(tmp_path):
    hf = opened("bert").hf.to(BRAIN)
    hf.save_pretrained(tmp_path / "given")
    state = {name: tensor.contiguous() for name, tensor in hf.state_dict().items() if "decoder" not in name}
    state["bert.embeddings.position_ids"] = torch.arange(128)[None]
    save_file(state, tmp_path / "given" / "model.safetensors", metadata={"format": "pt"})
    model = load(tmp_path / "given", pack=False)
    run_experiment(experiments()["prune"], model, drop=[1], prompts=["5 6 7"], save=str(tmp_path / "made"))
    kinds = set(stored_types(SimpleNamespace(folder=tmp_path / "made")).values())
    assert kinds == {BRAIN}

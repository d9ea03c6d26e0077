"""Experiments on streamed models find what they find on whole ones, or refuse before any work."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from safetensors.torch import load_file

import regraft
from regraft.experiments.intervene.quantization.packed_checkpoint import write_packed
from regraft.model.load import load
from small import ids, opened
from streamed_models import bare, least, near

__all__ = ["bare"]

EXPERIMENTS = {
    "lens": {}, "geometry": {}, "knockout": {}, "swap": {}, "patch": {},
    "neurons": {}, "ablate": {}, "noise": {}, "replacement": {}, "prune": {}, "repeat": {}, "push": {},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_find_the_same(name):
    whole = load("specimen:gpt2", pack=False)
    model = least("specimen:gpt2")
    taken = {p.name for p in regraft.core.registry.experiments()[name].parameters}
    options = {"count": 2} if "count" in taken else {}
    options |= EXPERIMENTS[name]
    same_numbers(name, options, model, whole)


@pytest.mark.slow
def test_quantization_finds_the_same():
    whole, model = load("specimen:gpt2", pack=False), least("specimen:gpt2")
    same_numbers("quantize", {"count": 1, "tokens": 4, "bits": [4]}, model, whole)


def same_numbers(name, options, model, whole):
    found, wanted = (getattr(regraft, name)(one, **options) for one in (model, whole))
    for variable in wanted.data_vars:
        if wanted[variable].dtype.kind == "f" and "second" not in variable:
            size = float(np.nanmax(np.abs(wanted[variable]))) if wanted[variable].size else 0.0
            np.testing.assert_allclose(
                found[variable], wanted[variable], atol=1e-4 * max(size, 1e-3), err_msg=str(variable)
            )
    assert "streamed from disk" in found.attrs["opened"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("quantizers", "lets libraries pack whole blocks"), ("shuffle", "compares the weights of all blocks")],
)
def test_what_needs_all_blocks_is_refused_before_any_work(name, said):
    model = least("specimen:gpt2")
    before = sum(model.streamed.reads)
    with pytest.raises(ValueError, match=rf"{said}.* and this model is streamed: open it whole"):
        getattr(regraft, name)(model)
    with pytest.raises(ValueError, match="a model is written from all its weights"):
        regraft.prune(model, drop=[2], save="/nowhere/at/all")
    assert sum(model.streamed.reads) == before


def test_packed_integers_are_streamed(tmp_path):
    small = opened("qwen3")
    (tmp_path / "int").mkdir()
    write_packed(copy.deepcopy(small.hf), tmp_path / "int", small.blocks, [4] * len(small.blocks), 16)
    whole, model = load(tmp_path / "int", pack=False), least(tmp_path / "int")
    clean, recording = (one.record([ids(6, 1)]) for one in (whole, model))
    near(recording["logits"], clean["logits"])
    assert any(name.endswith("weight_packed") for name in load_file(tmp_path / "int" / "model.safetensors"))

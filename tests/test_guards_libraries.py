"""What another library is asked to quantize, told by one that stands in for it: which matrices, in which
groups, which text."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regraft.experiments.intervene.quantization import libraries
from regraft.experiments.intervene.quantization.libraries import (
    METHODS,
    held_bytes,
    integer_weights,
    linears,
    replaced_linears,
    whole_group,
    with_linears,
)
from small import opened

COPIES = next(method.copies for method in METHODS if method.name == "GPTQ 4 bits")


@pytest.fixture
def asked(monkeypatch):
    """A stand-in for llmcompressor that keeps what it was asked and halves every matrix that is a target."""
    kept = {}

    def oneshot(model, dataset, recipe, num_calibration_samples, max_seq_length):
        (groups,) = recipe
        kept.update(dataset=dataset, groups=groups, samples=num_calibration_samples, longest=max_seq_length)
        with torch.no_grad():
            for name in [name for group in groups.values() for name in group["targets"]]:
                model.get_submodule(name).weight.mul_(0.5)

    modifiers = SimpleNamespace(GPTQModifier=lambda config_groups: config_groups)
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(Dataset=SimpleNamespace(from_dict=lambda columns: columns))
    )
    monkeypatch.setitem(sys.modules, "llmcompressor", SimpleNamespace(oneshot=oneshot))
    monkeypatch.setitem(sys.modules, "llmcompressor.modifiers.gptq", modifiers)
    monkeypatch.setitem(sys.modules, "llmcompressor.modifiers", SimpleNamespace(gptq=modifiers))
    return kept


@pytest.mark.parametrize(("name", "group"), [("llama", 24), ("gpt2", 16)])
def test_every_matrix_of_the_blocks_named_is_quantized_in_the_longest_group_that_divides_it(
    name, group, asked, monkeypatch
):
    rows = [[7], [5, 6], [5, 6, 7, 8], *([9, 9, 9] for _ in range(70))]
    monkeypatch.setattr(libraries, "corpus", lambda model: rows)
    model = opened(name)
    before = model.fingerprint()
    made = COPIES(model, model.blocks[1:], group)
    assert model.fingerprint() == before
    read = rows[1:65]
    assert asked["dataset"] == {"input_ids": read, "attention_mask": [[1] * len(row) for row in read]}
    assert (asked["samples"], asked["longest"]) == (64, 4)
    wanted = {}
    for block in model.blocks[1:]:
        for path, linear in linears(with_linears(block.module)):
            longest = max(n for n in range(1, group + 1) if group % n == 0 and linear.in_features % n == 0)
            wanted.setdefault(longest, []).append(f"{block.path}.{path}")
    assert asked["groups"] == {
        f"group_{size}": {
            "targets": names,
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": size,
            },
        }
        for size, names in wanted.items()
    }
    for block, copy in zip(model.blocks[1:], made, strict=True):
        own = dict(linears(with_linears(block.module)))
        assert own
        for path, linear in linears(copy.make()):
            torch.testing.assert_close(linear.weight, own[path].weight / 2)


def test_a_group_that_does_not_divide_is_named_before_the_inputs(asked, monkeypatch):
    monkeypatch.setattr(libraries, "corpus", lambda model: [[5, 6]])
    with pytest.raises(ValueError, match="groups of 7 do not divide 32 inputs"):
        COPIES(opened("llama"), opened("llama").blocks, 7)
    assert not asked


def test_groups_divide_the_inputs_and_what_was_asked_for():
    assert [whole_group(*pair) for pair in ((96, 64), (64, 96), (48, 16), (10, 15))] == [32, 32, 16, 5]
    with pytest.raises(ValueError, match="groups of 7 do not divide 32 inputs"):
        whole_group(32, 7)
    assert integer_weights(3, 8)["num_bits"] == 3
    assert integer_weights(3, 8)["group_size"] == 8


def test_maps_are_exchanged_but_for_those_kept_by_their_own_name():
    module = nn.Sequential(
        nn.Linear(2, 3), nn.ModuleDict({"wo": nn.Linear(3, 4), "wi": nn.Linear(4, 5)}), nn.LayerNorm(5)
    )
    made = replaced_linears(
        module, lambda linear: nn.Embedding(linear.in_features, linear.out_features), ("wo",)
    )
    assert isinstance(module[0], nn.Linear)
    assert made[1]["wo"] is not module[1]["wo"]
    assert torch.equal(made[1]["wo"].weight, module[1]["wo"].weight)
    kinds = [(name, type(child).__name__) for name, child in made.named_modules() if name and name != "1"]
    assert kinds == [("0", "Embedding"), ("1.wo", "Linear"), ("1.wi", "Embedding"), ("2", "LayerNorm")]
    assert held_bytes(made) == 4 * (2 * 3 + 3 * 4 + 4 + 4 * 5 + 2 * 5)
    half = nn.Linear(3, 5, dtype=torch.float16)
    half.weight.quant_state = SimpleNamespace(absmax=torch.zeros(7), code=torch.zeros(16))
    assert held_bytes(half) == 2 * 15 + 4 * (7 + 16) + 2 * 5

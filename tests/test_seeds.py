"""Seeds are arguments: nothing reads or moves the user's random numbers, and a seed reaches every measurement
inside another."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import regraft
from regraft.core.randomness import drawing_from
from regraft.core.registry import experiments
from regraft.experiments.intervene.quantization import quantize
from regraft.experiments.observe import correlations
from regraft.experiments.running import run_experiment
from small import opened

SOURCE = Path(regraft.__file__).parent
DRAWING = (
    "attention", "cache", "compile", "correlations", "disaggregate", "geometry", "linearity", "neurons",
    "noise", "quantize", "shuffle", "trajectories",
)  # fmt: skip


def test_every_experiment_that_draws_takes_a_seed_and_no_other_one_does():
    assert tuple(sorted(name for name, one in experiments().items() if one.draws)) == DRAWING
    assert all(p.name != "seed" for one in experiments().values() for p in one.parameters)


def test_the_users_random_numbers_are_as_they_were():
    """Neither moved by a seed nor read back for one."""
    model = opened("llama")
    options = dict(prompts=["5 6 7 8", "9 8 7 6 5"], tokens=2)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = run_experiment(experiments()["noise"], model, 3, **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again = regraft.noise(model, seed=3, **options)
    other = regraft.noise(model, seed=4, **options)
    assert np.array_equal(first.ratio, again.ratio)
    assert not np.array_equal(first.ratio, other.ratio)
    assert np.array_equal(
        regraft.noise(model, **options).ratio, regraft.noise(model, seed=0, **options).ratio
    )


def test_numbers_of_a_seed_for_a_while():
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    with drawing_from(5):
        drawn = torch.rand(3)
    assert torch.equal(torch.rand(2), wanted)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_nobody_seeds_or_asks_the_global_generator(file):
    """`manual_seed` is called on generators only, but for the one place that puts everything back."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in ("manual_seed", "initial_seed", "seed_all"):
            called = ast.unparse(node.value)
            assert "Generator" in called or file.name == "randomness.py", ast.unparse(node)


def test_a_seed_reaches_what_is_measured_inside(monkeypatch):
    model, seen = opened("llama"), []

    def measured(model, name, seed=0, **options):
        seen.append((name, seed))
        values = xr.DataArray(
            [1.0, 2.0, 3.0, 4.0], {"block": [b.address for b in model.blocks]}, attrs={"correlate": "x"}
        )
        return xr.Dataset({"rank_ratio": values.expand_dims(role=["q"]), "gap":
        values.expand_dims(part=["block"]), "x": values},
                          attrs={"experiment": name})  # fmt: skip

    monkeypatch.setattr(quantize, "measured", measured)
    monkeypatch.setattr(correlations, "measured", measured)
    for name, options in (
        ("quantize", dict(prompts=["5 6 7 8"], tokens=2)),
        ("correlations", dict(of=["noise", "lens"])),
    ):
        run_experiment(experiments()[name], model, 9, **options)
    assert set(seen) == {("spectra", 9), ("linearity", 9), ("noise", 9), ("lens", 9)}

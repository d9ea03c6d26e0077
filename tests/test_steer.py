"""Steering beside vectors, losses and text made by plain hooks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn.functional import cross_entropy

from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.reporting.drawings import drawing_of
from small import ids, opened

RUN = partial(run_experiment, experiments()["steer"])
STRENGTHS = [-1.0, 0.0, 2.0]


@pytest.fixture
def files(tmp_path):
    """Two sets of texts as token ids, of unequal lengths, and the rows that they say."""
    sets = {}
    for number, name in enumerate(("towards", "away")):
        rows = [ids(4 + i % 3, 40 * number + i) for i in range(6)]
        (tmp_path / f"{name}.txt").write_text("\n".join(" ".join(map(str, row)) for row in rows))
        sets[name] = (str(tmp_path / f"{name}.txt"), rows)
    return sets


def plain(model, row, block, shift=0.0):
    """Stream behind a block, and the summed loss of a text, with a vector added there by a hook."""
    kept = []

    def add(module, args, out):
        first = out[0] if isinstance(out, tuple) else out
        kept.append(first)
        changed = first + shift
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    handle = model.blocks[block].module.register_forward_hook(add)
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    handle.remove()
    return kept[0][0], float(cross_entropy(logits[:-1], torch.tensor(row[1:]), reduction="sum"))


def per_token(model, rows, block, shift):
    return sum(plain(model, row, block, shift)[1] for row in rows) / sum(len(row) - 1 for row in rows)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_vector_effect_and_cost_are_those_of_plain_hooks(name, files):
    model = opened(name)
    (towards, wanted), (away, other) = files["towards"], files["away"]
    prompts = [" ".join(map(str, ids(5, 90)))]
    data = RUN(
        model, towards=towards, away=away, blocks=[1, 2], strengths=STRENGTHS, prompts=prompts, tokens=4
    )
    assert data.effect.dims == ("block", "strength")

    def mean(rows, block):
        return torch.cat([plain(model, row, block)[0][1:] for row in rows]).double().mean(0)

    for row, block in enumerate((1, 2)):
        vector = (mean(wanted[::2], block) - mean(other[::2], block)).float()
        assert float(data.length[row]) == pytest.approx(float(vector.norm()), rel=1e-4)
        twin = (mean(wanted[1::2], block) - mean(other[1::2], block)).float()
        cosine = torch.cosine_similarity(vector, twin, dim=0)
        assert float(data.agreement[row]) == pytest.approx(float(cosine), abs=1e-4)
        for half, measured in ((0, "effect"), (1, "held_out")):
            a, b = wanted[half::2], other[half::2]
            clean = per_token(model, b, block, 0.0) - per_token(model, a, block, 0.0)
            for column, strength in enumerate(STRENGTHS):
                shift = strength * vector
                moved = per_token(model, b, block, shift) - per_token(model, a, block, shift)
                assert float(data[measured][row, column]) == pytest.approx(moved - clean, abs=2e-5), measured
    nothing = STRENGTHS.index(0.0)
    assert np.allclose(data.fluency[:, nothing], 0.0, atol=1e-5)
    assert (abs(data.fluency.values[:, [0, 2]]) > 1e-6).all()
    written = model.generate(prompts[0], tokens=4)
    assert (data.written.values[:, nothing] == str(written)).all()


def test_what_it_is_not_given_is_told_before_anything_is_measured(files, tmp_path):
    model, (towards, _), (away, _) = opened("llama"), files["towards"], files["away"]
    few = tmp_path / "few.txt"
    few.write_text("5 6 7\n8\n9 10\n11 12")

    def refused(match, **options):
        with pytest.raises(ValueError, match=match):
            RUN(model, **{"towards": towards, "away": away, **options})

    refused("there are no texts to steer by: give a file of them with --towards", towards="")
    refused("give a file of them with --away", away="")
    refused("holds 3 texts of two tokens or more: give at least 4", away=str(few))
    refused("there is no block 4 to steer behind: there are 4, 0 to 3", blocks=[4])
    refused("there is no block -1 to steer behind", blocks=[-1])
    refused("a strength of nan is no number to multiply by", strengths=[float("nan")])
    with pytest.raises(ValueError, match="does not write text from left to right"):
        RUN(opened("bert"), towards=towards, away=away)


def dataset(held_out, fluency):
    dims = ("block", "strength")
    return xr.Dataset(
        {
            "effect": (dims, 2 * np.array(held_out)),
            "held_out": (dims, np.array(held_out)),
            "fluency": (dims, np.array(fluency)),
            "agreement": ("block", [0.5, 0.25]),
        },
        coords={"block": ["3", "6"], "strength": [2.0, -1.0, 0.5]},
        attrs={"experiment": "steer"},
    )


def test_the_finding_is_the_strongest_effect_that_costs_less_than_it_moves():
    drawing = drawing_of(dataset([[0.1] * 3] * 2, [[0.0] * 3] * 2))
    found = drawing.finding(dataset([[9.0, 0.2, 0.1], [0.3, 0.4, 0.25]], [[9.5, 0.0, 0.0], [0.1, 0.5, 0.0]]))
    assert found.startswith(
        "Behind block 6, 2 times the vector makes the model prefer other texts of the kind by 0.300"
    )
    assert "(those of the vector by 0.600), for 0.100 on its own completions" in found
    assert "a cosine of 0.25" in found
    worse = drawing.finding(dataset([[0.1] * 3] * 2, [[0.2] * 3] * 2))
    assert worse == "No strength moves other texts by more than it costs the model's own completions."
    (_, reach), (_, cost) = drawing.figures(dataset([[0.1, 0.2, 0.3]] * 2, [[0.0] * 3] * 2))
    assert list(reach.data[0].x) == [-1.0, 0.5, 2.0]
    assert list(reach.data[0].y) == [0.4, 0.6, 0.2]
    assert len(reach.data) == 4
    assert len(cost.data) == 2

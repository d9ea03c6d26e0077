"""Guards that stand alone: entry points, checksums, mismatched shapes, numbers in YAML, tokens of a lens,
columns in order."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from regraft.checkpoint.dissection import Component, Outside, StackFound
from regraft.checkpoint.locate import CheckpointError, _check_sums, check_folder, digest, weights_digest
from regraft.cli import console as commands
from regraft.core import registry as module
from regraft.data.evaluation import evaluation
from regraft.experiments.observe.lens import lens, token_coords
from regraft.model.float64 import KeepFloat64
from regraft.model.from_files import _mismatch_sentence, _refuse_incomplete, _refuse_truncated
from regraft.model.load import _refuse_nonfinite
from regraft.reporting.anatomy_drawing import columns
from regraft.reporting.figures.bit_figures import quantize_figures
from regraft.reporting.figures.rebuild_figures import OUTSIDE, rebuild_figures, split
from regraft.tokenizers.text_chunks import read_lengths
from regraft.tokenizers.transplanted_folder import check_start
from small import opened


@pytest.fixture
def points(monkeypatch):
    """Entry points of other packages, as they are set; what was read before is forgotten on both sides."""
    given = []
    monkeypatch.setattr(module, "entry_points", lambda group: given)
    module.experiments.cache_clear()
    yield given
    module.experiments.cache_clear()


def point(name, value):
    return SimpleNamespace(name=name, value=value)


def test_experiments_of_other_packages(points, tmp_path, monkeypatch):
    (tmp_path / "far_away.py").write_text('def distance(model, size: int = 2):\n    """How far."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    points.append(point("distance", "far_away:distance"))
    found = module.experiments()["distance"]
    assert (found.module, found.parameters[0].default) == ("far_away", 2)
    module.experiments.cache_clear()
    points[:] = [point("x", "not_there_at_all:x")]
    with pytest.raises(ValueError, match="not installed"):
        module.experiments()
    (tmp_path / "space").mkdir()
    points[:] = [point("x", "space:x")]
    with pytest.raises(ValueError, match="not installed"):
        module.experiments()
    (tmp_path / "far_away.py").write_text('def lens(model):\n    """Another."""\n')
    points[:] = [point("lens", "far_away:lens")]
    with pytest.raises(ValueError, match="two experiments"):
        module.experiments()


def sums(folder, **files):
    return "".join(f"{hashlib.sha256(content).hexdigest()} *{name}\n" for name, content in files.items())


def test_checksums(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    _check_sums(tmp_path)
    (tmp_path / "SHA256SUMS").write_text(sums(tmp_path, a=b"1", b=b"2") + "\n")
    _check_sums(tmp_path)
    (tmp_path / "SHA256SUMS").write_text(sums(tmp_path, a=b"1", none=b"2"))
    with pytest.raises(CheckpointError, match="none"):
        _check_sums(tmp_path)
    (tmp_path / "SHA256SUMS").write_text(sums(tmp_path, a=b"1", b=b"3"))
    with pytest.raises(CheckpointError, match="b differs"):
        _check_sums(tmp_path)
    assert digest([tmp_path / "a", tmp_path / "b"]) == hashlib.sha256(b"12").hexdigest()
    for name in ("y.safetensors", "x.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    assert weights_digest(tmp_path) == hashlib.sha256(b"x.safetensorsy.safetensors").hexdigest()
    for folder in (tmp_path / "a", tmp_path):
        with pytest.raises(CheckpointError, match=r"folder"):
            check_folder(folder)


def info(**keys):
    return {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": [], **keys}


def test_weights_that_do_not_belong_to_their_configuration():
    folder, model = Path("somewhere"), opened("llama").hf
    _refuse_incomplete(folder, info())
    with pytest.raises(CheckpointError, match=r"6 tensors.*a, b, c, d and 2 more"):
        _refuse_incomplete(folder, info(missing_keys=list("fedcba")))
    with pytest.raises(CheckpointError, match=r"\(a, b, c, d\)"):
        _refuse_incomplete(folder, info(missing_keys=list("dcba")))
    with pytest.raises(CheckpointError, match=r"shapes of x"):
        _refuse_incomplete(folder, info(mismatched_keys=["x"]))
    _refuse_truncated(
        folder, model, info(unexpected_keys=["model.layers.9.strange.weight", "other", "model.norm.bias"])
    )
    wanted = ["model.layers.5.mlp.up_proj.weight", "model.layers.4.mlp.up_proj.weight", "other"]
    with pytest.raises(CheckpointError, match=r"2 tensors.*first model\.layers\.4\.mlp"):
        _refuse_truncated(folder, model, info(unexpected_keys=wanted))
    for message, detail in (
        ("first\n x: torch.Size([3])\n", "x: torch.Size([3])"),
        ("first\nthe Shape of y\nz", "the Shape of y"),
        ("first\nz", "first"),
    ):
        assert _mismatch_sentence(folder, ValueError(message)).endswith(f": {detail}")
    _refuse_nonfinite(model)
    model.register_buffer("seen", torch.tensor([1.0, float("inf")]))
    _refuse_nonfinite(model)
    model.seen[0] = float("nan")
    with pytest.raises(CheckpointError, match="seen"):
        _refuse_nonfinite(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("-inf")
    with pytest.raises(CheckpointError, match=r"infinite.*lm_head"):
        _refuse_nonfinite(model)


@pytest.mark.parametrize(
    "said",
    [
        "{mean: 4, deviation: 1.5}",
        "{mean: 4.5, deviation: 1}",
        "{mean: 4, deviation: 1}",
        "{mean: 4.0, deviation: 1.5}",
    ],
)
def test_whole_and_broken_numbers_in_yaml(tmp_path, said):
    (tmp_path / "lengths.yaml").write_text(f"gaussian: {said}")
    assert read_lengths(str(tmp_path / "lengths.yaml")).mean == pytest.approx(4.25, abs=0.4)
    for wrong in (
        "{mean: '4', deviation: 1}",
        "{mean: true, deviation: 1}",
        "{mean: 4, deviation: 1, longest: 2.5}",
        "{mean: 4, deviation: 1, more: 1}",
    ):
        (tmp_path / "lengths.yaml").write_text(f"gaussian: {wrong}")
        with pytest.raises(ValueError, match="neither"):
            read_lengths(str(tmp_path / "lengths.yaml"))
    (tmp_path / "lengths.yaml").write_text("probabilities: [0.5, 0, 0.5]")
    assert read_lengths(str(tmp_path / "lengths.yaml")).mean == 2


def test_every_token_of_a_lens_has_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    model = opened("llama")
    data = lens(model, ["5,6,7,8", "9,10,11"], tokens=3)
    evaluated = evaluation(model, ["5,6,7,8", "9,10,11"], tokens=3)
    found = token_coords(model, evaluated)
    said = [
        (n, i, t)
        for n, c in enumerate(evaluated.flat)
        for i, t in enumerate(c.completion_ids, len(c.prompt_ids))
    ]
    assert found["prompt"][1].tolist() == [n for n, _, _ in said]
    assert found["position"][1].tolist() == [i for _, i, _ in said]
    assert found["text"][1].tolist() == [str(t) for _, _, t in said]
    assert set(found["type"][1]) == {"number"}
    assert data.position.values.tolist() == [i for _, i, _ in said]
    ranks = data["rank"].values
    (recording,) = evaluated.recordings
    last = recording.head(recording.post(3)).log_softmax(-1)
    row = {n: [c.prompt_ids for c in evaluated.flat].index(evaluated.flat[n].prompt_ids) for n in (0, 1)}
    for place, (n, i, token) in enumerate(said):
        logits = last[row[n], i - 1]
        assert ranks[-1, place] == int((logits > logits[token]).sum())
        assert data.probability.values[-1, place] == pytest.approx(float(logits[token].exp()), rel=1e-4)
    hurt = [(ranks[b + 1] > ranks[b]).mean() for b in range(4)]
    assert data.hurt_rate.values.tolist() == pytest.approx(hurt)
    stays = [next((d for d in range(5) if (ranks[d:, p] < 10).all()), np.nan) for p in range(len(said))]
    assert data.crystallization.values.tolist() == pytest.approx(stays, nan_ok=True)
    assert data.attrs["last_depth_difference"] < 1e-5


def stack(path, size):
    return StackFound(path, 1, (), size, 0, ())


def test_columns_of_a_drawing_stand_in_order():
    outside = tuple(
        Outside(name, use, (9, 9), "F32", 81)
        for name, use in (("wte", "token table"), ("encoder.norm", "norm"), ("lm_head", "head"))
    )
    stacks = (stack("decoder.b", 1), stack("encoder.a", 2), stack("x", 9))
    made = columns(Component("", stacks, outside, (), 1, 1, {}))
    assert [[box.heading for box in boxes] for boxes in made] == [
        ["tables", "head"],
        ["outside the blocks"],
        [],
    ]
    assert columns(Component("", (), outside, (), 1, 1, {}))[0][0].heading == "no repeated blocks"


def test_float64_stays():
    x = torch.full((3,), 1 / 3, dtype=torch.float64)
    with KeepFloat64():
        assert x.float() is x
        assert x.to(torch.float32).dtype == torch.float64
        assert x.softmax(-1, dtype=torch.float32).dtype == torch.float64
        assert x.bfloat16().dtype == torch.bfloat16
        assert torch.ones(2).float().dtype == torch.float32
    assert x.float().dtype == torch.float32


def test_numbers_of_an_anatomy_stand_on_the_right(monkeypatch):
    printed = []
    monkeypatch.setattr(commands.console, "print", lambda shown, **style: printed.append(shown))
    commands.show_anatomy(opened("llama"), False)
    parts, sites, checks = printed
    assert [column.justify for column in parts.columns] == ["left", "left", "left", "right", "right"]
    assert [column.justify for column in sites.columns] == ["left", "left", "left"]
    assert [column.justify for column in checks.columns] == ["left", "left", "right", "left"]
    assert parts.row_count == 5
    assert next(iter(parts.columns[3].cells)) == f"{96 * 32:,}"
    assert [list(column.cells)[-1] for column in checks.columns] == [
        "causal",
        "no position sees a later one",
        "yes",
        "",
    ]


def test_rows_and_columns_of_figures_are_what_they_are_called():
    decimals = np.array([17, 5, 9, 3, 12])
    stages = ["embed", "0.q", "0.k", "encoder.1.q", "logits"]
    data = xr.Dataset(
        {"decimals": ("stage", decimals), "largest": ("stage", decimals / 100)}, {"stage": stages}
    )
    (found,) = rebuild_figures(data)
    (trace,) = found[1].data
    assert list(trace.x) == ["0", "encoder.1", OUTSIDE]
    assert list(trace.y) == ["embed", "q", "k", "logits"]
    table = np.array(trace.z, dtype=float)
    assert [table[1, 0], table[2, 0], table[1, 1], table[0, 2], table[3, 2]] == [5, 9, 3, 17, 12]
    assert np.isnan(table).sum() == 12 - 5
    assert np.nanmax(np.array(trace.customdata, dtype=float)) == pytest.approx(0.17)
    assert [split(stage) for stage in stages] == [
        (OUTSIDE, "embed"),
        ("0", "q"),
        ("0", "k"),
        ("encoder.1", "q"),
        (OUTSIDE, "logits"),
    ]
    numbers = np.arange(6.0).reshape(2, 3)
    bits = xr.Dataset(
        {
            "increase": (("block", "bits"), 10.0 ** numbers.T),
            "matrix_increase": (("role", "block"), numbers),
            "whole_bytes": ("bits", [1e6, 2e6]), "whole_loss": ("bits", [3.0, 2.0]),
            "recipe_bytes": ("recipe", [4e6, 5e6]),
            "recipe_loss": ("recipe", [2.5, 1.5]),
            "recipe_bits": (("recipe", "block"), [[4, 4, 4], [3, 4, 5]]),
        },
        {"block": ["a", "b", "c"], "bits": [4, 2], "role": ["q", "k"], "recipe": ["plain", "best"]},
        {"best_recipe": "best", "clean_loss": 1.0},
    )  # fmt: skip
    alone, matrices, recipes, curve = (figure for _, figure in quantize_figures(bits))
    assert (list(alone.data[0].x), list(alone.data[0].y)) == (["a", "b", "c"], ["4 bits", "2 bits"])
    assert np.array(alone.data[0].z) == pytest.approx(numbers)
    assert (list(matrices.data[0].x), list(matrices.data[0].y)) == (["a", "b", "c"], ["q", "k"])
    assert np.array(matrices.data[0].z) == pytest.approx(numbers)
    assert (list(recipes.data[0].y), list(recipes.data[0].x)) == (["best", "plain"], [1.5, 2.5])
    assert list(recipes.data[0].hovertext) == ["3 4 5", "4 4 4"]
    assert (list(curve.data[0].x), list(curve.data[1].x)) == ([1, 2], [4, 5])


def test_what_a_decoder_starts_with_must_have_a_new_id():
    matching = SimpleNamespace(source_V=np.array([4, -1, 7]))
    model = opened("t5")
    for start, fine in ((4, True), (7, True), (0, False), (5, False)):
        model.hf.config.decoder_start_token_id = start
        if fine:
            check_start(model, matching)
        else:
            with pytest.raises(ValueError, match="start token"):
                check_start(model, matching)
    check_start(opened("llama"), matching)

"""Regions of a text: which token is where, and every metric for each of them from one sweep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import regraft
from regraft.cli.main import app, spread_lists
from regraft.model.load import load
from regraft.model.regions import OUTSIDE, Marker, marker_of, regions_of
from regraft.reporting.drawings import drawing_of
from regraft.sweeps.metrics import kl_to_clean, logit_difference, loss, top1_agreement
from regraft.sweeps.own_metrics import metric
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Scale, Variant, Zero
from small import ids, opened


@pytest.fixture(scope="module")
def tuned():
    return load("specimen:tuned")


def test_markers_as_they_are_written():
    assert marker_of("<think>...</think>") == Marker("think", "<think>", "</think>")
    assert marker_of("((...))") == Marker("((", "((", "))")
    for wrong in ("think", "<think>...", "...</think>", ""):
        with pytest.raises(ValueError, match=r"marks no region: write BEGIN\.\.\.END"):
            marker_of(wrong)
    with pytest.raises(ValueError, match="a region cannot be called outside"):
        marker_of("<outside>...</outside>")


def test_a_token_is_in_the_region_in_which_its_first_letter_stands(tuned):
    text = "What is 2 + 3? <think> 2 + 3 = 5 </think> 5."
    row = tuned.encode(text)
    found = regions_of(tuned, [row], "<think>...</think>", len(row))
    assert found.names == (OUTSIDE, "think")
    pieces = [tuned.token_text(token) for token in row]
    whole, at = "".join(pieces), 0
    begin, end = whole.index("<think>"), whole.index("</think>") + len("</think>")
    for piece, number in zip(pieces, found.number_BT[0].tolist(), strict=True):
        assert number == int(begin <= at < end), piece
        at += len(piece)
    assert 0 < int(found.number_BT.sum()) < len(row)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_metric_for_every_region_is_the_metric_on_these_tokens_alone(name):
    """And regions make up the whole: their means, weighted by their tokens, are the metric over all."""
    model = opened(name)
    prompts, answers = [ids(4, 1), ids(6, 2)], [ids(5, 3), ids(3, 4)]
    labels = [["", "", "", "", "a", "b", "a", "", "b"], [""] * 6 + ["b", "b", ""]]
    entropy = metric(
        lambda x: -(x.softmax(-1) * x.log_softmax(-1)).sum(-1), "nats", name="entropy", scored=True
    )
    metrics = [loss(), kl_to_clean(), top1_agreement(), entropy, logit_difference(3, 4)]
    variants = [Scale("1.mlp_out", 0.0), Variant([Zero("0.attn_out", 2)])]
    recording = model.record(prompts, answers, regions=labels)
    assert recording.regions.names == (OUTSIDE, "a", "b")
    result = sweep(recording, variants, metrics)
    plain = sweep(model.record(prompts, answers), variants, metrics)
    assert set(plain.values) < set(result.values)
    assert "logit_difference[a]" not in result.values, "one place of each prompt is in no region"
    for m in ("loss", "kl_to_clean", "top1_agreement", "entropy"):
        torch.testing.assert_close(result.values[m], plain.values[m], rtol=1e-4, atol=1e-6)
        total = sum(
            (result.values[f"{m}[{r}]"] * result.weights[f"{m}[{r}]"]).nan_to_num().sum(1)
            for r in (OUTSIDE, "a", "b")
        )
        torch.testing.assert_close(total / plain.weights[m].sum(), plain.mean(m), rtol=1e-4, atol=1e-6)
        for number, region in enumerate(recording.regions.names):
            only = recording.scored_BT & (recording.regions.number_BT == number)
            if not bool(only.any(1).all()):
                assert bool(result.values[f"{m}[{region}]"][:, ~only.any(1)].isnan().all())
                rows = only.any(1).nonzero()[:, 0].tolist()
            else:
                rows = [0, 1]
            texts = [prompts[r] + answers[r] for r in rows]
            counted = only[rows][:, : max(map(len, texts))]
            alone = sweep(model.record(texts, scored=counted), variants, metrics[:4])
            torch.testing.assert_close(
                result.values[f"{m}[{region}]"][:, rows], alone.values[m], rtol=1e-3, atol=1e-5
            )
            assert float(alone.mean(m)[0]) == pytest.approx(
                float(result.mean(f"{m}[{region}]")[0]), rel=1e-3, abs=1e-5
            )


def test_encoders_have_regions_of_the_tokens_themselves():
    model = opened("bert")
    row = ids(6, 2)
    scored = torch.tensor([[False, True, True, False, True, False]])
    labels = [["x", "x", "y", "y", "y", "x"]]
    result = sweep(model.record([row], scored=scored, regions=labels), Zero("0.mlp_out"), loss())
    only = torch.tensor([[False, True, False, False, False, False]])
    alone = sweep(model.record([row], scored=only), Zero("0.mlp_out"), loss())
    torch.testing.assert_close(result.values["loss[x]"], alone.values["loss"], rtol=1e-4, atol=1e-5)
    assert bool(result.values["loss[outside]"].isnan().all())


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        ("<think>...</think>", "text 0 has no '<think>', so it has no region 'think'"),
        ("What...</think>", "text 0 does not close its region 'What' with '</think>'"),
        (["<a>...</a>", "a...b"], "two regions have one name: a, a"),
        ([], "there is no region"),
        ([["x"]], r"the texts have \[\d+\] tokens, the labels are \[1\]"),
        ([["x"], "y"], "no list"),
    ],
)
def test_what_marks_no_region_is_refused(tuned, regions, said):
    with pytest.raises(ValueError, match=said):
        tuned.record("What is 2 + 3? It is 5.", regions=regions)


def test_blocks_are_told_by_region(tuned):
    """The tuned specimen thinks before it answers: both losses from one sweep."""
    prompts = [f"Problem: Anna has {a} coins, buys {b} and finds 5. How many?" for a, b in ((12, 9), (14, 3))]
    data = regraft.knockout(tuned, prompts=prompts, tokens=60, regions=["<think>...</think>"])
    assert data.region.values.tolist() == [OUTSIDE, "think"]
    assert data.region_increase.dims == ("region", "block")
    plain = regraft.knockout(tuned, prompts=prompts, tokens=60)
    np.testing.assert_allclose(data.loss, plain.loss, rtol=1e-4)
    drawn = drawing_of(data).figures(data)
    assert drawn[-1][0] == "Loss added in each region of the text"
    assert [trace.name for trace in drawn[-1][1].data] == [OUTSIDE, "think"]
    with pytest.raises(ValueError, match="choose --mode single"):
        regraft.knockout(tuned, mode="pairs", prompts=prompts, regions=["<think>...</think>"])
    with pytest.raises(ValueError, match=r"does not close its region 'think' .*more tokens"):
        regraft.knockout(tuned, prompts=prompts, tokens=12, regions=["<think>...</think>"])
    done = CliRunner().invoke(app, spread_lists(["knockout", "--regions", "think"]))
    assert done.exit_code == 2
    assert "marks no region" in done.output

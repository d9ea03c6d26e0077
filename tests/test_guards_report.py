"""Sentences of the report, from numbers whose answer is plain; tables, drawings and what stands on a page."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import xarray as xr

from regraft.cli.columns import aligned, short
from regraft.reporting import drawings as module
from regraft.reporting.chapter_section import csv_text, provenance_line
from regraft.reporting.drawings import drawing_of
from regraft.reporting.figures.bit_figures import quantize_finding, quantizers_finding
from regraft.reporting.figures.block_figures import correlation_finding, spectra_finding
from regraft.reporting.figures.component_figures import ablate_finding
from regraft.reporting.figures.graft_figures import certificate_finding
from regraft.reporting.figures.intervene_figures import knockout_finding, replacement_finding, swap_finding
from regraft.reporting.figures.observe_figures import crystallization, geometry_finding, lens_finding
from regraft.reporting.figures.patch_figures import patch_finding
from regraft.reporting.figures.rebuild_figures import rebuild_finding
from regraft.reporting.figures.route_figures import (
    noise_finding,
    repeat_finding,
    shuffle_finding,
    surgery_finding,
)
from regraft.reporting.markup import table
from regraft.reporting.page import footer
from regraft.reporting.theme import Drawing

NAN = float("nan")


def data(coords=None, attrs=None, **variables):
    return xr.Dataset(variables, coords or {}, attrs or {})


BLOCKS = {"block": ["a", "b", "c"]}


def said(finding, dataset, *words):
    text = finding(dataset)
    for word in words:
        assert word in text, text
    return text


def test_skipping_and_exchanging():
    one = data(BLOCKS, {"clean_loss": 2.0}, ratio=("block", [1.25, 4.0, 1.5]))
    said(
        knockout_finding,
        one,
        "Block b is the critical one",
        "4.0 times",
        "clean 2.000",
        "1.25 to 1.50 times",
        "Block a is missed least",
    )
    assert knockout_finding(data(BLOCKS)) == ""
    cost = np.array([[0.0, 0.5, 0.9], [0.5, 0.0, 0.1], [0.9, 0.1, 0.0]])
    two = data(
        {**BLOCKS, "other": ["a", "b", "c"]},
        {"tolerance": 0.01, "interchangeable_pairs": "none", "pairs": 3},
        cost=(("block", "other"), cost),
        mean_cost=("block", [0.7, 0.3, 0.5]),
    )
    said(swap_finding, two, "b with c (+0.100", "block a is the dearest", "+0.70", "none of 3 pairs")


def test_replacing_and_rounding():
    one = data({"change": ["own", "relu", "identity", "lost"]}, everywhere=("change", [1e-5, 0.5, 2.0, NAN]))
    text = said(
        replacement_finding, one, "relu costs least (+0.500", "identity most (+2.00)", "own changes nothing"
    )
    assert "lost" not in text
    own = data({"change": ["own"]}, everywhere=("change", [0.0]))
    assert replacement_finding(own) == "Own in every block at once changes nothing."
    bits = data(
        {**BLOCKS, "bits": [4, 2], "recipe": ["uniform", "oracle", "bad"]},
        {"clean_bytes": 200.0, "clean_loss": 1.0, "saved": ""},
        increase=(("block", "bits"), [[0.1, 1.0], [0.2, 3.0], [0.0, 0.5]]),
        sensitivity=("block", [0.5, 0.1, 0.2]),
        recipe_loss=("recipe", [1.2, 1.1, 1.9]),
        recipe_bytes=("recipe", [70.0, 60.0, 50.0]),
    )
    said(
        quantize_finding,
        bits,
        "At 2 bits, block b alone costs most, +3.00",
        "median block +1.000",
        "at 3 bits, block a alone costs most, +0.500 nats per token, the median block +0.200",
        "30.0%",
        "oracle loses least (1.100",
        "bad most (1.900)",
    )
    tools = data(
        {"quantizer": ["none", "gptq", "nf4"]},
        {"without": "torchao is missing"},
        bytes=("quantizer", [100.0, 25.0, 50.0]),
        increase=("quantizer", [0.0, 0.25, -0.5]),
        writing=("quantizer", [2.0, 1.0, NAN]),
    )
    text = said(
        quantizers_finding,
        tools,
        "gptq +0.250",
        "25% of the bytes, writing at 0.50 times the speed as loaded",
        "nf4 -0.500",
        "50% of the bytes.",
        "(torchao is missing.)",
    )
    assert "none" not in text
    assert quantizers_finding(tools.isel(quantizer=[0])) == "torchao is missing"


def test_neurons_matrices_and_ranks():
    one = data(
        BLOCKS,
        {"prompt": "p", "target": "t", "clean_probability": 0.5, "large": 2, "threshold": 0.1, "flips": 1},
        change=(("block", "neuron"), [[0.1, -0.2, 0.0], [0.3, -0.4, 0.1], [0.0, NAN, NAN]]),
    )
    said(ablate_finding, one, "7 neurons", "N1@Lb changes it most, by -0.400")
    two = data(
        {"role": ["q", "k", "v"], **BLOCKS},
        {"matrices": 9},
        rank_ratio=(("role", "block"), [[0.1, 0.3, NAN], [0.9, 0.7, 0.8], [NAN] * 3]),
    )
    text = said(spectra_finding, two, "q 0.20, k 0.80", "q uses the smallest", "k the largest")
    assert "v " not in text
    assert "uses" not in spectra_finding(two.isel(role=[0]))
    rho = np.array([[1.0, 0.9, -0.8], [0.9, 1.0, 0.7], [-0.8, 0.7, 1.0]])
    three = data(
        {"quantity": ["x: one", "x: two", "y: three"], "other": ["x: one", "x: two", "y: three"]},
        {"significant": 2, "pairs": 3, "level": 0.05},
        rho=(("quantity", "other"), rho),
        p_corrected=(("quantity", "other"), np.full((3, 3), 0.01)),
    )
    said(correlation_finding, three, "2 of 3 pairs", "y: three with x: one: -0.80")
    assert "none of them" in correlation_finding(
        three.assign(p_corrected=(("quantity", "other"), np.full((3, 3), 0.2)))
    )


def test_clouds_and_lenses():
    one = data(
        BLOCKS,
        {"tokens": 9, "width": 32},
        participation_ratio=("depth", [5.0, 2.5, 4.0, 3.0]),
        mean_norm=("depth", [1.0, 9.0, 2.0, 7.0]),
        update_size=("block", [0.5, 3.0, 1.0]),
        cosine_centred=("depth", [0.1, 0.3, 0.1, 0.1]),
        cosine_raw=("depth", [0.2, 0.9, 0.3, 0.4]),
    )
    said(
        geometry_finding,
        one,
        "depth 1 (2.5 of 32)",
        "from 1 to 7",
        "cosine of 0.150",
        "up to 0.90",
        "Block b moves the stream most, by 3.0",
    )
    two = data(
        BLOCKS,
        {
            "scored_tokens": 5,
            "k": 10,
            "mean_crystallization": 1.5,
            "mean_first_top1": 2.25,
            "last_depth_difference": 0.0,
        },
        hurt_rate=("block", [0.1, 0.2, 0.5]),
    )
    said(
        lens_finding,
        two,
        "top 10",
        "depth 1.5",
        "depth 2.2 of 3",
        "block c worsens the rank of 50% of tokens, more than any other",
    )


def test_routes():
    one = data(
        BLOCKS, behaviour=("block", ["cyclic", "drifting", "cyclic"]), second=("block", [0.5, -0.1, 0.7])
    )
    said(
        repeat_finding,
        one,
        "Of 3 blocks: 2 cyclic (blocks a and c), 1 drifting (block b)",
        "block b changes the loss by -0.100",
        "block c by +0.700",
    )
    two = data(
        {**BLOCKS, "level": [1.0, 0.1]},
        {"clean_loss": 1.0},
        loss=(("block", "level"), [[2.0, 9.0], [5.0, 1.0], [3.0, 1.0]]),
        passed_on=("block", [0.5, 1.5, 1.0]),
    )
    said(
        noise_finding,
        two,
        "as strong as 1 ",
        "in front of block b (loss 5.00",
        "least in front of block a (2.00)",
        "Blocks that damp it: a.",
    )
    assert "No block damps" in noise_finding(two.assign(passed_on=("block", [1.0, 2.0, 3.0])))
    three = data(
        {"method": ["x", "y"], "place": range(4)},
        {"shuffled_loss": 9.0, "clean_loss": 1.0},
        in_place=("method", [0.5, 1.0]),
        loss=("method", [3.0, 1.0]),
        orders=("method", [7, 8]),
    )
    said(
        shuffle_finding,
        three,
        "y recovered the order of the 4 blocks",
        "9.00",
        "y ends at 1.00 after 8 orders",
    )
    assert "No method" in shuffle_finding(three.assign(in_place=("method", [0.5, 0.75])))
    four = data(
        attrs={"change": "without block b", "saved": "Written."},
        loss=("state", [1.0, 1.5]),
        parameters=("state", [200, 150]),
        agreement=("state", [1.0, 0.8]),
    )
    assert said(surgery_finding, four, "Without block b: loss 1.000 becomes 1.500", "75.0%", "80%").endswith(
        "Written."
    )


def test_grafts_and_rebuilt_models():
    one = data(
        {"domain": ["books", "code"]},
        {"grafts": "tree"},
        bits_per_byte_before=("domain", [1.0, 2.0]),
        bits_per_byte_after=("domain", [1.25, 1.5]),
        top1=("domain", [0.5, 0.75]),
        token=("worst", ["x", "y"]),
        context=("worst", ["c", "d"]),
        excess=("worst", [2.5, 1.0]),
    )
    said(
        certificate_finding,
        one,
        "With the tree",
        "books +0.2500",
        "50.0%",
        "code -0.5000",
        "75.0%",
        "'x' behind 'c': +2.50",
    )
    attrs = {
        "parted": "",
        "architecture": "bert",
        "official": "Bert",
        "unused": "",
        "notes": "",
        "needed": 5,
        "causes": "cause",
        "generated": "same",
        "dtype": "float32",
    }
    two = data(
        {"stage": ["a", "b", "c"]},
        attrs,
        largest=("stage", [0.0, 1e-6, 0.0]),
        decimals=("stage", [17, 5, 17]),
    )
    said(rebuild_finding, two, "All 3 stages", "2 of them to the bit", "at least 5 decimals")
    assert "at least" not in rebuild_finding(two.isel(stage=[0, 2]))
    two.attrs["parted"] = "c"
    said(
        rebuild_finding,
        two,
        "2 stages of the rebuilt bert agree, then c parts",
        "17 decimals where 5",
        "cause",
    )


def test_tables_and_lines_on_a_page():
    made = table(["a", "<b>"], [["1", "x&y"]], numbers=(1,))
    assert "<th>a</th>" in made
    assert '<th class="number">&lt;b&gt;</th>' in made
    assert '<td class="number">x&amp;y</td>' in made
    plain = {"seconds": 1.25}
    assert "control" not in provenance_line(data(attrs=plain))
    swept = {
        **plain,
        "control_deviation": 1e-7,
        "work_executed": 1234,
        "work_naive": 5000,
        "work_unit": "rows",
        "work_saved": 4.05,
        "notes": "<n>",
    }
    text = provenance_line(data(attrs=swept))
    for word in ("1e-07", "1,234 of 5,000 rows", "4.0 times less", "&lt;n&gt;"):
        assert word in text.replace("4.1", "4.0")
    alike = provenance_line(data(attrs={**swept, "work_saved": 1.04}))
    assert "5,000 rows, as much as one full forward for each" in alike
    assert "by regraft 1, torch 2;" in footer(
        [data(attrs={"regraft": "1", "torch": "2", "seed": 3, "time": "now"})], 9.0
    )
    assert "seed 3; now." in footer([data(attrs={"seed": 3, "time": "now"})], 9.0)
    assert "9 s" in footer([], 9.0)


def test_numbers_as_text():
    one = data(
        {"x": [1, 2]},
        {"experiment": "none of ours"},
        a=("x", [0.5, 1.5]),
        b=("x", [2, 3]),
        c=(("x", "y"), [["p"], ["q"]]),
        d=((), 4.0),
    )
    assert csv_text(one) == "x,a,b\n1,0.5,2\n2,1.5,3\n"
    assert aligned([["a", "bbb", "c"], ["dddd", "e", "ff"]]) == ["a     bbb  c", "dddd  e    ff"]
    assert [short(cell) for cell in ("0.123456789", "12", "a.\nb", "a.b")] == [
        "0.12346",
        "12",
        "a.⏎b",
        "a.b",
    ]


OWN = Drawing("t", "q", "h", lambda d: [], lambda d: "")


def test_packages_bring_drawings_each_once(monkeypatch):
    points = [EntryPoint("an experiment of this test", f"{__name__}:OWN", "regraft.drawings")]
    monkeypatch.setattr(module, "entry_points", lambda group: points if group == "regraft.drawings" else [])
    monkeypatch.setattr(EntryPoint, "load", lambda self: OWN)
    module.drawings.cache_clear()
    assert drawing_of(data(attrs={"experiment": "an experiment of this test"})) is OWN
    points.append(EntryPoint("lens", f"{__name__}:OWN", "regraft.drawings"))
    module.drawings.cache_clear()
    with pytest.raises(ValueError, match="'lens' has a drawing already"):
        module.drawings()
    monkeypatch.undo()
    module.drawings.cache_clear()
    plain = drawing_of(data(attrs={"experiment": "unknown"}))
    one = data(
        {"x": [1, 2], "y": [3]},
        a=("x", [1.0, 2.0]),
        b=(("y", "x"), [[1, 2]]),
        c=("x", ["p", "q"]),
        d=((), 1.0),
    )
    (first, bar), (second, map) = plain.figures(one)
    assert (first, list(bar.data[0].x), list(bar.data[0].y)) == ("a", ["1", "2"], [1.0, 2.0])
    assert (second, map.data[0].z.tolist(), list(map.data[0].x), list(map.data[0].y)) == (
        "b",
        [[1, 2]],
        ["1", "2"],
        ["3"],
    )


@pytest.mark.parametrize(
    ("effect", "tokens", "said"),
    [
        ([[1.0], [0.9]], None, None),
        ([[1.0, 0.0]], ["a", "b"], None),
        ([[1.0, 0.1], [0.9, 0.2]], ["a", "b"], "The effect stays with 'a'."),
        ([[1.0, 0.0], [0.8, 0.2], [0.3, 0.7]], ["a", "b"], "moves between blocks L1 and L2."),
        (
            [[1.0, 0.0], [0.4, 0.3], [0.1, 0.9]],
            ["a", "b"],
            "from block L2 on: the information moves between blocks L0 and L1.",
        ),
    ],
)
def test_where_a_patch_works_is_told_of_several_blocks_and_tokens(effect, tokens, said):
    coords = {"block": [f"L{b}" for b in range(len(effect))]}
    coords |= {"token": ("position", tokens)} if tokens else {}
    attrs = {"target_value": -6.5, "source_value": 10.0, "attribution_correlation": NAN}
    found = patch_finding(data(coords, attrs, effect=(("block", "position" if tokens else "all"), effect)))
    span = "Logit of the answer minus the wrong one: -6.5 in the run that is patched, +10.0 in the run"
    assert found.startswith(span)
    assert found.endswith(said or "that the activations come from.")


def test_shares_of_tokens_stand_at_the_depth_where_they_settle():
    lens = data(
        {"depth": [0, 1, 2]},
        crystallization=("token", [2.0, 2.0, 1.0, NAN]),
        first_top1=("token", [0.0, 1.0, 1.0, 1.0]),
    )
    stays, first = crystallization(lens).data
    assert list(stays.y) == [0.0, 0.25, 0.5]
    assert list(first.y) == [0.25, 0.75, 0.0]

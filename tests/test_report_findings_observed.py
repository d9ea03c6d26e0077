"""A finding is written only where there is one: zero loss, nothing removed, ties, NaN, a single block,
nothing. By hand.

What is observed, routes, grafts and tokenizers; `test_report_findings` has what is patched, skipped and
rounded.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from regraft.reporting.figures.block_figures import (
    MANY,
    correlation_figures,
    correlation_finding,
    linearity_finding,
    spectra_finding,
)
from regraft.reporting.figures.graft_figures import certificate_finding
from regraft.reporting.figures.observe_figures import completions_finding, geometry_finding, lens_finding
from regraft.reporting.figures.rebuild_figures import rebuild_finding
from regraft.reporting.figures.route_figures import (
    noise_finding,
    repeat_finding,
    shuffle_figures,
    shuffle_finding,
    surgery_finding,
    transplant_finding,
)
from regraft.reporting.figures.text_figures import contexts, neurons_finding, trajectory_finding
from regraft.reporting.figures.token_figures import tokenizer_finding
from regraft.reporting.figures.token_figures import transplant_finding as tokens_transplanted
from regraft.reporting.wording import counted, differ, highest, listed, lowest, signed

NAN, INF = float("nan"), float("inf")


def data(coords=None, attrs=None, **variables):
    return xr.Dataset(variables, coords or {}, attrs or {})


def blocks(count):
    return {"block": list("abcdefgh"[:count])}


def lens(rate, settled=1.5, first=2.25, tokens=5):
    attrs = {
        "scored_tokens": tokens,
        "k": 10,
        "mean_crystallization": settled,
        "mean_first_top1": first,
        "last_depth_difference": 0.0,
    }
    return data(blocks(len(rate)), attrs, hurt_rate=("block", rate))


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (lens([0.0, 0.0]), "no block worsens the rank of any token."),
        (lens([0.0]), "no block worsens the rank of any token."),
        (lens([0.2]), "block a worsens the rank of 20% of tokens."),
        (lens([0.5, 0.2, 0.5]), "blocks a and c worsen the rank of 50% of tokens each, more than any other."),
        (lens([0.5, 0.5]), "blocks a and b worsen the rank of 50% of tokens each."),
        (lens([0.001, 0.0]), "block a worsens the rank of fewer than 1% of tokens, more than any other."),
        (lens([NAN, NAN], NAN, NAN, 1), "Over 1 token, the true next token never enters the top 10 for good and is "
            "never ranked first;"),
    ],
)  # fmt: skip
def test_reading_every_depth(dataset, said):
    text = lens_finding(dataset)
    assert said in text
    assert text.endswith("The last depth equals the model's own logits.")
    assert "nan" not in text


def test_clouds():
    def cloud(ratio, update, cosine=0.1):
        return data(
            blocks(len(update)), {"tokens": 1, "width": 32}, participation_ratio=("depth", ratio),
            mean_norm=("depth", ratio),
            update_size=("block", update), cosine_centred=("depth", [cosine] * len(ratio)), 
            cosine_raw=("depth", [cosine] * len(ratio)),
        )  # fmt: skip

    assert (
        geometry_finding(cloud([NAN, NAN], [NAN], NAN)) == "Over 1 token the cloud spreads in no direction."
    )
    text = geometry_finding(cloud([2.0, 2.0], [0.5]))
    assert text.startswith("Over 1 token the cloud uses 2.0 of 32 directions; the norm goes from 2 to 2.")
    assert text.endswith("Block a moves the stream by 0.5 times its length.")
    assert "moves the stream" not in geometry_finding(cloud([2.0, 3.0, 4.0], [0.5, 0.5]))


def test_texts_that_differ():
    assert (
        completions_finding(data(attrs={"scored_tokens": 1}, category=("prompt", ["a"])))
        == "1 prompt of 1 kind was continued by 1 token in all."
    )
    assert completions_finding(data(attrs={"scored_tokens": 0}, category=("prompt", ["a", "b"]))).endswith(
        "were continued by no tokens in all."
    )

    def curves(synonym, antonym, relations=("synonym", "antonym")):
        both = {"synonym": synonym, "antonym": antonym}
        rows = np.array([both[r] for r in relations], dtype=float)[:, None]
        one = {name: ("place", [NAN]) for name in ("crossover", "crossover_low", "crossover_high", "onset")}
        coords = {"relation": list(relations), "place": ["pivot"]}
        return data(
            coords,
            {"groups": 1},
            cosine_mean=(("relation", "place", "depth"), rows),
            crossover_share=("place", [0.0]),
            **one,
        )

    assert trajectory_finding(curves([NAN] * 2, [NAN] * 2)).startswith("No kind of alternative has a cosine")
    assert (
        trajectory_finding(curves([0.5, 0.6], [0.5, NAN]))
        == "Over 1 group, mean cosine with the base at the last depth: synonym 0.60."
    )
    assert "do not part: " in trajectory_finding(curves([0.5, 0.6], [0.5, 0.6]))
    assert "Synonyms are the closer ones" in trajectory_finding(curves([0.5, 0.6], [0.5, 0.5]))
    assert (
        trajectory_finding(curves([0.5], [], ["synonym"]))
        == "Over 1 group, mean cosine with the base at the last depth: synonym 0.50."
    )


def test_neurons_in_common():
    def common(found, strength):
        n = len(strength)
        context = np.array([["c"]] * n, dtype=str).reshape(n, 1)
        coords = {"neuron": [f"N{i}" for i in range(n)], "neuron_feature": ("neuron", ["f"] * n)}
        values = np.array(strength, dtype=float).reshape(n, 1)
        return data(
            coords, {"found": found, "k": 20, "control": True},
            context_activation=(("neuron", "place"), values),
            context=(("neuron", "place"), context),
        )  # fmt: skip

    end = "in every text of a set and in no other text."
    assert neurons_finding(common(0, [])) == f"No neurons are among their block's top 20 {end}"
    assert neurons_finding(common(1, [NAN])) == f"1 neuron is among its block's top 20 {end}"
    assert neurons_finding(common(2, [0.0, -1.0])) == f"2 neurons are among their block's top 20 {end}"
    contexts(common(1, [NAN]))


def test_matrices_and_maps():
    def ranks(rows):
        return data(
            {"role": list("qkv"[: len(rows)]), **blocks(1)},
            {"matrices": len(rows)},
            rank_ratio=(("role", "block"), rows),
        )

    assert spectra_finding(ranks([[NAN]])) == "1 matrix, none of them with an effective rank."
    assert (
        spectra_finding(ranks([[0.5], [0.5]]))
        == "2 matrices. Mean effective rank over the smaller side: q 0.50, k 0.50."
    )

    def curved(gap, recovered, notes=""):
        n = len(gap)
        return data(
            {**blocks(n), "part": ["block"]}, {"sampled_tokens": 1, "calibration_tokens": 1, "notes": notes},
            gap=(("part", "block"), [gap]), order=(("part", "block"), [[NAN] * n]),
            recovered=("block", recovered),
        )  # fmt: skip

    begun = "At 1 token, a step of 5% leaves the linear map by 0.100 of the change in block a."
    assert linearity_finding(curved([NAN], [NAN])).startswith("No block answers")
    assert linearity_finding(curved([0.1], [NAN])) == begun
    assert linearity_finding(curved([0.1], [NAN], "no text")) == f"{begun} No text."
    won = "A linear map fitted on 1 other token wins back 50% of what skipping block a costs."
    assert linearity_finding(curved([0.1], [0.5])) == f"{begun} {won}"
    assert "more than" not in linearity_finding(curved([0.1, 0.1], [0.5, 0.5]))
    none = data({"quantity": ["x"]}, {"significant": 0, "pairs": 0, "level": 0.05}, rho=(("quantity", "other"), [[1.0]]),
                p_corrected=(("quantity", "other"), [[NAN]]))  # fmt: skip
    assert correlation_finding(none) == "No two quantities share blocks enough to be correlated."
    assert correlation_finding(none.assign_attrs(pairs=1)) == (
        "0 of 1 pair of quantities go together beyond chance (p below 5% after correction)."
    )


def test_routes():
    def again(second):
        return data(
            blocks(len(second)), behaviour=("block", ["cyclic"] * len(second)), second=("block", second)
        )

    assert (
        repeat_finding(again([0.5]))
        == "Of 1 block: 1 cyclic. Run twice, block a changes the loss by +0.500 nats per token."
    )
    assert (
        repeat_finding(again([NAN]))
        == "Of 1 block: 1 cyclic. Run twice, with block a the loss is not a finite number."
    )
    assert repeat_finding(again([0.5, 0.5])).endswith(
        "blocks a and b change the loss by +0.500 nats per token."
    )

    def noisy(loss, passed):
        return data({**blocks(len(loss)), "level": [1.0]}, {"clean_loss": 1.0},
                    loss=(("block", "level"), np.array(loss)[:, None]),
                    passed_on=("block", passed))  # fmt: skip

    assert (
        noise_finding(noisy([2.0], [1.0]))
        == "Noise as strong as 1 of the stream in front of block a leaves a loss of 2.00, clean 1.00. No"
        " block damps it."
    )
    assert (
        noise_finding(noisy([NAN], [NAN]))
        == "Noise as strong as 1 of the stream leaves no finite loss in front of any block."
    )

    def ordered(blocks_, loss):
        n = range(blocks_)
        return data(
            {"method": ["x"], "place": list(n)}, {"shuffled_loss": 9.0, "clean_loss": 1.0},
            in_place=("method", [0.0]),
            loss=("method", [loss]), orders=("method", [1]), tau=("method", [NAN]), seconds=("method", [0.1]),
            shuffled=("place", [str(i) for i in n]), recovered=(("method", "place"), [[str(i) for i in n]]),
        )  # fmt: skip

    assert shuffle_finding(ordered(1, 1.0)) == "A single block has no order to recover."
    assert shuffle_finding(ordered(3, NAN)).endswith("in the true order 1.00.")
    assert shuffle_finding(ordered(3, 2.0)).endswith("x ends at 2.00 after 1 order measured.")
    shuffle_figures(ordered(1, 1.0))


def test_surgery():
    def operated(change, loss, parameters=(2, 2), same=1.0):
        return data(attrs={"change": change, "saved": ""}, loss=("state", list(loss)), parameters=("state", list(parameters)),
                    agreement=("state", [1.0, same]))  # fmt: skip

    assert (
        surgery_finding(operated("with every block", (1, 1)))
        == "With every block: nothing changes, the loss stays 1.000 nats per token."
    )
    assert (
        surgery_finding(operated("x", (1, NAN), (2, 1), NAN))
        == "X: the loss is not a finite number, 50.0% of the parameters."
    )

    def given(increase, donor="d"):
        square = np.array(increase, dtype=float)
        coords = {"donor_block": list("xyz"[: len(square)]), **blocks(square.shape[1])}
        attrs = {"donor": "d", "donor_sha256": donor, "weights_sha256": "own"}
        return data(coords, attrs, increase=(("donor_block", "block"), square))

    assert transplant_finding(given([[0.0]], "own")) == ""
    assert transplant_finding(given([[0.5]])) == "Block x of d in place of block a: +0.500 nats per token."
    assert transplant_finding(given([[NAN]])) == "No block of the donor gives a finite loss in any place."
    assert (
        transplant_finding(given([[0.5, NAN], [NAN, 0.7]]))
        == "Block x of d costs least, in place of block a: +0.500 nats per token."
    )


def test_grafts_rebuilt_models_and_tokenizers():
    def certified(change, worst=()):
        n = len(worst)
        return data({"domain": ["d"]}, bits_per_byte_before=("domain", [0.0]), bits_per_byte_after=("domain", [change]),
                    top1=("domain", [change]), token=("worst", ["t"] * n), context=("worst", ["c"] * n),
                    excess=("worst", np.array(worst, dtype=float)))  # fmt: skip

    assert (
        certificate_finding(certified(0.5))
        == "With the graft in place: on d +0.5000 bits per byte (same first token in 50.0%). No token"
        " suffers."
    )
    assert (
        certificate_finding(certified(NAN, [NAN]))
        == "With the graft in place: on d no finite number of bits. No token suffers."
    )
    assert certificate_finding(certified(0.0, [0.0])).endswith("No token suffers.")
    attrs = {
        "parted": "",
        "architecture": "m",
        "official": "M",
        "unused": "",
        "notes": "",
        "generated": "",
        "dtype": "f",
        "needed": 5,
        "causes": "c",
    }

    def stages(*largest, **more):
        count = len(largest)
        return data(
            {"stage": [str(i) for i in range(count)]},
            {**attrs, **more},
            largest=("stage", list(largest)),
            decimals=("stage", [5] * count),
        )

    assert (
        rebuild_finding(stages(1e-6))
        == "The one stage of the rebuilt m agrees with M: none of them to the bit, the others to at least 5"
        " decimals (f)."
    )
    assert rebuild_finding(stages()) == "No stage of the rebuilt m was compared."
    assert rebuild_finding(stages(0.1, parted="0")).startswith(
        "No stages of the rebuilt m agree, then 0 parts"
    )

    def cut(*lengths):
        names = list("xyz"[: len(lengths)])
        pairs = ("tokenizer", "domain")
        grid = np.array(lengths, dtype=float)[:, None]
        return data(
            {"tokenizer": names, "domain": ["d"]},
            bytes_per_token=(pairs, grid),
            exact=(pairs, np.ones(grid.shape)),
        )

    assert (
        tokenizer_finding(cut(3.0))
        == tokenizer_finding(cut(3.0, 3.0))
        == tokenizer_finding(cut(NAN, NAN))
        == ""
    )
    assert (
        tokenizer_finding(cut(4.0, 2.0, 2.0)) == "On d x takes the fewest tokens, 50.0% fewer than y and z."
    )

    def planted(bits, old=1, new=0):
        states = ("state", "domain")
        coords = {"state": ["before", "after"], "domain": ["d"][: len(bits[0])]}
        return data(coords, {"method": "mean"}, bits_per_byte=(states, np.array(bits)), exact=(states, np.ones(np.shape(bits))),
                    taken_over=((), old), estimated=((), new))  # fmt: skip

    begun = "1 token takes over an old token's rows, none is estimated by the method mean."
    assert tokens_transplanted(planted([[1.0], [1.5]])) == f"{begun} Bits per byte: +0.500 on d."
    assert tokens_transplanted(planted([[1.0], [NAN]])) == f"{begun} Bits per byte: no finite number on d."
    assert tokens_transplanted(planted([[], []])) == begun


def test_words():
    assert [counted(n, "block") for n in (0, 1, 2)] == ["no blocks", "1 block", "2 blocks"]
    assert [listed(list("abcdef"[:n])) for n in (0, 1, 2, 4, 6)] == [
        "",
        "a",
        "a and b",
        "a, b, c and d",
        "a, b, c and 3 others",
    ]
    assert [signed(x) for x in (-0.0001, 0.0, -0.5)] == ["+0.000", "+0.000", "-0.500"]
    assert (highest([1, NAN, 3, 3, INF]), lowest([NAN]), lowest([2, 1])) == ([2, 3], [], [1])
    assert [differ(x) for x in ([], [1.0], [1.0, NAN], [1.0, 1.0], [1.0, 2.0])] == [
        False,
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(("count", "dot", "step"), [(MANY, 7, 1), (MANY + 1, 4, 5)])
def test_many_quantities_are_drawn_close(count, dot, step):
    """Beyond 32 rows: smaller dots, every fifth column numbered, so that names and dots do not overlap."""
    names = [f"q{n}" for n in range(count)]
    grid = np.eye(count)
    drawn = data(
        {"quantity": names, "other": names},
        {"level": 0.05, "blocks": 12},
        rho=(("quantity", "other"), grid),
        p=(("quantity", "other"), grid),
        p_corrected=(("quantity", "other"), 1 - grid),
        blocks=(("quantity", "other"), np.full((count, count), 12)),
    )
    ((_, figure),) = correlation_figures(drawn)
    assert figure.data[1].marker.size == dot
    assert figure.layout.xaxis.dtick == step

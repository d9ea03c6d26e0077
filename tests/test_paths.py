"""Path patching beside runs frozen by hand with plain hooks, and the identities of direct paths."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import torch

from regraft.core.defaults import ANSWER, CLEAN_PROMPT, CORRUPT_PROMPT, WRONG_ANSWER
from regraft.core.registry import experiments
from regraft.experiments.intervene.paths import Sender, _reaches, _senders
from regraft.experiments.running import run_experiment
from regraft.model.float64 import KeepFloat64
from regraft.model.load import load
from regraft.model.sites import SiteError
from regraft.reporting.drawings import drawing_of
from regraft.sweeps.metrics import logit_difference, stream_distance
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Replace, Variant
from small import opened

RUN = partial(run_experiment, experiments()["paths"])


@pytest.fixture(scope="module", params=["specimen:gpt2", "specimen:qwen3"])
def model(request):
    """In float64 all the way: a single path moves a logit by a millionth of its size, less than float32
    rounds."""
    return load(request.param, dtype="float64")


def parts_of(model):
    """For each block its attention's output projection, its MLP's, and that of its queries, found by hand."""
    if model.name == "specimen:gpt2":
        return [(b.attn.c_proj, b.mlp.c_proj, b.attn.c_attn) for b in model.hf.transformer.h]
    return [(b.self_attn.o_proj, b.mlp.down_proj, b.self_attn.q_proj) for b in model.hf.model.layers]


def heard(modules, run):
    """What goes into and comes out of modules in a run."""
    found = {}
    with ExitStack() as hooks:
        for module in modules:

            def keep(module, args, outcome):
                found[module] = args[0].clone(), outcome.clone()

            hooks.callback(module.register_forward_hook(keep).remove)
        run()
    return found


def by_hand(model, sender, receiver, through):
    """The logit difference with one path patched: three plain runs with hooks, nothing of the engine.

    The sender is (block, head) or (block, None) for the MLP; the receiver (block, head) of the queries.
    """
    parts = parts_of(model)
    ids = [torch.tensor([model.encode(text)]) for text in (CLEAN_PROMPT, CORRUPT_PROMPT)]
    everything = [m for one in parts for m in one]
    source, target = (heard(everything, lambda row=row: model.hf(row)) for row in ids)
    block, head = sender
    width = 32
    with ExitStack() as hooks, torch.no_grad():
        for number, (attention, mlp, _) in enumerate(parts):
            if number == block and head is not None:

                def speak(module, args):
                    z = args[0].clone()
                    z[..., head * width : (head + 1) * width] = source[module][0][
                        ..., head * width : (head + 1) * width
                    ]
                    return (z,)

                hooks.callback(attention.register_forward_pre_hook(speak).remove)
            elif number > block:
                hooks.callback(attention.register_forward_hook(lambda m, a, o: target[m][1]).remove)
            if number == block and head is None:
                hooks.callback(mlp.register_forward_hook(lambda m, a, o: source[m][1]).remove)
            elif number >= block and through == "nothing":
                hooks.callback(mlp.register_forward_hook(lambda m, a, o: target[m][1]).remove)
        arrived = heard([parts[receiver[0]][2]], lambda: model.hf(ids[1]))[parts[receiver[0]][2]][1]
    begin = receiver[1] * width
    with ExitStack() as hooks, torch.no_grad():

        def told(module, args, outcome):
            changed = outcome.clone()
            changed[..., begin : begin + width] = arrived[..., begin : begin + width]
            return changed

        hooks.callback(parts[receiver[0]][2].register_forward_hook(told).remove)
        logits = model.hf(ids[1]).logits[0, -1]
    return float(logits[model.single_token(ANSWER)] - logits[model.single_token(WRONG_ANSWER)])


@pytest.mark.parametrize("through", ["nothing", "mlps"])
def test_paths_are_those_of_runs_frozen_by_hand(model, through):
    blocks = len(model.blocks)
    receiver = blocks - 1, 1
    other = "mlps" if through == "nothing" else "nothing"
    with KeepFloat64():
        data = RUN(model, receivers=[f"{receiver[0]}.q.1"], through=through)
        target = data.attrs["target_value"]
        for block, column in ((0, "0"), (1, "2"), (blocks - 2, "1"), (0, "MLP"), (blocks - 2, "MLP")):
            head = None if column == "MLP" else int(column)
            wanted, wrong = (
                by_hand(model, (block, head), receiver, how) - target for how in (through, other)
            )
            found = float(data.logit_difference.sel(block=block, sender=column)) - target
            assert found == pytest.approx(wanted, rel=1e-6), (block, column)
            assert abs(found) > 1e-8
            if block == 0:
                assert found != pytest.approx(wrong, rel=1e-2), "MLPs between the two are still, or are not"
    effect = data.effect.values
    assert np.isnan(effect[receiver[0] :]).all(), "what stands beside or behind the receiver tells it nothing"
    assert np.isfinite(effect[: receiver[0]]).all()
    span = data.attrs["source_value"] - data.attrs["target_value"]
    again = (data.logit_difference.values - data.attrs["target_value"]) / span
    np.testing.assert_allclose(effect, again)


def test_direct_paths_to_the_last_stream_add_up(model):
    """Of a stream that parts are added to, the direct effects before the final norm are the differences of
    what the parts say: together with the embedding they make up the other run's stream."""
    clean, corrupt = model.record(CLEAN_PROMPT), model.record(CORRUPT_PROMPT)
    last = len(model.blocks) - 1
    parts = [f"{b.address}.{kind}" for b in model.blocks for kind in ("attn_out", "mlp_out")]
    total = sum(clean[one] - corrupt[one] for one in parts) + clean["0.resid_pre"] - corrupt["0.resid_pre"]
    torch.testing.assert_close(corrupt[f"{last}.resid_post"] + total, clean[f"{last}.resid_post"])
    data = RUN(model)
    assert data.attrs["receivers"] == f"{last}.resid_post"
    assert np.isfinite(data.effect.values).all(), "the last block's own parts reach it too"
    corrupt_stream = corrupt[f"{last}.resid_post"]
    said = clean[f"{last}.mlp_out"] - corrupt[f"{last}.mlp_out"]
    logits = corrupt.head(corrupt_stream + said)[0, -1]
    wanted = logits[model.single_token(ANSWER)] - logits[model.single_token(WRONG_ANSWER)]
    assert float(data.logit_difference.sel(block=str(last), sender="MLP")) == pytest.approx(
        float(wanted), rel=1e-9
    )
    drawing = drawing_of(data)
    ((name, figure),) = drawing.figures(data)
    assert f"Direct paths to {last}.resid_post" in name
    assert figure.data[0].z.shape == data.effect.shape
    assert "paths add up to" in drawing.finding(data)


def test_noise_is_denoising_with_the_prompts_exchanged():
    model = load("specimen:gpt2")
    there = RUN(model, direction="noise")
    back = RUN(model, clean=CORRUPT_PROMPT, corrupt=CLEAN_PROMPT)
    np.testing.assert_allclose(there.logit_difference, back.logit_difference, rtol=1e-4)
    assert there.attrs["source_value"] == pytest.approx(back.attrs["source_value"], rel=1e-4)
    with pytest.raises(ValueError, match="both prompts give the same logit difference"):
        RUN(model, clean=CLEAN_PROMPT, corrupt=CLEAN_PROMPT)


def test_what_a_sender_reaches_in_its_own_block():
    """Behind it, in the order in which a block computes; side by side neither hears the other."""
    for name, beside in (("llama", False), ("gpt_neox", True)):
        model = opened(name)
        assert model.blocks[1].parallel is beside
        head, mlp = (
            Sender(model.blocks[1], "", f"1.{site}", kind)
            for site, kind in (("head.0", "attn"), ("mlp_out", "mlp"))
        )

        def heard(sender, names, model=model):
            return [name for name in names if _reaches(sender, model.site(f"1.{name}"))]

        names = ["resid_pre", "q", "z", "mlp_act", "neuron.3", "resid_post"]
        assert heard(head, names) == (["resid_post"] if beside else ["mlp_act", "neuron.3", "resid_post"])
        assert heard(mlp, names) == ["resid_post"]
        assert not beside or "resid_mid" not in names
        assert all(_reaches(head, model.site(f"2.{name}")) for name in names)
        assert not any(_reaches(head, model.site(f"0.{name}")) for name in names)


def test_a_head_reaches_the_mlp_of_its_own_block():
    model = load("specimen:gpt2", dtype="float64")
    data = RUN(model, receivers=["2.mlp_act"])
    clean, corrupt = model.record(CLEAN_PROMPT), model.record(CORRUPT_PROMPT)
    spoken = sweep(
        corrupt, Replace("2.head.1", clean["2.head.1"]), stream_distance(), read=["2.mlp_act"]
    ).reads["2.mlp_act"][0]
    wanted = sweep(corrupt, Replace("2.mlp_act", spoken), logit_difference(ANSWER, WRONG_ANSWER))
    target = data.attrs["target_value"]
    found = float(data.logit_difference.sel(block=2, sender="1")) - target
    assert found == pytest.approx(float(wanted.mean("logit_difference")) - target, rel=1e-9)
    assert np.isnan(data.effect.sel(block=2, sender="MLP"))


def test_what_is_no_receiver_is_refused():
    model = load("specimen:gpt2")
    for receiver, said in (
        ("2.mlp_out", "is what a branch answers, not what it is told"),
        ("logits", "is outside the blocks that read the prompt"),
        ("9.q", "there are 4 blocks"),
        ("0.q", "no head or MLP stands in front of 0.q"),
        ("2.q.99", "this block has 4 heads"),
    ):
        with pytest.raises(ValueError, match=said):
            RUN(model, receivers=[receiver])
    with pytest.raises(SiteError, match="outside the blocks"):
        RUN(load("specimen:t5"), receivers=["decoder.1.q"])
    with pytest.raises(ValueError, match="choose nothing or mlps"):
        RUN(model, through="all")


def test_of_two_receivers_each_hears_what_it_hears_alone():
    """What one is told goes nowhere in the run in which both listen: together they are told what each is."""
    model = load("specimen:gpt2", dtype="float64")
    target, source = model.record(CORRUPT_PROMPT), model.record(CLEAN_PROMPT)
    still = [
        Replace(f"{b}.{kind}", target[f"{b}.{kind}"]) for b in (1, 2, 3) for kind in ("attn_out", "mlp_out")
    ]
    speaks = Variant([Replace("0.mlp_out", source["0.mlp_out"]), *still])
    names = ["2.q.1", "3.k.0"]
    together = sweep(target, speaks, stream_distance(), read=names).reads
    told = [Replace(name, together[name][0]) for name in names]
    metric = logit_difference(ANSWER, WRONG_ANSWER)
    wanted = sweep(target, Variant(told), metric).mean("logit_difference")
    data = RUN(model, receivers=names)
    assert float(data.logit_difference.sel(block=0, sender="MLP")) == pytest.approx(float(wanted), rel=1e-9)
    alone = sweep(
        target, Variant([Replace("0.mlp_out", source["0.mlp_out"]), *still[:-4]]), metric, read="2.q.1"
    )
    torch.testing.assert_close(alone.reads["2.q.1"], together["2.q.1"], atol=1e-12, rtol=1e-9)
    only_late = RUN(model, receivers=["3.k.0"])
    both = data.logit_difference.sel(block=2, sender="MLP")
    assert float(both) == pytest.approx(
        float(only_late.logit_difference.sel(block=2, sender="MLP")), rel=1e-9
    ), "who stands beside the first receiver reaches the second alone"


def test_pairs_are_averaged(tmp_path):
    model = load("specimen:gpt2")
    file = tmp_path / "pairs.json"
    words = CLEAN_PROMPT, CORRUPT_PROMPT, ANSWER, WRONG_ANSWER
    names = "clean", "corrupt", "answer", "wrong"
    swapped = words[1], words[0], words[3], words[2]
    file.write_text(json.dumps([dict(zip(names, one, strict=True)) for one in (words, swapped)]))
    both, one = RUN(model, pairs=str(file)), RUN(model)
    assert both.attrs["pairs"] == 2
    np.testing.assert_allclose(both.pair_effect.values[0], one.effect.values, atol=1e-4)
    np.testing.assert_allclose(both.effect.values, both.pair_effect.values.mean(0))
    assert np.isfinite(both.effect_error.values).all()


def test_senders_of_other_models_are_told():
    """Where a block has no heads that are told its attention or its mixer speaks as a whole."""
    assert {s.column for s in _senders(opened("mamba2"))} == {"mixer"}
    assert {"0", "MLP"} <= {s.column for s in _senders(opened("qwen3_5"))}
    model = opened("llama")
    model.taps.refuse(1, "z", "for a reason")
    assert [s.column for s in _senders(model) if s.block.index == 1] == ["attention", "MLP"]

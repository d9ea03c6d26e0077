"""What a graphics card computes: sweeps beside full forwards with hooks there, and the same models on the
processor.

Run by `pytest -m gpu` on a machine with one. A card's kernels differ with batch and address more than a
processor's, and its half-precision sums have other orders, so everything here is held to the comparison rule
and nothing to the bit but weights.
"""

from __future__ import annotations

import pytest
import torch

import naive
from families import FAMILIES
from regraft.core.registry import experiments
from regraft.core.tolerance import gap
from regraft.data.generation import completions
from regraft.data.prompts import Prompt
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.streaming.residency import WORKING
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Replace, Scale, Variant, Zero
from regraft.training.tasks.embedding_task import EmbeddingTask
from regraft.training.trainer import train
from small import METRIC, SHAPES, recorded, reference
from test_distill import PLAN, made, text
from variants import described, swept_and_wanted

pytestmark = pytest.mark.gpu
CARD = "cuda"
EXPERIMENTS = ("knockout", "swap", "repeat", "geometry", "linearity", "replacement", "noise")
FEATURES = 5.0
"""Edits scale and add: a result may be this many times farther from rounding than the clean run's."""


@pytest.fixture(autouse=True)
def card():
    """A missing card is an error here, not a skipped test: whoever asks for these tests has one."""
    assert torch.cuda.is_available(), "these tests need a graphics card: run the others with -m 'not gpu'"


def on_card(name, dtype=torch.float32, seed=1):
    torch.manual_seed(seed)
    return load(FAMILIES[name]().eval().to(CARD, dtype), pack=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_sweeps_equal_hooks_on_the_card(name):
    model = on_card(name)
    assert model.device.type == "cuda"
    _, variants, metric, result, wanted = swept_and_wanted(model)
    scale = float(wanted.abs().max())
    gaps = (result.values[metric.name].to(wanted) - wanted).abs().amax(1) / scale
    apart = {
        described(v): float(g)
        for v, g in zip(variants, gaps, strict=True)
        if not g <= FEATURES * model.rounding
    }
    assert not apart
    assert result.work.executed == result.work.planned


@pytest.mark.parametrize("name", FAMILIES)
def test_the_card_agrees_with_the_processor(name):
    """The same weights, the same ids: streams at every depth and the clean metric, float32 on both."""
    card = on_card(name)
    torch.manual_seed(1)
    processor = load(FAMILIES[name]().eval(), pack=False)
    assert card.weights_sha256 == processor.weights_sha256
    there, here = recorded(card, 9, 6), recorded(processor, 9, 6)
    for block in range(len(card.blocks)):
        found, wanted = there.pre(block).cpu(), here.pre(block)
        for row, length in enumerate(here.lengths_of(block)):
            assert gap(found[row, :length], wanted[row, :length]) <= processor.rounding, (name, block, row)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_stays_within_its_own_rounding(name, dtype):
    """Zeroed blocks' outputs in half precision, beside hooks in the same precision."""
    model = on_card(name, dtype)
    recording = recorded(model, 7, 7)
    variants = [Variant([Scale(f"{block.address}.resid_pre", 0.5, position=3)]) for block in model.blocks]
    found = sweep(recording, variants, METRIC)
    wanted = reference(model, recording, variants, lambda x: x[..., 7].float() - x[..., 9].float())
    scale = float(naive.logits(model, recording, Variant()).abs().max())
    assert float((found.values["d"].to(wanted) - wanted).abs().max()) / scale <= FEATURES * model.rounding
    assert found.deviation <= model.rounding * scale


def test_a_planted_fault_is_seen_on_the_card():
    """An activation taken one position off is far outside of what the card's rounding does."""
    model = on_card("llama")
    recording, other = recorded(model, 7, 7), recorded(model, 7, 7, seed=50)
    right = [Variant([Replace("1.resid_post", other["1.resid_post"], position=4)])]
    value = other["1.resid_post"].roll(1, 1)
    wrong = sweep(recording, [Variant([Replace("1.resid_post", value, position=4)])], METRIC).values["d"]
    wanted = reference(model, recording, right)
    assert float((sweep(recording, right, METRIC).values["d"].to(wanted) - wanted).abs().max()) <= 1e-5
    assert float((wrong.to(wanted) - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "olmo2", "bert"])
def test_neurons_and_heads_by_correction_on_the_card(name):
    model = on_card(name)
    recording = recorded(model, 7, 7)
    sites = [f"{b.address}.neuron.{n}" for b in model.blocks for n in (0, 17, 40)]
    sites += [f"{b.address}.head.{h}" for b in model.blocks for h in range(4)]
    variants = [Variant([Zero(site)]) for site in sites]
    wanted = reference(model, recording, variants)
    found = sweep(recording, variants, METRIC)
    assert float((found.values["d"].to(wanted) - wanted).abs().max()) <= 1e-5


def test_a_grid_on_suffixes_equals_full_forwards_on_the_card():
    model = on_card("qwen3")
    recording, other = recorded(model, 24), recorded(model, 24, seed=50)
    sites = [f"{block}.resid_pre" for block in range(4)]
    variants = [Variant([Replace(site, other[site], position=t)]) for site in sites for t in range(24)]
    found = sweep(recording, variants, METRIC)
    wanted = reference(model, recording, variants)
    assert float((found.values["d"].to(wanted) - wanted).abs().max()) <= 1e-5


def test_a_specimen_opens_on_the_card_and_every_experiment_gives_the_processors_numbers():
    card, processor = load("specimen:qwen3", device=CARD), load("specimen:qwen3", pack=False)
    for name in EXPERIMENTS:
        there, here = (
            run_experiment(experiments()[name], model, count=4, tokens=6) for model in (card, processor)
        )
        for variable in here.data_vars:
            if here[variable].dtype.kind != "f":
                continue
            found, wanted = torch.from_numpy(there[variable].values), torch.from_numpy(here[variable].values)
            finite = torch.isfinite(wanted)
            assert torch.equal(torch.isfinite(found), finite), (name, variable)
            assert gap(found[finite], wanted[finite]) <= 1e-3, (name, variable)


def test_a_saved_folder_is_read_back_and_equal_to_the_bit(tmp_path):
    model = on_card("qwen3")
    run_experiment(
        experiments()["prune"],
        model,
        drop=[2],
        prompts=["5 6 7 8 9"],
        tokens=4,
        save=str(tmp_path / "pruned"),
    )
    again = load(tmp_path / "pruned", device=CARD)
    kept = [0, 1, 3]
    for place, block in enumerate(kept):
        for name, weight in model.blocks[block].module.named_parameters():
            assert torch.equal(again.blocks[place].module.get_parameter(name), weight), (block, name)


def test_training_on_the_card_goes_on_where_it_broke_off(tmp_path):
    def on(folder, stop=None):
        model, graft = made()
        model.hf.to(CARD)
        graft.to(CARD)
        torch.manual_seed(0)

        def watch(step):
            if step == stop:
                raise KeyboardInterrupt

        lines = train(
            EmbeddingTask(load(model.hf, pack=False), graft), text(), PLAN, tmp_path / folder, watch=watch
        )
        return [line["loss"] for line in lines]

    whole = on("whole")
    with pytest.raises(KeyboardInterrupt):
        on("broken", stop=6)
    again = on("broken")
    assert len(again) == len(whole)
    assert again == pytest.approx(whole, rel=1e-4)
    assert whole[-1] < whole[0]


def test_greedy_text_on_the_card_is_the_argmax_of_full_forwards():
    model = load("specimen:gpt2", device=CARD)
    texts = ["The lamp in the hall was", "She opened the door and", "In the morning the old"]
    for completion in completions(model, [Prompt(start, "t") for start in texts], 8):
        tokens = list(completion.prompt_ids)
        for token in completion.completion_ids:
            with torch.no_grad():
                logits_V = model.hf(torch.tensor([tokens], device=CARD)).logits[0, -1]
            assert float(logits_V.max() - logits_V[token]) <= model.rounding * float(logits_V.abs().max())
            tokens.append(token)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "t5"])
def test_blocks_streamed_to_the_card_compute_what_they_do_in_its_memory(name, tmp_path):
    """Pinned pages, copies on a side stream; again and again, so that memory reused too early would show."""
    torch.manual_seed(1)
    FAMILIES[name]().eval().save_pretrained(tmp_path)
    whole = load(tmp_path, device=CARD, dtype="float32", pack=False)
    sizes = load(tmp_path, device=CARD, dtype="float32", stream=True, memory=1 << 40).streamed.sizes
    limit = sizes.least + sizes.embedding + WORKING + torch.cuda.memory_allocated()
    model = load(tmp_path, device=CARD, dtype="float32", stream=True, memory=limit)
    assert not model.streamed.store.all_stay
    for seed in range(20):
        found, wanted = (recorded(one, 9, 6, seed=seed) for one in (model, whole))
        for block in range(len(model.blocks)):
            assert gap(found.pre(block), wanted.pre(block)) <= model.rounding

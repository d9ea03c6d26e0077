"""Models that see and write: opened as writers of text, and every command asks the part of the configuration
that reads text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as hf

import naive
from regraft.core.registry import experiments
from regraft.core.tolerance import gap
from regraft.experiments.running import run_experiment
from regraft.model.block_call import without_cache
from regraft.model.load import load
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant, Zero
from small import METRIC, ids

TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=3)
WORDS = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
GROUPED = dict(**WORDS, num_key_value_heads=2, head_dim=8, max_position_embeddings=128)
SIGHT = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
)
TILES = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, patch_size=4)
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def gemma3():
    text = dict(
        **GROUPED, **ENDS, sliding_window=8, layer_types=["sliding_attention"] * 3 + ["full_attention"]
    )
    ends = dict(image_token_index=90, boi_token_index=91, eoi_token_index=92)
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=text, vision_config=SIGHT, mm_tokens_per_image=4, **ends)
    )


def llava():
    sight, text = hf.CLIPVisionConfig(**SIGHT), hf.LlamaConfig(**GROUPED, **ENDS)
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=sight, text_config=text, image_token_index=90)
    )


def qwen3_vl():
    rope = dict(rope_type="default", mrope_section=[2, 1, 1], rope_theta=10000.0)
    sight = dict(**TILES, num_position_embeddings=16, deepstack_visual_indexes=[0])
    config = hf.Qwen3VLConfig(
        text_config=dict(**GROUPED, **ENDS, rope_parameters=rope), vision_config=sight, image_token_id=90
    )
    return hf.Qwen3VLForConditionalGeneration(config)


SEEING = {"gemma3": gemma3, "llava": llava, "qwen3_vl": qwen3_vl}

SIZES = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "depth",
    "num_heads",
    "patch_size",
    "image_size",
}
"""What sight's part of a configuration says of its own stack, which none of this may touch."""


@pytest.fixture(params=sorted(SEEING))
def model(request):
    torch.manual_seed(1)
    return load(SEEING[request.param]().eval(), pack=False)


def test_a_cache_is_left_out_although_it_is_one_of_many_arguments(model):
    """Otherwise every block of a replay is given the keys of the run before."""
    assert without_cache(model.hf) == {"use_cache": False}
    assert model.check.replay <= model.rounding * model.check.largest
    assert (model.vocabulary, model.width, len(model.blocks)) == (96, 32, 4)
    recording = model.record([ids(6, 3)])
    variants = [Variant([Zero("2.mlp_out")]), Variant([Zero("1.head.1")]), Variant(route=Route.skip(4, {2}))]
    rows = torch.arange(1)
    wanted = torch.stack(
        [
            naive.logits(model, recording, v)[rows, -1, 7] - naive.logits(model, recording, v)[rows, -1, 9]
            for v in variants
        ]
    )
    assert gap(sweep(recording, variants, METRIC).values["d"], wanted) <= model.rounding


@pytest.mark.parametrize("name", ["prune", "reorder", "quantize"])
def test_what_is_written_is_said_by_the_part_that_reads_text(name, model, tmp_path):
    out = tmp_path / "made"
    options = {
        "prune": dict(drop=[1]),
        "reorder": dict(order=[0, 2, 1, 3]),
        "quantize": dict(recipe="uniform", format="float", group=16),
    }
    data = run_experiment(experiments()[name], model, save=str(out), **options[name], **TEXT)
    assert "opens with transformers" in data.attrs["saved"]
    said = json.loads((out / "config.json").read_text())
    assert said["text_config"]["num_hidden_layers"] == (3 if name == "prune" else 4)
    sight = model.hf.config.vision_config.to_diff_dict()
    assert {name: said["vision_config"][name] for name in SIZES & set(sight)} == {
        name: sight[name] for name in SIZES & set(sight)
    }
    again = load(out, pack=False)
    assert [len(again.blocks), again.vocabulary] == [3 if name == "prune" else 4, 96]
    if name == "prune":
        wanted = naive.logits(model, model.record([ids(7, 5)]), Variant(route=Route.skip(4, {1})))
        assert gap(again.run(input_ids=torch.tensor([ids(7, 5)])).logits, wanted) <= model.rounding
    assert np.isfinite(data.loss.values).all()

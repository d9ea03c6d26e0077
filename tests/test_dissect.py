"""Anatomy from headers alone: every family, and checkpoints that nobody has code for."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open

from families import FAMILIES
from header_files import header_file, speech, write_diffusion
from regraft.checkpoint.block_lists import numbered
from regraft.checkpoint.dissection import component, dissect
from regraft.checkpoint.headers import Entry, Headers
from regraft.checkpoint.shapes import section
from regraft.model.load import load
from regraft.reporting.anatomy_drawing import BAR, WIDEST, census_box, svg


def facts_of(stack):
    """Facts by name over all kinds of blocks; what one kind knows wins over what another does not."""
    found = {fact.what: fact for fact in stack.facts}
    for kind in stack.kinds:
        for fact in kind.facts:
            if fact.what not in found or found[fact.what].how == "unknown":
                found[fact.what] = fact
    return found


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_from_headers_alone(name, with_config, tmp_path):
    torch.manual_seed(0)
    hf = FAMILIES[name]()
    config = hf.config
    hf.save_pretrained(tmp_path)
    if not with_config:
        (tmp_path / "config.json").unlink()
    (found,) = dissect(str(tmp_path))
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        held = sum(opened.get_tensor(key).numel() for key in opened.keys())  # noqa: SIM118
    assert found.parameters == held
    model = load(hf, pack=False)
    stacks = {
        stack.path.removeprefix(prefix): stack
        for stack in found.stacks
        for prefix in ("", hf.base_model_prefix + ".")
    }
    assert len(found.stacks) == len(model.parts.stacks)
    for stack in model.parts.stacks:
        ours = stacks.get(stack.path) or stacks[stack.path.removeprefix(hf.base_model_prefix + ".")]
        assert ours.count == len(stack.blocks)
        facts = facts_of(ours)
        assert facts["width"].value == model.width
        heads = facts.get("heads")
        if heads is not None and heads.how == "unknown":
            assert re.search(rf"\b{_heads(config)} of ", heads.why) or heads.why == "no shape tells"
        elif heads is not None:
            assert heads.value == _heads(config)
            assert facts["key/value heads"].value == (
                getattr(config, "num_key_value_heads", None) or _heads(config)
            )
        if with_config and heads is not None:
            assert heads.how in ("certain", "inferred")
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        assert ("experts" in facts) == bool(experts)
        if experts:
            assert facts["experts"].value == experts
    head = next(fact for fact in found.facts if fact.what == "head")
    own = model.parts.head is not None and not model.parts.tied
    assert head.value.startswith("a matrix of its own") == own
    rows = [fact.value for fact in found.facts if fact.what.startswith("rows of")]
    assert model.parts.embedding.weight.shape[0] in rows
    assert len(found.odd) == 0


def _heads(config):
    for name in ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"):
        if getattr(config, name, None):
            return getattr(config, name)
    raise AssertionError(config)


def test_a_speech_model_that_nobody_has_code_for(tmp_path):
    tensors = speech()
    header_file(tmp_path / "model.safetensors", tensors)
    (found,) = dissect(str(tmp_path))
    stacks = {stack.path: stack for stack in found.stacks}
    assert {path: stack.count for path, stack in stacks.items()} == {"layers": 36, "fast_layers": 4}
    slow, fast = facts_of(stacks["layers"]), facts_of(stacks["fast_layers"])
    assert (slow["width"].value, slow["width"].how) == (2560, "inferred")
    assert slow["attention"].value == "packed q, k, v: 4,096 + 1,024 + 1,024 rows"
    assert [slow[what].value for what in ("heads", "width of a head", "key/value heads")] == [32, 128, 8]
    assert slow["heads"].how == "inferred"
    assert fast["heads"].how == "unknown", "nothing in the fast stack tells one head from another"
    assert "32 of 128" in fast["heads"].why
    assert slow["neurons"].value == 9728
    assert slow["MLP"].value == "gated"
    rows = {fact.what: fact.value for fact in found.facts}
    assert rows["rows of codebook_embeddings.weight"] == 40_960
    assert found.parameters == sum(a * (b[0] if b else 1) for a, *b in tensors.values())
    drawn = svg("speech", [found])
    for words in (
        "36 x layers",
        "4 x fast_layers",
        "codebook_embeddings.weight   40,960 x 2,560",
        "fast_output.weight",
    ):
        assert words in drawn
    assert drawn.index("36 x layers") < drawn.index("4 x fast_layers")
    assert drawn.count('rx="6"') == 2 + 7, (
        "shares of each; tables, blocks, norm for the slow stack; tables, blocks, norm, head for the fast one"
    )


def test_a_diffusion_transformer_with_its_text_encoder(tmp_path):
    text, picture = dissect(str(write_diffusion(tmp_path)))
    assert [text.name, picture.name] == ["text_encoder", "transformer"]
    (blocks,) = picture.stacks
    facts = facts_of(blocks)
    assert blocks.count == 24
    assert (facts["width"].value, facts["heads"].value, facts["width of a head"].value) == (1536, 24, 64)
    assert "modulation" in facts
    assert "cross-attention" in facts
    assert picture.dtypes == {"F16": picture.parameters}
    facts = facts_of(text.stacks[0])
    assert (text.stacks[0].count, facts["width"].value, facts["heads"].value, facts["MLP"].value) == (
        12,
        1024,
        16,
        "gated",
    )


def test_experts_gaps_and_odd_tensors_are_told():
    shapes = {
        f"blocks.{i}.{n}.weight": (8, 8)
        for i in range(10)
        if i != 4
        for n in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    shapes |= {f"blocks.{i}.experts.{e}.w2.weight": (8, 24) for i in range(10) if i != 4 for e in range(3)}
    shapes |= {
        "blocks.7.extra.weight": (8, 8),
        "embed.weight": (50, 8),
        "nothing": (0, 8),
        "head.0.weight": (8, 8),
    }
    shapes |= {"head.2.weight": (3, 8)}
    entries = {name: Entry(name, "F32", shape, "a") for name, shape in shapes.items()}
    found = component(Headers("", entries, None))
    (stack,) = found.stacks
    assert stack.count == 9
    assert facts_of(stack)["experts"].value == 3
    said = " | ".join(found.odd)
    assert "blocks has no block 4, though there is a block 9" in said
    assert "blocks.7 differs from most blocks of its list in extra.weight" in said
    assert "nothing is empty, 0 x 8" in said
    lists, rest = numbered([Entry(f"head.{i}.weight", "F32", (8, 8), "a") for i in (0, 2)])
    assert not lists
    assert len(rest) == 2


def test_what_a_config_says_against_the_shapes_is_not_believed(tmp_path):
    FAMILIES["llama"]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3, "hidden_size": 64}))
    (found,) = dissect(str(tmp_path))
    facts = facts_of(found.stacks[0])
    assert facts["heads"].how == "unknown"
    assert "config.json says 3 with 2 key/value heads, which the shapes cannot have" in facts["heads"].why
    assert (facts["width"].value, facts["width"].how) == (32, "inferred")
    assert "config.json says 64, which no shape bears out" in facts["width"].why


def test_a_config_of_several_models_speaks_of_each_stack_by_its_own_section(tmp_path):
    """A picture model of 12 heads beside a text model of 8, both of which the shapes allow; encoder and
    decoder likewise."""
    tensors = {
        "text_model.embeddings.token_embedding.weight": (500, 512),
        "vision_model.embeddings.class_embedding": (768,),
    }
    for side, width in (("text_model", 512), ("vision_model", 768)):
        for i in range(3):
            path = f"{side}.encoder.layers.{i}"
            tensors |= {f"{path}.self_attn.{n}_proj.weight": (width, width) for n in ("q", "k", "v", "out")}
            tensors |= {
                f"{path}.mlp.fc1.weight": (4 * width, width),
                f"{path}.mlp.fc2.weight": (width, 4 * width),
            }
            tensors |= {f"{path}.layer_norm1.weight": (width,), f"{path}.layer_norm2.weight": (width,)}
    header_file(tmp_path / "model.safetensors", tensors)
    sections = {"text_config": {"num_attention_heads": 8}, "vision_config": {"num_attention_heads": 12}}
    (tmp_path / "config.json").write_text(json.dumps(sections))
    (found,) = dissect(str(tmp_path))
    told = {stack.path.split(".")[0]: facts_of(stack) for stack in found.stacks}
    assert (told["text_model"]["heads"].value, told["vision_model"]["heads"].value) == (8, 12)
    assert told["vision_model"]["heads"].how == "inferred", "the shapes allow it, they do not say it"
    sides = {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "d_model": 32}
    assert section(sides, "model.decoder.layers")["num_attention_heads"] == 2
    assert section(sides, "model.encoder.layers")["num_attention_heads"] == 4
    assert section({"text_config": "x"}, "layers") == {"text_config": "x"}


def test_adapters_and_single_rows_are_no_widths_and_no_tables(tmp_path):
    tensors = {}
    for i in range(3):
        path = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        tensors |= {f"{path}.lora_A.weight": (16, 4096), f"{path}.lora_B.weight": (4096, 16)}
    header_file(tmp_path / "adapter_model.safetensors", tensors)
    (found,) = dissect(str(tmp_path))
    assert all(fact.what != "width" for stack in found.stacks for kind in stack.kinds for fact in kind.facts)
    entries = {"embeddings.mask_token": Entry("embeddings.mask_token", "F32", (1, 64), "a")}
    assert [o.use for o in component(Headers("", entries, None)).outside] == ["other"]


def test_the_drawing_shows_what_a_stack_is_made_of_by_shares(tmp_path):
    """A bar for each line of the census, as long as its share of the stack; a stack's shares sum to 1."""
    header_file(tmp_path / "model.safetensors", speech())
    (found,) = dissect(str(tmp_path))
    for stack in found.stacks:
        box = census_box(found, stack.path)
        lines = [line for line in found.census if line.part == stack.path]
        assert len(box.lines) == len(box.shares) == len(lines) > 2
        assert sum(box.shares) == pytest.approx(1)
        assert f"{box.shares[0]:.1%}  {lines[0].kind}" in box.lines[0]
        total = sum(line.parameters for line in lines)
        assert box.heading.endswith(f": {total / found.parameters:.0%} of all")
    drawn = svg("speech", [found])
    widths = [float(w) for w in re.findall(rf'width="([\d.]+)" height="\d+" fill="{BAR}"', drawn)]
    wanted = [share * WIDEST for s in found.stacks for share in census_box(found, s.path).shares]
    assert sorted(widths) == pytest.approx(sorted(wanted), abs=0.06)

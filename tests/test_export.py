"""Models with grafts as Hugging Face folders: read again and compared, by name and with remote code, one
graft and both."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from regraft.checkpoint.locate import CheckpointError
from regraft.core.tolerance import gap
from regraft.data.token_bytes import token_bytes
from regraft.data.windows import cut
from regraft.export.certificate import certify
from regraft.export.graft_folder import (
    attach,
    make_embedding,
    read_certificate,
    save_graft,
    swaps_of,
    write_certificate,
)
from regraft.export.grafted_model import write_grafted
from regraft.model.load import load
from regraft.modules.byte_embedding import ByteConfig
from regraft.modules.hf_model import GraftedModel
from regraft.modules.placement import all_placed
from regraft.modules.tree_head import tree_head
from regraft.modules.trees import by_id, widened
from regraft.training.tasks.head_task import HeadTask

BYTES = ByteConfig(group=8, byte_width=16, blocks=1, heads=2, neurons=32)
NAMES = ("specimen:qwen3", "specimen:gpt2", "specimen:t5")


def both(model):
    torch.manual_seed(0)
    embedding = make_embedding(model, BYTES)
    head = tree_head(widened(by_id(model.vocabulary), 2), model.width, 16)
    with torch.no_grad():
        head.rows.weight[:-1].normal_()
        head.adapter.down.weight.normal_()
    return embedding, head


def certified(model, grafts):
    text = {"noise": cut(np.random.default_rng(0).integers(5, 90, 400).astype(np.uint32), 16)}
    return certify(
        model, swaps_of(model, grafts), text, token_bytes(model.tokenizer, model.table_rows), most=2
    )


def outputs(hf, two_stacks):
    ids = torch.tensor([[5, 9, 300, 1000, 2, 77]])
    with torch.no_grad():
        return hf(input_ids=ids, **({"decoder_input_ids": ids} if two_stacks else {})).logits


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["embedding", "head", "both"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "specimen:qwen3")) for name in NAMES]
)
def test_an_export_is_read_again(name, which, tmp_path):
    model = load(name, pack=False)
    grafts = [both(model)[i] for i in which]
    plain = outputs(model.hf, model.two_stacks)
    with all_placed(model.hf, swaps_of(model, grafts)):
        wanted = outputs(model.hf, model.two_stacks)
    data = certified(model, grafts)
    said = write_grafted(model, grafts, data, tmp_path / "out")
    assert "its tensors are the grafts' to the bit" in said
    auto = transformers.AutoModelForSeq2SeqLM if model.two_stacks else transformers.AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path / "out").eval()
    assert isinstance(again, GraftedModel)
    found = outputs(again, model.two_stacks)
    assert gap(found, wanted) <= model.rounding
    assert gap(plain, wanted) > 100 * model.rounding
    assert torch.equal(outputs(model.hf, model.two_stacks), plain), "the model itself is as it was"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{float(data.bits_per_byte_after[0]):.4f}" in card
    assert f"{int(data.part_parameters[1]):,}" in card
    assert not list((tmp_path / "out").glob("*.py"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    blocks = {
        n: t for n, t in stored.items() if any(n.startswith(f"base.{block.path}.") for block in model.blocks)
    }
    assert {t.dtype for t in blocks.values()} == {torch.bfloat16}, (
        "as in the source's files, where nothing is lost"
    )
    assert any(t.dtype == torch.float32 for t in stored.values()), "what was trained keeps all its digits"


REMOTE = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
ids = torch.tensor([[5, 9, 300, 1000, 2, 77]])
torch.save((model(ids).logits.detach(), model.generate(ids, max_new_tokens=5, do_sample=False)), sys.argv[2])
assert not any(name.split(".")[0] == "regraft" for name in sys.modules), "regraft was imported"
"""


def test_an_export_with_its_code_opens_without_regraft(tmp_path):
    model = load("specimen:gpt2", pack=False)
    grafts = both(model)
    write_grafted(model, grafts, certified(model, grafts), tmp_path / "out", remote_code=True)
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", REMOTE, str(tmp_path / "out"), str(tmp_path / "found.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    logits, written = torch.load(tmp_path / "found.pt")
    with all_placed(model.hf, swaps_of(model, grafts)):
        assert gap(logits, outputs(model.hf, False)) <= model.rounding
    again = GraftedModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(
        again.generate(torch.tensor([[5, 9, 300, 1000, 2, 77]]), max_new_tokens=5, do_sample=False), written
    )


NAMED = """
import sys
{imports}
assert "torch" not in sys.modules or "transformers" in sys.modules
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__module__)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import regraft",
        pytest.param("import transformers; transformers.AutoModel; import regraft", marks=pytest.mark.slow),
    ],
)
def test_import_regraft_makes_the_type_known(imports, tmp_path):
    """Whichever is imported first."""
    model = load("specimen:gpt2", pack=False)
    grafts = both(model)[:1]
    write_grafted(model, grafts, certified(model, grafts), tmp_path / "out")
    code = NAMED.format(imports=imports)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "regraft.modules.hf_model"


def test_generation_of_an_export_reads_only_what_it_needs(tmp_path):
    model = load("specimen:gpt2", pack=False)
    grafts = both(model)[1:]
    write_grafted(model, grafts, certified(model, grafts), tmp_path / "out")
    again = GraftedModel.from_pretrained(tmp_path / "out").eval()
    view = again.base.lm_head
    ids = torch.tensor([[5, 9, 300]])
    for how in ({"num_beams": 3, "do_sample": False}, {"do_sample": False}):
        before = view.visited
        found = again.generate(ids, max_new_tokens=6, **how)
        assert view.visited > before
        whole = again.generate(ids, max_new_tokens=6, logits_processor=[lambda ids, scores: scores], **how)
        assert torch.equal(found, whole)
    assert view.mode == "full"


def test_a_folder_with_other_outputs_is_not_kept(tmp_path, monkeypatch):
    model = load("specimen:gpt2", pack=False)
    grafts = both(model)
    data = certified(model, grafts)
    monkeypatch.setattr(
        "regraft.export.verified_folder.outputs_of", lambda hf, inputs: torch.zeros(1, 3, model.vocabulary)
    )
    with pytest.raises(ValueError, match="outputs differ from the grafts'"):
        write_grafted(model, grafts, data, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_certificate_is_of_these_very_tensors(tmp_path):
    model = load("specimen:gpt2", pack=False)
    embedding, head = both(model)
    folders = [tmp_path / "a", tmp_path / "b"]
    for graft, folder in zip((embedding, head), folders, strict=True):
        save_graft(graft, model, folder)
    with pytest.raises(CheckpointError, match="has no certificate"):
        read_certificate(folders)
    write_certificate(certified(model, [embedding, head]), folders)
    assert (
        read_certificate(folders).attrs["grafts_sha256"]
        == read_certificate([folders[0], folders[1]]).attrs["grafts_sha256"]
    )
    with pytest.raises(CheckpointError, match="was measured on other tensors"):
        read_certificate(folders[:1])
    again = attach(folders[1], model)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), head.parameters(), strict=True))
    assert torch.equal(again.children_NB, head.children_NB)
    with pytest.raises(CheckpointError, match="holds a tree head, not a byte embedding"):
        attach(folders[1], model, "byte embedding")
    about = json.loads((folders[1] / "graft.json").read_text())
    (folders[1] / "graft.json").write_text(json.dumps({**about, "kind": "hat"}))
    with pytest.raises(CheckpointError, match="no graft of the kind 'hat' is known"):
        attach(folders[1], model)
    with pytest.raises(ValueError, match="two grafts of the kind byte embedding"):
        swaps_of(model, [embedding, embedding])


def test_a_tampered_or_damaged_graft_is_refused(tmp_path):
    model = load("specimen:gpt2", pack=False)
    head = both(model)[1]
    save_graft(head, model, tmp_path / "head")
    file = tmp_path / "head" / "graft.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    for name, place in (("children_NB", (-1, 1)), ("turns_VL", (5, 0)), ("first_N", (3,))):
        changed = {key: tensor.clone() for key, tensor in tensors.items()}
        changed[name][place] = changed[name][place] - 1
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=r"leaves once|does not belong to its children"):
            attach(tmp_path / "head", model)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        attach(tmp_path / "head", model)
    file.write_bytes(whole)
    assert torch.equal(attach(tmp_path / "head", model).rows.weight, head.rows.weight)


def test_grafts_in_a_half_precision_model_stay_in_float32(tmp_path):
    model = load("specimen:gpt2", dtype="bfloat16", pack=False)
    grafts = both(model)
    ids = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(HeadTask(model, grafts[1]).losses(ids)["path"]))
    write_grafted(model, grafts, certified(model, grafts), tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.base.lm_head.head.rows.weight.dtype == torch.float32
    assert again.base.transformer.h[0].mlp.c_fc.weight.dtype == torch.bfloat16
    assert torch.equal(again.base.lm_head.head.rows.weight, grafts[1].rows.weight)


def test_generation_follows_the_settings_that_were_exported(tmp_path):
    """Settings stand in a file of their own; what is left open falls back on them, and on transformers' own
    defaults."""
    model = load("specimen:gpt2", pack=False)
    grafts = both(model)[1:]
    model.hf.generation_config.repetition_penalty = 1.8
    model.hf.generation_config.eos_token_id = [3, 77]
    write_grafted(model, grafts, certified(model, grafts), tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    assert again.generation_config.eos_token_id == [3, 77]
    assert again.base.generation_config.repetition_penalty == 1.8
    assert again.base.config._attn_implementation == "eager"
    view, ids = again.base.lm_head, torch.tensor([[5, 9, 300]])
    short = transformers.GenerationConfig(max_new_tokens=9, do_sample=False)
    again.generate(ids, short)
    assert view.visited == 0, "a penalty reads every token"
    again.generation_config.repetition_penalty = 1.0
    again.generate(ids, short)
    assert view.visited > 0
    torch.manual_seed(0)
    ids = torch.tensor([[5, 9, 300]] * 64)
    drawn = again.generate(ids, do_sample=True, max_new_tokens=1)[:, -1]
    with torch.no_grad():
        best = again(ids[:1]).logits[0, -1].topk(50).indices.tolist()
    assert set(drawn.tolist()) <= set(best), "transformers samples among the 50 best where nothing is said"
    before = view.visited
    only = again.generate(
        ids[:1], max_new_tokens=2, do_sample=False, prefix_allowed_tokens_fn=lambda batch, row: [11]
    )
    assert only[0, -2:].tolist() == [11, 11]
    assert view.visited == before

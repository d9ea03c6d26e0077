"""A graft alone in a folder, attached to its own model only; baked back into a table with the same
outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from regraft.checkpoint.locate import CheckpointError
from regraft.core.files import NotKeptError, RunFolderError
from regraft.data.token_bytes import token_bytes
from regraft.data.windows import cut
from regraft.export.baked_embedding import bake, with_table
from regraft.export.certificate import certify
from regraft.export.graft_folder import (
    attach,
    make_embedding,
    read_certificate,
    save_graft,
    write_certificate,
)
from regraft.model.load import load
from regraft.modules.byte_embedding import ByteConfig
from regraft.training.tasks.embedding_task import warm_up
from small import opened

SMALL = ByteConfig(group=8, byte_width=16, blocks=1, heads=2, neurons=32)


def prepared(name, folder):
    model = load(name, pack=False)
    torch.manual_seed(0)
    graft = make_embedding(model, SMALL)
    warm_up(graft, model.parts.embedding.weight.detach(), 20)
    save_graft(graft, model, folder)
    return model, graft


def certified(model, graft, folder):
    ids = model.tokenizer("She sells sea shells by the sea shore. " * 30)["input_ids"]
    table = token_bytes(model.tokenizer, model.table_rows)
    data = certify(
        model, [(model.parts.embedding, graft)], {"shells": cut(np.array(ids, np.uint32), 24)}, table, most=4
    )
    write_certificate(data, [folder])
    return data


def test_a_graft_alone_is_attached_again_to_the_bit(tmp_path):
    model, graft = prepared("specimen:qwen3", tmp_path / "graft")
    again = attach(tmp_path / "graft", load("specimen:qwen3", pack=False))
    assert torch.equal(again.table(), graft.table())
    assert (tmp_path / "graft" / "graft.safetensors").stat().st_size < sum(
        t.nbytes for t in graft.state_dict().values()
    ) + 4096
    with pytest.raises(CheckpointError, match=r"was made for specimen:qwen3 .* not for specimen:gpt2"):
        attach(tmp_path / "graft", load("specimen:gpt2", pack=False))
    with pytest.raises(CheckpointError, match="holds no graft"):
        attach(tmp_path, model)
    with pytest.raises(RunFolderError, match="is not empty"):
        save_graft(graft, model, tmp_path / "graft")
    about = json.loads((tmp_path / "graft" / "graft.json").read_text())
    (tmp_path / "graft" / "graft.json").write_text(
        json.dumps({**about, "config": {**about["config"], "neurons": 31}})
    )
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        attach(tmp_path / "graft", model)
    with pytest.raises(ValueError, match="has no tokenizer"):
        make_embedding(opened("llama"), SMALL)


@pytest.mark.parametrize("name", ["specimen:gpt2", pytest.param("specimen:qwen3", marks=pytest.mark.slow)])
def test_a_baked_graft_is_a_plain_model_with_the_same_outputs(name, tmp_path):
    model, graft = prepared(name, tmp_path / "graft")
    with pytest.raises(CheckpointError, match="has no certificate: measure the graft first"):
        bake(model, graft, tmp_path / "graft", tmp_path / "baked")
    assert not (tmp_path / "baked").exists()
    data = certified(model, graft, tmp_path / "graft")
    said = bake(model, graft, tmp_path / "graft", tmp_path / "baked")
    assert ("its head keeps the old matrix" in said) == model.parts.tied
    assert "rounding to bfloat16, the type of its source's files, moves them by" in said
    assert {t.dtype for t in load_file(tmp_path / "baked" / "model.safetensors").values()} == {torch.bfloat16}
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=torch.float32).eval()
    assert torch.equal(plain.get_input_embeddings().weight, graft.table().bfloat16().float())
    assert torch.equal(plain.get_output_embeddings().weight, model.hf.get_output_embeddings().weight)
    ids = torch.tensor([[5, 9, 300, 1000, 2]])
    with torch.no_grad():
        wanted = model.hf(inputs_embeds=graft(ids).bfloat16().float()).logits
        assert float((plain(ids).logits - wanted).abs().max()) < 1e-5
    card = (tmp_path / "baked" / "README.md").read_text()
    assert f"{float(data.bits_per_byte_after[0]):.4f}" in card
    again = read_certificate([tmp_path / "graft"])
    assert float(again.kl[0]) == pytest.approx(float(data.kl[0]))


def test_a_baked_table_of_other_numbers_is_not_written(tmp_path, monkeypatch):
    """Rounding to the source's type moves the outputs a little; a table that is another one is noticed beside
    it."""
    model, graft = prepared("specimen:gpt2", tmp_path / "graft")
    certified(model, graft, tmp_path / "graft")

    def twice(model, graft):
        changed = with_table(model, graft)
        changed.get_input_embeddings().weight.data *= 2
        return changed

    monkeypatch.setattr("regraft.export.baked_embedding.with_table", twice)
    with pytest.raises(
        NotKeptError, match=r"the baked model's outputs differ from the graft's by .* of the largest"
    ):
        bake(model, graft, tmp_path / "graft", tmp_path / "baked")
    assert not (tmp_path / "baked").exists()


def test_the_commands_one_after_the_other(tmp_path):
    from typer.testing import CliRunner

    from regraft.cli.main import app

    def run(*words):
        return CliRunner().invoke(app, ["graft", "embedding", *map(str, words), "--model", "specimen:gpt2"])

    out, graft = tmp_path / "out", tmp_path / "out" / "graft"
    (tmp_path / "train.txt").write_text("She sells sea shells by the sea shore. " * 200)
    sizes = [
        "--group",
        8,
        "--byte-width",
        8,
        "--neurons",
        32,
        "--steps",
        4,
        "--warm",
        10,
        "--batch",
        2,
        "--length",
        32,
    ]
    done = run("fit", "--text", tmp_path / "train.txt", "--out", out, *sizes)
    assert done.exit_code == 0, done.output
    assert "of the table's" in done.output
    again = run("fit", "--text", tmp_path / "train.txt", "--out", out, *sizes)
    assert again.exit_code == 2
    assert "is not empty" in again.output
    unmeasured = run("bake", "--graft", graft, "--save", tmp_path / "baked")
    assert unmeasured.exit_code == 2
    assert "has no certificate" in unmeasured.output
    measured = run(
        "eval", "--graft", graft, "--text", f"shells={tmp_path / 'train.txt'}", "--windows", 4, "--length", 32
    )
    assert measured.exit_code == 0, measured.output
    assert "shells: " in measured.output
    assert "bits per byte become" in measured.output
    baked = run("bake", "--graft", graft, "--save", tmp_path / "baked")
    assert baked.exit_code == 0, baked.output
    assert (tmp_path / "baked" / "model.safetensors").is_file()
    for words, sentence in (
        (("eval", "--graft", graft, "--text", "train.txt"), "names no domain: write NAME=PATH"),
        (("fit", "--text", tmp_path / "none", "--out", tmp_path / "x"), "is neither a file nor a folder"),
        (("fit", "--out", tmp_path / "y", "--byte-width", 10), "4 heads do not divide"),
        (("eval", "--graft", tmp_path), "holds no graft"),
    ):
        wrong = run(*words)
        assert wrong.exit_code in (1, 2)
        assert sentence in wrong.output


def test_tied_embeddings_of_both_stacks_get_the_table():
    model = load("specimen:t5", pack=False)
    graft = make_embedding(model, SMALL)
    changed = with_table(model, graft)
    found = [
        m for n, m in changed.named_modules() if isinstance(m, torch.nn.Embedding) and "relative" not in n
    ]
    tables = {module.weight.data_ptr() for module in found}
    assert len(tables) == 1
    assert torch.equal(changed.lm_head.weight, model.hf.lm_head.weight)
    assert torch.equal(changed.shared.weight, graft.table())

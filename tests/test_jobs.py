"""Whole jobs from Python, as a user writes them: names of folders as texts, defaults for the rest."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

import regraft
from regraft.core.files import RunFolderError


@pytest.fixture(scope="module")
def model():
    return regraft.load("specimen:gpt2", pack=False)


def test_a_byte_embedding_from_the_first_step_to_a_model_of_its_own(model, tmp_path):
    plan = regraft.TrainingPlan(steps=2, batch=2, warmup=1)
    sizes = regraft.ByteConfig(group=8, byte_width=16, neurons=32)
    said = regraft.fit_embedding(
        model, str(tmp_path / "run"), config=sizes, plan=plan, length=16, warm=2, felt=False
    )
    assert "after 2 steps the loss is" in said
    folders = [str(tmp_path / "run" / "graft")]
    with pytest.raises(ValueError, match="has no certificate"):
        regraft.export_grafts(model, folders, str(tmp_path / "out"))
    data = regraft.evaluate_grafts(model, folders, length=16, most=2)
    assert float(data.bits_per_byte_after[0]) > float(data.bits_per_byte_before[0])
    assert "opens with transformers" in regraft.bake_embedding(model, folders[0], str(tmp_path / "baked"))
    assert json.loads((tmp_path / "run" / "graft" / "certificate.json").read_text())
    with pytest.raises(RunFolderError):
        regraft.fit_embedding(model, str(tmp_path / "run"), config=sizes, plan=plan)


def test_a_tokenizer_is_trained_and_compared(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the hat " * 200, encoding="utf-8")
    recipe = regraft.Recipe(vocabulary=300, kind="ordinary")
    said = regraft.train_tokenizer(str(tmp_path / "made"), [str(tmp_path / "text.txt")], recipe=recipe)
    made = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert said.startswith(f"{len(made):,} tokens")
    data = regraft.compare_tokenizers(
        [str(tmp_path / "made"), "specimen:gpt2"], str(tmp_path / "compared"), most=4
    )
    assert data.tokenizer.values.tolist() == ["made", "specimen:gpt2"]
    assert (tmp_path / "compared" / "tokenizers.html").is_file()


def test_what_a_model_is_made_of(model, tmp_path):
    found = regraft.inspect(model)
    assert found.parts[-1].parameters == sum(p.numel() for p in model.hf.parameters())
    assert found.as_dict()["self_check"]["replay"] <= model.rounding
    (component,) = regraft.inspect_headers("specimen:gpt2", str(tmp_path / "drawn"))
    assert component.stacks
    assert (tmp_path / "drawn" / "anatomy.svg").is_file()

"""Completions that vLLM writes: what it is asked, what is kept of the answer, what is refused; with an engine
of the same face in its place, which writes by whole forward passes."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from regraft.core.caching import without_cache
from regraft.core.registry import experiments
from regraft.data import generation
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from small import opened

ASKED = {"count": 3, "tokens": 6}


class Answer:
    def __init__(self, ids):
        self.outputs = [types.SimpleNamespace(token_ids=ids)]


class Engine:
    """vLLM's face: it opens the folder that it is given and writes greedily, the end token included."""

    made: list[dict] = []
    asked: list[list[int]] = []

    def __init__(self, **how):
        self.made.append(how)
        self.hf = load(how["model"], pack=False).hf

    def generate(self, prompts, how):
        found = []
        for prompt in prompts:
            self.asked.append(prompt["prompt_token_ids"])
            ids = list(prompt["prompt_token_ids"])
            start = len(ids)
            with torch.no_grad():
                while len(ids) < start + how.max_tokens:
                    ids.append(int(self.hf(torch.tensor([ids])).logits[0, -1].argmax()))
                    if ids[-1] in (how.stop_token_ids or ()):
                        break
            found.append(Answer(ids[start:]))
        return found


@pytest.fixture
def engine(monkeypatch):
    stand_in = types.ModuleType("vllm")
    stand_in.LLM = Engine
    stand_in.SamplingParams = lambda **how: types.SimpleNamespace(**how)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    Engine.made, Engine.asked = [], []
    return Engine


def completed(model, **how):
    return run_experiment(experiments()["completions"], model, 0, **ASKED, **how)


def test_what_vllm_writes_is_what_the_model_writes_and_is_kept_for_everyone(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    model = load("specimen:gpt2")
    written = completed(model, backend="vllm")
    assert len(engine.asked) == 3
    (how,) = engine.made
    assert (how["model"], how["dtype"]) == (str(model.folder), "float32")
    assert how["max_model_len"] == max(map(len, engine.asked)) + 6
    monkeypatch.setattr(generation, "write_on", None)
    kept = completed(model)
    assert len(engine.made) == 1
    assert kept.completion.values.tolist() == written.completion.values.tolist()
    assert (written.attrs["backend"], kept.attrs["backend"]) == ("vllm", "transformers")
    monkeypatch.undo()
    with without_cache():
        own = completed(load("specimen:gpt2"))
    assert own.completion.values.tolist() == written.completion.values.tolist()


def test_without_a_cache_vllm_writes_all_the_same(engine):
    with without_cache():
        data = completed(load("specimen:gpt2"), backend="vllm")
    assert len(engine.asked) == 3
    assert np.all(data.completion_tokens.values > 0)


def test_what_vllm_cannot_open_is_refused(engine, monkeypatch):
    with pytest.raises(ValueError, match=r"vLLM opens a folder, and .* has none: save it first"):
        completed(opened("llama"), backend="vllm")
    model = load("specimen:gpt2", pack=False)
    with torch.no_grad():
        model.parts.embedding.weight[0, 0] += 1
    with pytest.raises(ValueError, match="were changed since they were read: save it first"):
        completed(model, backend="vllm")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="--backend vllm needs vLLM, which is not installed here"):
        completed(load("specimen:gpt2"), backend="vllm")
    assert not engine.made


def test_the_key_does_not_hang_on_who_read_the_configuration(tmp_path, monkeypatch):
    """Another version of transformers, the same configuration: the same completions. A changed one: new
    ones."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    model = load("specimen:gpt2", pack=False)
    completed(model)
    monkeypatch.setattr(model.hf.config, "transformers_version", "5.17.0")
    completed(model)
    assert len(list((tmp_path / "completions").iterdir())) == 1
    monkeypatch.setattr(model.hf.config, "layer_norm_epsilon", 1e-3)
    completed(model)
    assert len(list((tmp_path / "completions").iterdir())) == 2

"""Models as people bring them: wrapped, adapted, offloaded, short of positions, under another precision."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from torch import nn

from families import FAMILIES
from regraft import load, sweep
from regraft.checkpoint.locate import CheckpointError
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.sweeps.metrics import loss
from regraft.sweeps.prefix_cache import cone_holds
from regraft.sweeps.variants import Replace, Variant, Zero
from small import METRIC, ids, opened, recorded, reference


class LowRank(nn.Module):
    """A layer with an adapter beside its matrix, in the manner of the usual library: widths, a base layer,
    two thin ones."""

    def __init__(self, base: nn.Linear, rank: int = 2):
        super().__init__()
        self.base_layer, self.in_features, self.out_features = base, base.in_features, base.out_features
        self.down, self.up = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Wrapper(nn.Module):
    """Passes calls on, and attributes too, as wrappers do."""

    def __init__(self, inner, **others):
        super().__init__()
        self.inner = inner
        for name, module in others.items():
            setattr(self, name, module)

    @property
    def config(self):
        return self.inner.config

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def llama(seed=1):
    torch.manual_seed(seed)
    return FAMILIES["llama"]().eval()


def adapted():
    hf = llama()
    for block in hf.model.layers:
        for owner, name in (
            (block.mlp, "down_proj"),
            (block.self_attn, "q_proj"),
            (block.self_attn, "o_proj"),
        ):
            setattr(owner, name, LowRank(getattr(owner, name)))
    return hf


def clean_loss(model, tokens):
    return float(sweep(model.record([tokens]), [Variant()], loss()).clean["loss"])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_model_is_opened_through_what_wraps_it_and_the_notes_say_so():
    hf = llama()
    tokens = ids(9, 5)
    with torch.no_grad():
        wanted = float(hf(input_ids=torch.tensor([tokens]), labels=torch.tensor([tokens])).loss)
    for wrapper in (Wrapper(hf), nn.DataParallel(hf), nn.Sequential(Wrapper(hf)), torch.compile(hf)):
        model = load(wrapper, pack=False)
        assert model.hf is hf
        assert f"opened through {type(wrapper).__name__}" in model.notes[0]
        assert clean_loss(model, tokens) == pytest.approx(wanted, abs=1e-5)
        assert "opened" in run_experiment(experiments()["knockout"], model, prompts=["5 6 7"], tokens=2).attrs
    assert load(hf, pack=False).notes == []
    with_head = load(Wrapper(hf, pooling=nn.Linear(4, 4)), pack=False)
    assert "with weights of its own, is left out" in with_head.notes[1]


def test_code_that_was_compiled_in_place_is_left_out_and_put_back():
    hf = llama()
    called = []
    hf._compiled_call_impl = lambda *args, **kwargs: called.append(1) or hf._call_impl(*args, **kwargs)
    code = hf._compiled_call_impl
    model = load(hf, pack=False)
    sweep(model.record([ids(7, 1)]), [Variant([Zero("1.mlp_out")])], METRIC)
    assert not called
    assert hf._compiled_call_impl is code


def test_an_adapter_is_in_effect_in_every_number_and_said():
    model = load(adapted(), pack=False)
    assert model.notes == ["an adapter is in effect in 12 layers, first model.layers.0.self_attn.q_proj"]
    assert all(
        model.taps.exists(block.index, name)
        for block in model.blocks
        for name in ("z", "q", "k", "v", "mlp_act")
    )
    recording = recorded(model, 7, 7)
    sites = ["0.neuron.3", "2.neuron.17", "1.head.2", "3.mlp_out", "0.attn_out", "2.q"]
    variants = [Variant([Zero(site)]) for site in sites]
    wanted = reference(model, recording, variants)
    assert torch.allclose(sweep(recording, variants, METRIC).values["d"], wanted, atol=1e-5)
    for experiment, options in (("prune", {"drop": [1], "save": "x"}), ("spectra", {})):
        with pytest.raises(ValueError, match=r"adapter|LowRank"):
            run_experiment(experiments()[experiment], model, **options)


def test_what_cannot_be_opened_is_said_in_a_sentence(tmp_path):
    hf = llama()
    wrong = {
        "holds none": nn.Linear(2, 2),
        "holds 2 Hugging Face models": nn.ModuleDict({"a": hf, "b": llama()}),
        "puts virtual tokens before every text": Wrapper(hf, prompt_encoder=nn.Linear(2, 2)),
        "a int cannot be opened": 5,
        "a tuple cannot be opened": (hf, None, None),
    }
    for sentence, given in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            load(given)
    with torch.device("meta"):
        empty = FAMILIES["llama"]()
    with pytest.raises(
        ValueError, match=r"weights of this LlamaForCausalLM hold no numbers here \(first model.embed_tokens"
    ):
        load(empty)
    with pytest.raises(ValueError, match="there are two tokenizers"):
        load((hf, "a"), "b")
    assert load((hf, None), pack=False).hf is hf


def test_folders_with_adapters_or_of_old_layouts_are_not_opened_as_if_they_had_none(tmp_path):
    folder = tmp_path / "model"
    llama().save_pretrained(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "their/base"}))
    with pytest.raises(
        CheckpointError, match=r"an adapter beside a model \(adapter_config.json, for their/base\): merge"
    ):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds an adapter and no model"):
        load(folder)
    old = tmp_path / "old" / "0_Transformer"
    llama().save_pretrained(old)
    with pytest.raises(CheckpointError, match="its model lies in old/0_Transformer, open that"):
        load(tmp_path / "old")
    assert load(old).blocks
    shutil.rmtree(tmp_path / "old")


@pytest.mark.parametrize("positions", [2, 3, 6, 11])
def test_models_of_few_positions_open_with_what_fits(positions):
    torch.manual_seed(0)
    ends = dict(bos_token_id=1, eos_token_id=2)
    config = transformers.GPT2Config(
        vocab_size=96, n_positions=positions, n_embd=32, n_layer=2, n_head=4, **ends
    )
    model = load(transformers.GPT2LMHeadModel(config).eval(), pack=False)
    assert model.probe == min(positions, 8)
    assert model.check.replay == 0.0
    assert model.check.causal
    recording, other = (model.record([ids(positions, seed)]) for seed in (1, 2))
    variants = [Variant([Replace("1.resid_pre", other["1.resid_pre"], position=t)]) for t in range(positions)]
    assert torch.allclose(
        sweep(recording, variants, METRIC).values["d"], reference(model, recording, variants), atol=1e-5
    )
    assert not cone_holds(model), "the proof needs twelve positions"
    with pytest.raises(
        ValueError, match=rf"{positions + 1} tokens do not fit .* longest input is {positions} tokens"
    ):
        model.record([ids(positions + 1, 1)])


@pytest.mark.parametrize("name", ["bert", "opt", "bart", "gptj", "gpt2"])
def test_a_text_longer_than_the_model_is_one_sentence(name):
    model = opened(name)
    rows = [ids(140, 3)]
    with pytest.raises(
        ValueError, match=r"1\d\d tokens do not fit this model, whose longest input is 128 tokens: shorten"
    ):
        model.record(rows, [ids(3, 4)] if model.two_stacks else None)


def test_the_callers_precision_and_inference_mode_do_not_reach_the_numbers():
    hf, tokens = llama(), ids(9, 5)
    wanted = clean_loss(load(hf, pack=False), tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert clean_loss(load(hf, pack=False), tokens) == wanted
    with torch.inference_mode():
        model = load(llama(), pack=False)
        assert clean_loss(model, tokens) == pytest.approx(wanted, abs=1e-6)
        assert sweep(model.record([tokens]), [Variant([Zero("1.mlp_out")])], METRIC).deviation <= 1e-5
    torch.set_default_dtype(torch.float64)
    try:
        model = load("specimen:gpt2")
        assert model.dtype == torch.float32
        assert model.check.replays
    finally:
        torch.set_default_dtype(torch.float32)


def test_models_of_images_and_sound_are_refused_in_a_sentence():
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    with pytest.raises(
        ValueError,
        match=r"Wav2Vec2Model cannot be run on token ids alone .*: models that read text are opened",
    ):
        load(transformers.Wav2Vec2Model(config).eval())

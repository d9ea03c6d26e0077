"""What is saved is what was measured: kinds of blocks, windows, caches, generation. Truth: plain transformers
on the folder."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
import xarray as xr
from torch import nn

from families import _DECODER, FAMILIES
from regraft.core.tolerance import gap
from regraft.data.evaluation import evaluation
from regraft.experiments.intervene.knockout import greedy
from regraft.experiments.intervene.prune import prune
from regraft.export.readback import check_generation, check_tensors, longest_window, probe_ids
from regraft.export.route_model import rebuilt, route_of, save_blocks
from regraft.model.load import load
from regraft.sweeps.executor import route_logits
from regraft.sweeps.metrics import loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant
from small import ids, opened

QWEN = {name: value for name, value in _DECODER.items() if name != "head_dim"}


def sliding(window=24):
    torch.manual_seed(0)
    config = hf.Qwen2Config(**QWEN, use_sliding_window=True, sliding_window=window, max_window_layers=2)
    model = hf.Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() == 2 else 1)
    assert config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    return load(model.eval(), pack=False)


def written(model):
    """A stand-in for a measurement's attributes, for the model card."""
    data = sweep(model.record(ids(8, 1)), [Variant()], loss())
    return xr.Dataset(
        {"loss": ("state", [float(data.clean["loss"])] * 2, {"units": "nats"})}, attrs={"change": "changed"}
    )


@pytest.mark.parametrize(("donor", "place"), [(3, 0), (0, 3)])
def test_a_transplanted_block_takes_the_kind_of_its_place(donor, place, tmp_path):
    """On the route it is called with its place's mask; the folder must say so, which shows only behind the
    window."""
    model = sliding()
    stack = model.parts.stacks[-1]
    blocks = list(stack.blocks)
    blocks[place] = stack.blocks[donor].module
    route = route_of(model, blocks, list(range(4)))
    said = save_blocks(model, blocks, route, written(model), str(tmp_path / "made"))
    assert "gives the route's logits" in said
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    assert again.config.layer_types == model.hf.config.layer_types
    long = model.record(ids(60, 3))
    with torch.no_grad():
        found = again(torch.tensor([ids(60, 3)])).logits
    assert gap(found, route_logits(long, route)) <= model.rounding
    wrong = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    wrong.config.layer_types[place] = model.hf.config.layer_types[donor]
    wrong.model.layers[place].attention_type = model.hf.config.layer_types[donor]
    wrong.model.layers[place].self_attn.sliding_window = 24 if donor == 3 else None
    with torch.no_grad():
        assert (
            gap(wrong(torch.tensor([ids(60, 3)])).logits[:, :24], route_logits(long, route)[:, :24])
            <= model.rounding
        )
        assert gap(wrong(torch.tensor([ids(60, 3)])).logits, route_logits(long, route)) > 1e-2


def test_a_reordered_block_keeps_its_kind(tmp_path):
    model = sliding()
    blocks = [model.parts.stacks[-1].blocks[i] for i in (0, 2, 1, 3)]
    changed = rebuilt(model, blocks)
    assert changed.config.layer_types == [model.hf.config.layer_types[i] for i in (0, 2, 1, 3)]
    route = route_of(model, blocks, list(range(4)))
    save_blocks(model, blocks, route, written(model), str(tmp_path / "made"))
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    with torch.no_grad():
        found = again(torch.tensor([ids(60, 3)])).logits
    assert gap(found, route_logits(model.record(ids(60, 3)), route)) <= model.rounding


def test_a_saved_window_that_is_another_is_refused(tmp_path):
    """A fault behind the window only: eight tokens would not show it."""
    model = sliding()
    blocks = list(model.parts.stacks[-1].blocks)
    route = route_of(model, blocks, list(range(4)))

    def another_window(changed, fresh):
        changed.config.sliding_window = 12
        changed.save_pretrained(fresh)

    with pytest.raises(ValueError, match="read back, its logits"):
        save_blocks(model, blocks, route, written(model), str(tmp_path / "made"), another_window)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "window"),
    [("llama", 0), ("mistral", 5), ("gemma2", 5), ("modernbert", 6), ("qwen2", 5), ("gpt2", 0)],
)
def test_the_probe_is_longer_than_the_longest_window(name, window):
    model = FAMILIES[name]()
    assert longest_window(model.config) == window
    assert len(probe_ids(model, 96, 0)) == window + 8
    long = hf.MistralForCausalLM(
        hf.MistralConfig(**{**_DECODER, "max_position_embeddings": 64}, sliding_window=100)
    )
    assert len(probe_ids(long, 96, 0)) == 60, "no longer than the model reads with what it writes behind it"


def hybrid():
    torch.manual_seed(0)
    return load(FAMILIES["qwen3_5"]().eval(), pack=False)


def test_a_hybrid_without_its_full_attention_is_not_kept(tmp_path):
    """Without a block of full attention the library's cache counts no tokens: the pruned model could not
    generate."""
    model = hybrid()
    blocks = [model.parts.stacks[-1].blocks[i] for i in (0, 2)]
    route = route_of(model, blocks, [0, 2])
    with pytest.raises(
        ValueError, match="read back, it cannot generate text as the model it comes from does"
    ):
        save_blocks(model, blocks, route, written(model), str(tmp_path / "made"))
    assert not list(tmp_path.iterdir())
    kept = [model.parts.stacks[-1].blocks[i] for i in (0, 1)]
    save_blocks(model, kept, route_of(model, kept, [0, 1]), written(model), str(tmp_path / "made"))
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    assert again.generate(torch.tensor([ids(9, 1)]), max_new_tokens=3, do_sample=False).shape == (1, 12)


class Forgetful(nn.Module):
    """An attention output that is another where only the newest token is fed, as with a cache."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * (1.0 if x.shape[1] > 1 else 1.5)


def test_generation_with_a_cache_must_be_that_without():
    model, other = opened("llama"), opened("llama")
    inputs = model.record(ids(9, 1)).inputs
    check_generation(other.hf, model.hf, inputs, model.rounding)
    branch = other.hf.model.layers[2].mlp
    branch.down_proj = Forgetful(branch.down_proj)
    with pytest.raises(ValueError, match="with a cache the scores of new token 1 differ"):
        check_generation(other.hf, model.hf, inputs, model.rounding)
    check_generation(other.hf, other.hf, inputs, model.rounding)


def test_a_tensor_that_is_read_back_otherwise_is_named():
    hf_model = FAMILIES["llama"]()
    state = {name: tensor.clone() for name, tensor in hf_model.state_dict().items()}
    check_tensors(hf_model, state)
    with torch.no_grad():
        hf_model.model.norm.weight[0] = torch.nextafter(hf_model.model.norm.weight[0], torch.tensor(9.0))
    with pytest.raises(ValueError, match=r"model.norm.weight is not read back as it was written"):
        check_tensors(hf_model, state)
    with pytest.raises(ValueError, match="more is not read back"):
        check_tensors(hf_model, {"more": torch.zeros(1)})


def test_a_donor_of_another_build_is_refused_in_the_targets_words(tmp_path):
    """A linear-attention block in a full-attention place cannot be said by the configuration; no hidden
    folder is named."""
    model = hybrid()
    blocks = [model.blocks[0], model.blocks[0].module, model.blocks[2], model.blocks[3]]
    with pytest.raises(ValueError, match="cannot be written as a checkpoint of Qwen3_5ForCausalLM") as told:
        save_blocks(model, blocks, Route.order(range(4)), written(model), str(tmp_path / "made"))
    assert "/." not in str(told.value)
    assert ".made." not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_greedy_pruning_counts_the_blocks_that_it_may_remove():
    """Of an encoder-decoder only the decoder's blocks are pruned, so only they may be chosen and counted."""
    model = load("specimen:t5", pack=False)
    data = prune(model, limit=12.0, count=2, tokens=6)
    decoder = model.parts.stacks[-1]
    assert data.attrs["change"] != "with every block"
    text_losses = {}
    text = evaluation(model, None, 2, 6)
    for block in decoder.blocks:
        result = sweep(text.recordings, [Variant(route=Route.skip(len(model.blocks), {block.index}))], loss())
        text_losses[block.address] = float(result.mean("loss")[0]) / result.clean_mean("loss")
    cheapest = min(text_losses, key=text_losses.get)
    assert text_losses[cheapest] <= 12.0
    steps = greedy(model, text, 12.0, [block.index for block in decoder.blocks], keep=1)
    assert steps.removed.values[0] == cheapest
    assert all(address.startswith("decoder.") for address in steps.removed.values)
    assert 1 <= len(data.place) < len(decoder.blocks)

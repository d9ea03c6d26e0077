"""A module is taken for its matrix only where it is proved to be one; else the block is run. Truth: plain
hooks."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn.utils import parametrizations

from families import FAMILIES
from regraft.experiments.intervene.ablate import ablate
from regraft.experiments.intervene.quantization.rounding import quantized_block
from regraft.experiments.intervene.shuffle.order_weights import Blocks
from regraft.experiments.observe.spectra import spectra
from regraft.model.load import load
from regraft.model.parts import has_matrix, matrix_OI
from regraft.sweeps.metrics import token_logit
from regraft.sweeps.recorded_layout import layout_of
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Replace, Scale, Variant, Zero
from small import ids, opened

PROMPT = ids(6, 1)
WIDE = dict(vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)


def truth(model, site):
    """The last logits with one site at zero, by a hook of our own on the tapped module."""
    tap = model.tap(site)

    def zeroed(module, args):
        x = args[0].clone()
        x[..., tap.features] = 0
        return (x, *args[1:])

    handle = tap.module.register_forward_pre_hook(zeroed)
    with torch.no_grad():
        logits = model.hf(torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
    handle.remove()
    return logits


def held_to_hooks(model, sites):
    """Sweep the sites set to zero; the largest gap from hooks, the sweep, and the largest true effect."""
    result = sweep(model.record(PROMPT), [Variant([Zero(site)]) for site in sites], token_logit(7))
    wanted = torch.stack([truth(model, site)[7] for site in sites])
    effect = float((wanted - result.clean["logit"]).abs().max())
    return float((result.values["logit"][:, 0] - wanted).abs().max()), result, effect


SITES = [*(f"1.neuron.{i}" for i in (0, 5, 17, 40)), *(f"1.head.{i}" for i in (0, 3))]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_matrices_of_codes_are_run_and_not_read(family, bits, tmp_path):
    torch.manual_seed(0)
    build = {
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig),
        "gpt_neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig),
    }[family]
    build[0](build[1](**WIDE)).save_pretrained(tmp_path)
    coded = (
        hf.BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else hf.BitsAndBytesConfig(load_in_4bit=True)
    )
    model = load(
        hf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=coded, device_map="cpu")
    )
    assert model.tap("1.z").heads == 4, "the number of heads is that of the configuration, not of the codes"
    assert not has_matrix(model.blocks[1].branch("mlp").projection)
    off, result, effect = held_to_hooks(model, SITES)
    assert off <= 0.05 * effect
    assert result.work.planned > 3 * 6 * len(SITES) // 2, "blocks are run"
    found = ablate(model, ",".join(map(str, PROMPT)), target="7", layer="1")
    flips = sum(
        int(truth(model, f"1.neuron.{i}").argmax()) != int(model.record(PROMPT)["logits"][0, -1].argmax())
        for i in range(8)
    )
    assert int(found.top1_changed[0, :8].sum()) == flips
    for use in (
        lambda: matrix_OI(model.blocks[1].branch("mlp").projection),
        lambda: spectra(model),
        lambda: quantized_block(model, model.blocks[1], 4),
        lambda: Blocks(model, list(model.blocks), 0),
    ):
        with pytest.raises(ValueError, match=r"stores its matrix as .* not as plain numbers: open a copy"):
            use()


def hooked_before(model):
    model.get_submodule("model.layers.1.mlp.down_proj").register_forward_hook(
        lambda m, args, out: torch.tanh(3 * out) / 3
    )


def forward_put_over(model):
    inner = model.get_submodule("model.layers.1.mlp.down_proj")
    own = inner.forward
    inner.forward = lambda x: own(x.abs())


def at_one_position(model):
    def last(m, args, out):
        return torch.cat([out[:, :-1], 0.5 * out[:, -1:]], 1)

    model.get_submodule("model.layers.1.mlp.down_proj").register_forward_hook(last)


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(torch.relu(x)) * 2


def subclass(model):
    inner = model.get_submodule("model.layers.1.mlp.down_proj")
    other = Doubled(inner.in_features, inner.out_features, bias=False)
    other.weight = inner.weight
    model.get_submodule("model.layers.1.mlp").down_proj = other


@pytest.mark.parametrize("change", [hooked_before, forward_put_over, at_one_position, subclass])
def test_a_module_that_is_more_than_its_matrix_is_run(change):
    torch.manual_seed(1)
    live = FAMILIES["llama"]().eval()
    with torch.no_grad():
        live.get_submodule("model.layers.1.mlp.down_proj").weight.mul_(20)
    change(live)
    model = load(live)
    sites = [f"1.neuron.{i}" for i in range(12)]
    off, _, effect = held_to_hooks(model, sites)
    assert off <= model.rounding * model.check.largest < 0.01 * effect
    recording = model.record(PROMPT)
    assert layout_of(recording, set(sites)).columns[1] == frozenset()
    assert layout_of(recording, {"2.neuron.1"}).columns[2] == {"mlp"}, (
        "the other blocks are corrected as before"
    )


def test_a_parametrized_matrix_is_the_one_that_the_module_makes():
    torch.manual_seed(1)
    live = FAMILIES["llama"]().eval()
    parametrizations.weight_norm(live.get_submodule("model.layers.1.mlp.down_proj"))
    model = load(live)
    off, _, effect = held_to_hooks(model, [f"1.neuron.{i}" for i in range(6)])
    assert off <= model.rounding * model.check.largest < 0.1 * effect


def test_a_forward_put_over_a_layer_stays_there_through_packing():
    """Packing takes the place of a layer's forward; one that is there already is the user's."""
    live = FAMILIES["llama"]().eval()
    inner = live.get_submodule("model.layers.0.mlp.up_proj")
    own = inner.forward
    inner.forward = lambda x: own(x) * 2
    model = load(live)
    assert inner not in model.packed
    sweep(model.record(PROMPT), [Variant([Zero("1.mlp_out")])], token_logit(7))
    assert "forward" in inner.__dict__


def test_hooks_after_opening_take_nothing_for_granted():
    """What was proved at load no longer need hold: no corrections, no suffixes, and the result says so."""
    model = opened("llama")
    plain = sweep(model.record(PROMPT), [Variant([Scale("1.mlp_out", 500.0)])], token_logit(7))
    block = model.blocks[1].module
    handle = block.register_forward_hook(lambda m, args, out: torch.tanh(out))
    recording = model.record(PROMPT)
    out = recording["1.mlp_out"]
    result = sweep(
        recording,
        [Variant([Scale("1.mlp_out", 500.0)]), Variant([Replace("1.mlp_out", out)])],
        token_logit(7),
    )
    assert "hooks have come or gone" in result.notes[0]
    assert not plain.notes

    def doubled(m, args, given):
        return given * 500

    other = model.blocks[1].branch("mlp").module.register_forward_hook(doubled)
    with torch.no_grad():
        wanted = float(model.hf(torch.tensor([PROMPT])).logits[0, -1, 7])
    assert float(result.values["logit"][0]) == pytest.approx(wanted, abs=model.rounding * model.check.largest)
    assert abs(float(plain.values["logit"][0]) - wanted) > 100 * model.rounding * model.check.largest
    with pytest.raises(
        ValueError, match=r"hooks of .* have changed since this recording was made: record anew"
    ):
        sweep(recording, [Variant()], token_logit(7))
    other.remove()
    handle.remove()


def test_the_proof_is_asked_at_the_recordings_own_input():
    """A hook that acts at one position only would pass a proof on other inputs."""
    model = opened("llama")
    layout = layout_of(model.record(PROMPT), {"0.neuron.1", "2.head.1"})
    assert layout.columns == (frozenset({"mlp"}), frozenset(), frozenset(), frozenset())
    assert layout_of(opened("gpt_neox").record(PROMPT), {"2.head.1"}).columns[2] == {"attn"}

"""What is refused of models as people bring them, and of values that are not what the attention is given."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from families import FAMILIES
from regraft import load
from regraft.checkpoint.locate import CheckpointError
from regraft.model import attention_inputs as attended
from regraft.model.attention_inputs import Attended, roles_refused
from regraft.model.wrappers import refuse_adapter_folder, refuse_adapters, refuse_elsewhere, unwrapped
from unknown_decoder import Attention, OwnConfig, OwnDecoder


def llama(seed=1):
    torch.manual_seed(seed)
    return FAMILIES["llama"]().eval()


class Around(nn.Module):
    """A module around others; with a configuration of its own where one is given."""

    def __init__(self, config=None, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        if config is not None:
            self.config = config


def test_a_model_of_ones_own_with_a_configuration_is_whole_and_a_wrapper_with_one_is_not():
    own = Around(config=SimpleNamespace(vocab_size=96), layer=nn.Linear(2, 2))
    assert unwrapped(own) == (own, [])
    hf = llama()
    inner, notes = unwrapped(Around(config=hf.config, model=hf))
    assert inner is hf
    assert notes == ["opened through Around: what it wraps is a LlamaForCausalLM"]


def test_two_models_beside_each_other_are_two_whatever_their_names_begin_with():
    first, second = llama(), llama(2)
    with pytest.raises(ValueError, match=r"holds 2 Hugging Face models \(a, ab\): give one of them"):
        unwrapped(Around(a=first, ab=second))
    assert unwrapped(Around(a=first, ab=nn.Linear(2, 2)))[0] is first
    assert unwrapped(Around(deep=Around(a=first)))[0] is first, "the model inside the model is no second one"


def test_virtual_tokens_are_refused_where_they_stand_in_front_of_the_model_alone():
    hf = llama()
    hf.model.prompt_encoder = nn.Linear(2, 2)
    assert unwrapped(hf)[0] is hf
    with pytest.raises(ValueError, match=r"Around puts virtual tokens before every text, .*get_base_model"):
        unwrapped(Around(model=hf, prompt_encoder=nn.Linear(2, 2)))


def test_weights_on_two_devices_are_refused_and_so_is_one_without_numbers():
    def holding(**devices):
        kept = {
            name: SimpleNamespace(device=torch.device(d), is_meta=d == "meta") for name, d in devices.items()
        }
        return SimpleNamespace(named_parameters=lambda: kept.items(), parameters=kept.values)

    refuse_elsewhere(holding(a="cpu", b="cpu"))
    refuse_elsewhere(holding(a="cuda:1", b="cuda:1"))
    with pytest.raises(ValueError, match="lie on cpu and cuda:0: put them on one device"):
        refuse_elsewhere(holding(a="cpu", b="cuda:0", c="cpu"))
    with pytest.raises(ValueError, match=r"1 weights of this .* hold no numbers here \(first b\)"):
        refuse_elsewhere(holding(a="cpu", b="meta"))
    hf = llama()
    hf.lm_head.weight = nn.Parameter(torch.empty(96, 32, device="meta"))
    with pytest.raises(ValueError, match=r"1 weights .*\(first lm_head.weight\).* never read"):
        load(hf, pack=False)


def test_an_adapter_is_told_by_its_widths():
    class Beside(nn.Module):
        def __init__(self, base, **widths):
            super().__init__()
            self.base_layer = base
            for name, width in widths.items():
                setattr(self, name, width)

    for widths, refused in (
        ({}, False),
        ({"in_features": 48}, False),
        ({"in_features": 48, "out_features": 32}, True),
    ):
        hf = llama()
        hf.model.layers[2].mlp.down_proj = Beside(hf.model.layers[2].mlp.down_proj, **widths)
        notes = unwrapped(hf)[1]
        if refused:
            assert notes == ["an adapter is in effect in 1 layers, first model.layers.2.mlp.down_proj"]
            with pytest.raises(
                ValueError, match=r"in effect in model\.layers\.2\.mlp\.down_proj: .* merge it first"
            ):
                refuse_adapters(SimpleNamespace(hf=hf))
        else:
            assert notes == []
            refuse_adapters(SimpleNamespace(hf=hf))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (json.dumps({"base_model_name_or_path": "their/base"}), "(adapter_config.json, for their/base)"),
        (json.dumps({"base_model_name_or_path": None}), "(adapter_config.json)"),
        (json.dumps({}), "(adapter_config.json)"),
        (json.dumps(["no", "object"]), "(adapter_config.json)"),
        ("{broken", "(adapter_config.json)"),
        (b"\xff\xfe\x00", "(adapter_config.json)"),
    ],
)
def test_an_adapter_is_refused_whatever_its_configuration_says(said, told, tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(said if isinstance(said, bytes) else said.encode())
    with pytest.raises(CheckpointError) as refused:
        refuse_adapter_folder(tmp_path)
    assert f"holds an adapter and no model {told}: merge" in str(refused.value)


def test_an_adapter_that_cannot_be_read_is_refused_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(
        type(tmp_path), "read_text", lambda *args, **kwargs: (_ for _ in ()).throw(PermissionError("closed"))
    )
    with pytest.raises(CheckpointError, match=r"and no model \(adapter_config.json\): merge"):
        refuse_adapter_folder(tmp_path)


def test_an_old_layout_beside_a_model_is_no_old_layout(tmp_path):
    (tmp_path / "0_Transformer").mkdir()
    refuse_adapter_folder(tmp_path)
    (tmp_path / "0_Transformer" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is in an old layout"):
        refuse_adapter_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    refuse_adapter_folder(tmp_path)


@pytest.mark.parametrize("named", [0, 1, 2, 3])
def test_what_the_attention_is_given_is_heard_by_place_and_by_name(named):
    tensors = dict(zip(("query", "key", "value"), torch.randn(3, 1, 2, 4, 8), strict=True))
    given = list(tensors.items())
    with Attended() as attended:
        functional.scaled_dot_product_attention(*[t for _, t in given[:named]], **dict(given[named:]))
        functional.softmax(tensors["query"], -1)
    assert len(attended.calls) == 1
    assert all(a is b for a, b in zip(attended.calls[0], tensors.values(), strict=True))


HEADS, D = 4, 8


class Single:
    """A recording of one token whose block gives these to the attention function, and whose projections
    return these."""

    def __init__(self, found, *calls):
        self.found, self.calls = found, calls
        self.model = SimpleNamespace(taps=SimpleNamespace(exists=lambda index, role: role in found))

    def __getitem__(self, address):
        return self.found[address.removeprefix("1.")]

    def pre(self, index):
        return torch.zeros(1, 1, HEADS * D)

    def run_block(self, index, stream, rows):
        for query, key, value in self.calls:
            functional.scaled_dot_product_attention(query, key=key, value=value)


def roles(found, *calls):
    return roles_refused(Single(found, *calls), SimpleNamespace(index=1, address="1"))


def drawn(heads, width=D, seed=0):
    return torch.randn(1, 1, heads, width, generator=torch.Generator().manual_seed(seed))


def shared(by_heads, times=2):
    return by_heads.transpose(1, 2).repeat_interleave(times, dim=1)


def test_roles_are_what_they_seem_where_the_attention_is_given_the_values(monkeypatch):
    q, k, v = drawn(4), drawn(2, seed=1), drawn(2, seed=2)
    found = {"q": q, "k": k, "v": v}
    given = (2 * q.transpose(1, 2), -shared(k), shared(v))
    assert roles(found, given) == {}, "queries and keys may be turned and normed"
    assert roles(found, (given[0], k.repeat(1, 1, 2, 1).transpose(1, 2), given[2])) == {}
    wrong = "the values that the attention is given are not what the value projection returns"
    for values in (given[2] * (1 + 1e-6), v.repeat(1, 1, 2, 1).transpose(1, 2), shared(k)):
        assert roles(found, (given[0], given[1], values)) == dict.fromkeys("qkv", wrong)
    monkeypatch.setattr(attended, "_between", lambda single, block: " (a gate)")
    unsure = "with one token the heads' output is not their value (a gate), so roles are not sure"
    for calls in ((), (given, given)):
        assert roles(found, *calls) == dict.fromkeys("qkv", unsure)


@pytest.mark.parametrize("own", [3, 8])
def test_a_projection_that_holds_more_than_its_role_is_refused_alone(own):
    q, v = drawn(own), drawn(2, seed=2)
    given = (drawn(4).transpose(1, 2), drawn(4, seed=3).transpose(1, 2), shared(v))
    told = f"this projection is {own * D} wide, the attention is given 32: it holds more than q"
    assert roles({"q": q, "v": v}, given) == {"q": told}, "a role that is not offered is not looked at"
    assert roles({"k": q, "v": v}, given) == {"k": told.removesuffix("q") + "k"}


class Gate(nn.Module):
    """Squares what it is given, through a module inside it, and calls one that returns nothing."""

    def __init__(self):
        super().__init__()
        self.leaf, self.silent = nn.Identity(), nn.Module()
        self.silent.forward = lambda x: None

    def forward(self, x):
        self.silent(x)
        return self.leaf(x) * x


class Gated(Attention):
    """An attention of one's own that gates what its heads return."""

    def __init__(self, config):
        super().__init__(config)
        self.gate, self.drop, self.behind = Gate(), nn.Dropout(0.0), nn.Identity()

    def forward(self, x, past_mask):
        q, k, v = (
            w(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv)
        )
        z = ((q @ k.mT + past_mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.behind(self.wo(self.drop(self.gate(z))))


def test_what_stands_between_the_values_and_the_projection_is_named_and_nothing_else():
    """No dropout, nothing without a tensor, nothing behind the projection; of a gate the module inside."""
    torch.manual_seed(0)
    decoder = OwnDecoder(OwnConfig())
    for layer in decoder.tower:
        layer.attention = Gated(decoder.config)
    model = load(decoder.eval(), pack=False)
    with pytest.raises(
        ValueError, match=r"not their value \(between them stand gate.leaf\), so roles are not sure"
    ):
        model.site("1.v")

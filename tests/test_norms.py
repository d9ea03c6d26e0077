"""Another norm in place of a norm, whatever that one stores and calls its eps. Truth: the norm's own formula
in float64."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

from families import _DECODER, FAMILIES
from regraft.core.tolerance import gap
from regraft.model.load import load
from regraft.model.norm_parameters import gains_of, rms_norm, takes_mean_away
from regraft.model.parts import is_norm

WITHOUT = {name: value for name, value in _DECODER.items() if name != "head_dim"}
FOREIGN = {
    "nemotron": lambda: hf.NemotronForCausalLM(hf.NemotronConfig(**WITHOUT, norm_eps=1e-3)),
    "cohere2": lambda: hf.Cohere2ForCausalLM(hf.Cohere2Config(**_DECODER, layer_norm_eps=1e-2)),
}


def norms(model):
    for parameter in model.parameters():
        if parameter.dim() == 1:
            drawn = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))) - 0.3
            parameter.data.copy_(drawn)
    return [
        m
        for m in model.modules()
        if is_norm(m) and getattr(m, "weight", None) is not None and len(m.weight) == 32
    ]


def by_hand(norm, name, x):
    """The other norm: the same factors and offsets on x over its root mean square, by the library's formula
    for this one."""
    x = x.double()
    weight = norm.weight.double() + (1.0 if name == "nemotron" else 0.0)
    eps = norm.variance_epsilon if name == "cohere2" else norm.eps
    offset = 0.0 if getattr(norm, "bias", None) is None else norm.bias.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + offset


@pytest.mark.parametrize("size", [1.0, 1e-2])
@pytest.mark.parametrize("name", [*FOREIGN, "gpt2"])
def test_the_other_norm_has_the_factors_that_this_one_applies(name, size):
    torch.manual_seed(0)
    model = (FOREIGN[name] if name in FOREIGN else FAMILIES[name])().eval()
    found = norms(model)
    assert found
    x = size * torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    for norm in found:
        assert takes_mean_away(norm, 32)
        wanted = by_hand(norm, name, x)
        assert gap(rms_norm(x, gains_of(norm, 32)).double(), wanted) < 1e-3
        plain = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * norm.weight
        if name in FOREIGN and size < 1:
            assert gap(plain.double(), wanted) > 0.1, (
                "the raw weight and a usual eps are the neighbour that is wrong"
            )


@pytest.mark.parametrize("width", [32, 33, 7])
@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-5, 1e-2])
def test_factors_offsets_and_eps_are_measured(width, eps):
    norm = nn.LayerNorm(width, eps=eps)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, width))
        norm.bias.copy_(torch.linspace(0.5, -0.5, width))
    found = gains_of(norm, width)
    assert torch.allclose(found.factor_D, norm.weight, atol=1e-4)
    assert torch.allclose(found.offset_D, norm.bias, atol=1e-6)
    assert found.eps == pytest.approx(eps, rel=0.02, abs=3e-8)


class Cubed(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) ** 3


def test_what_is_no_norm_of_a_known_form_is_refused():
    with pytest.raises(ValueError, match="a Cubed is no norm of a known form"):
        gains_of(Cubed(16), 16)


@pytest.mark.parametrize(
    ("name", "taken"), [("llama", False), ("gemma2", False), ("gpt2", True), ("cohere2", True)]
)
def test_whether_a_norm_takes_the_mean_away_is_measured(name, taken):
    """Gemma stores a factor less one: a bound relative to the weight would be 0 there."""
    found = [m for m in FAMILIES[name]().modules() if is_norm(m) and getattr(m, "weight", None) is not None]
    assert all(takes_mean_away(norm, len(norm.weight)) == taken for norm in found)
    assert load(FAMILIES[name]().eval(), pack=False).check.replay == 0.0

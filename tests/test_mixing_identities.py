"""What must hold of every way of mixing tokens, whatever the weights: reach of windows, shared keys, latents,
chunks beside single steps."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import regraft
from families import FAMILIES
from regraft.core.tolerance import gap
from regraft.systems.mixers import mixers_of
from tools.small_architectures import tiny

LENGTH = 40


def drawn(length=LENGTH, seed=1):
    return torch.randint(5, 90, (1, length), generator=torch.Generator().manual_seed(seed))


def logits(hf, ids):
    with torch.no_grad():
        return hf.eval()(input_ids=ids, use_cache=False).logits


def test_a_stack_of_windows_reads_as_far_as_they_reach_together_and_no_further():
    torch.manual_seed(0)
    model = regraft.load(FAMILIES["mistral"]())
    windows = [mixers_of(block, model.hf.config)[0].window for block in model.blocks]
    reach = sum(window - 1 for window in windows)
    assert 0 < reach < LENGTH - 2
    ids = drawn()
    before = logits(model.hf, ids)[:, -1]
    for distance, changes in ((reach + 1, False), (reach, True)):
        other = ids.clone()
        other[0, LENGTH - 1 - distance] = 4
        assert (gap(logits(model.hf, other)[:, -1], before) > model.rounding) == changes, distance
    other = ids.clone()
    other[0, : LENGTH - 1 - reach] = 4
    assert gap(logits(model.hf, other)[:, -1], before) <= model.rounding, "all of them at once"


def test_shared_keys_are_all_heads_own_where_these_are_repeated():
    torch.manual_seed(0)
    plain = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=96
    )
    shared = LlamaForCausalLM(LlamaConfig(**plain, num_key_value_heads=2))
    own = LlamaForCausalLM(LlamaConfig(**plain, num_key_value_heads=4))
    weights = shared.state_dict()
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = tensor.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    own.load_state_dict(weights)
    assert gap(logits(own, drawn()), logits(shared, drawn())) <= 1e-6
    swapped = {
        n: t.unflatten(0, (4, 8)).flip(0).flatten(0, 1) if "k_proj" in n else t for n, t in weights.items()
    }
    own.load_state_dict(swapped)
    assert gap(logits(own, drawn()), logits(shared, drawn())) > 1e-3


def test_reading_from_the_latent_is_reading_the_keys_that_it_expands_to():
    """DeepSeek's absorbed form: queries are taken into the latent, values out of what was read of it."""
    hf = tiny("causal", "deepseek_v3")
    attention = hf.model.layers[0].self_attn
    asked = {}
    attention.register_forward_pre_hook(lambda m, args, kwargs: asked.update(kwargs), with_kwargs=True)
    given = []
    attention.register_forward_hook(lambda m, args, out: given.append(out[0]))
    logits(hf, drawn(12))
    with torch.no_grad():
        found = _absorbed(attention, asked["hidden_states"], *asked["position_embeddings"])
    assert gap(found, given[0]) <= 1e-5


def _absorbed(attention, stream_BTD, cosines, sines):
    heads, rank = attention.num_heads, attention.kv_lora_rank
    nope, rope = attention.qk_nope_head_dim, attention.qk_rope_head_dim
    queries = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(stream_BTD)))
    queries = queries.unflatten(-1, (heads, nope + rope)).transpose(1, 2)
    latent, turning = attention.kv_a_proj_with_mqa(stream_BTD).split([rank, rope], dim=-1)
    latent = attention.kv_a_layernorm(latent)
    up = attention.kv_b_proj.weight.unflatten(0, (heads, nope + attention.v_head_dim))
    to_keys, to_values = up[:, :nope], up[:, nope:]

    def turned(numbers):  # neighbours turn together, and stand as halves behind it
        pairs = torch.complex(numbers[..., 0::2], numbers[..., 1::2])
        half = cosines.shape[-1] // 2
        pairs = pairs * torch.complex(cosines[..., :half], sines[..., :half])[:, None]
        return torch.cat([pairs.real, pairs.imag], -1)

    inside = torch.einsum("bhtk,hkr->bhtr", queries[..., :nope], to_keys)
    scores = inside @ latent[:, None].mT + turned(queries[..., nope:]) @ turned(turning[:, None]).mT
    length = stream_BTD.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    weights = (scores * attention.scaling).masked_fill(~seen, float("-inf")).softmax(-1)
    read = torch.einsum("bhtr,hvr->bthv", weights @ latent[:, None], to_values)
    return attention.o_proj(read.flatten(2))


# not bamba: in transformers 5.23 its two ways are 2e-3 apart, in float64 as well
@pytest.mark.parametrize(
    "name", ["qwen3_next", "qwen3_5_text", "olmo_hybrid", "mamba", "mamba2", "minimax", "lfm2", "rwkv",
             "falcon_h1", "jamba", "nemotron_h"]
)  # fmt: skip
def test_chunks_are_single_steps(name):
    """A text read at once, and token by token on the state that is carried on (which all of them keep in
    float32, so that float64 would tell no more)."""
    hf = tiny("causal", name).eval()
    ids = drawn(19)
    with torch.no_grad():
        at_once = hf(input_ids=ids, use_cache=False).logits
        steps, state = [], {}
        for place in range(ids.shape[1]):
            out = hf(input_ids=ids[:, [place]], use_cache=True, **state)
            steps.append(out.logits)
            held = next(n for n in ("past_key_values", "cache_params", "state") if out.get(n) is not None)
            state = {held: out[held]}
    assert gap(torch.cat(steps, 1), at_once) <= 1e-5
    forgot = copy.deepcopy(steps)
    forgot[-1] = hf(input_ids=ids[:, [-1]], use_cache=False).logits.detach()
    assert gap(torch.cat(forgot, 1), at_once) > 1e-3, "the state is needed"

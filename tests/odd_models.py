"""Small models that are unlike any that prompts about clocks were written for: few tokens, other alphabets,
one block."""

from __future__ import annotations

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PHONEMES = "AA AE AH AO B CH D DH EH ER F G HH IH IY JH K L M N NG OW P R S SH T TH UH UW V W Y Z".split()
STORY = (
    "Once upon a time there was a little girl named Lily. She liked to play with her red ball in the big"
    " park. One day she saw a small dog. The dog was sad. Lily gave the dog her ball and the dog was happy."
    " They played all day."
)


def words(
    names: list[str], special: tuple[str, ...] = ("<pad>", "<s>", "</s>", "<unk>")
) -> hf.PreTrainedTokenizerFast:
    """A tokenizer with one token for each name, split at spaces."""
    vocabulary = {name: i for i, name in enumerate([*special, *names])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def pieces(text: str, size: int) -> hf.PreTrainedTokenizerFast:
    """A tokenizer of pieces that bear a mark for the space in front of them, learnt from a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def letters() -> hf.PreTrainedTokenizerFast:
    """A tokenizer of single letters."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


_ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def three_tokens() -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    """GPT-2 with 11 positions and 3 tokens."""
    config = hf.GPT2Config(
        vocab_size=3, n_positions=11, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    return hf.GPT2LMHeadModel(config).eval(), hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="a"
    )


def graphemes_to_phonemes() -> tuple[nn.Module, hf.PreTrainedTokenizerFast, hf.PreTrainedTokenizerFast]:
    """BART that reads letters and writes phonemes."""
    written = words(PHONEMES)
    config = hf.BartConfig(
        vocab_size=len(written), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        decoder_start_token_id=1,
        forced_eos_token_id=2, **_ENDS,
    )  # fmt: skip
    torch.manual_seed(0)
    return hf.BartForConditionalGeneration(config).eval(), letters(), written


def stories() -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    """A Llama of about 260,000 parameters with a vocabulary of children's stories."""
    tokenizer = pieces(STORY * 4, 512)
    config = hf.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256, tie_word_embeddings=True, **_ENDS,
    )  # fmt: skip
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(config).eval(), tokenizer


def one_block() -> tuple[nn.Module, hf.PreTrainedTokenizerFast]:
    """GPT-2 with a single block."""
    tokenizer = pieces(STORY * 4, 300)
    config = hf.GPT2Config(
        vocab_size=300, n_positions=128, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    return hf.GPT2LMHeadModel(config).eval(), tokenizer

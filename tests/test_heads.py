"""Heads that score no tokens: pooled ones are refused as logits, labels are read right. Truth: the official
forward."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from families import _DECODER, _ENCODER
from regraft.core.tolerance import gap
from regraft.data.generation import completions
from regraft.data.prompts import Prompt
from regraft.model.load import load
from regraft.model.summary import site_rows
from regraft.sweeps.metrics import kl_to_clean, loss, stream_distance, token_logit, top1_agreement
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant, Zero
from small import ids

LLAMA = {name: value for name, value in _DECODER.items() if name != "head_dim"}
POOLED = {
    "llama": lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**LLAMA, num_labels=3)),
    "llama-without-pad": lambda: hf.LlamaForSequenceClassification(
        hf.LlamaConfig(**{**LLAMA, "pad_token_id": None})
    ),
    "gpt2": lambda: hf.GPT2ForSequenceClassification(
        hf.GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, num_labels=3)
    ),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_ENCODER)),
    "question answering": lambda: hf.BertForQuestionAnswering(hf.BertConfig(**_ENCODER)),
    "llama question answering": lambda: hf.LlamaForQuestionAnswering(hf.LlamaConfig(**LLAMA)),
    "one score a token": lambda: hf.ElectraForPreTraining(hf.ElectraConfig(**_ENCODER, embedding_size=32)),
}


def live(build, seed=0):
    torch.manual_seed(seed)
    return build().eval()


@pytest.mark.parametrize("name", list(POOLED))
def test_a_pooled_head_gives_no_logits_and_the_stream_is_still_measured(name):
    model = load(live(POOLED[name]), pack=False)
    assert model.check.replays
    assert model.check.replay == 0.0
    assert model.parts.head is None
    recording = model.record(ids(5, 1))
    for ask in (lambda: recording["logits"], lambda: sweep(recording, [Variant()], [token_logit(1)])):
        with pytest.raises(
            ValueError, match=r"scores a text as a whole|has no output matrix|gives each token one score"
        ):
            ask()
    result = sweep(recording, [Variant([Zero("1.mlp_out")]), Variant()], stream_distance(-1))
    last = model.blocks[-1].module
    seen = []
    handles = [
        last.register_forward_hook(
            lambda m, a, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
        ),
        model.blocks[1].branch("mlp").last.register_forward_hook(lambda m, a, out: torch.zeros_like(out)),
    ]
    with torch.no_grad():
        model.hf(torch.tensor([ids(5, 1)]), use_cache=False)
    for handle in handles:
        handle.remove()
    clean = recording.post(len(model.blocks) - 1)[0, -1]
    wanted = float((seen[0][0, -1] - clean).norm() / clean.norm())
    assert result.values["stream_distance"][:, 0].tolist() == pytest.approx([wanted, 0.0], abs=1e-5)
    assert wanted > 1e-4
    assert all(row.reason for row in site_rows(model) if row.site == "logits")


@pytest.mark.parametrize(
    ("config", "build"),
    [
        (hf.LlamaConfig(**LLAMA, num_labels=5), hf.LlamaForTokenClassification),
        (hf.BertConfig(**_ENCODER), hf.BertForTokenClassification),
    ],
)
def test_a_token_classifiers_labels_are_its_logits(config, build):
    model = load(live(lambda: build(config)), pack=False)
    row = ids(6, 2)
    recording = model.record(row)
    with torch.no_grad():
        wanted = model.hf(torch.tensor([row])).logits
    assert model.parts.labels == config.num_labels == model.vocabulary
    assert gap(recording["logits"], wanted) <= model.rounding
    metrics = [token_logit(1), kl_to_clean(2), top1_agreement(2)]
    result = sweep(recording, [Variant()], metrics)
    assert float(result.values["logit"]) == pytest.approx(float(wanted[0, -1, 1]), abs=1e-5)
    with pytest.raises(
        ValueError, match=rf"scores {config.num_labels} labels, not tokens, so it has no loss"
    ):
        sweep(recording, [Variant()], loss())
    with pytest.raises(ValueError, match="outside the vocabulary"):
        sweep(recording, [Variant()], token_logit(7))
    reads_last = sweep(recording, [Variant()], kl_to_clean())
    assert reads_last.weights["kl_to_clean"].tolist() == [1.0]


def test_words_are_no_labels():
    tokenizer = load("specimen:gpt2", pack=False).tokenizer
    settings = {**LLAMA, "vocab_size": 4096}
    model = load(
        live(lambda: hf.LlamaForTokenClassification(hf.LlamaConfig(**settings, num_labels=5))),
        tokenizer,
        pack=False,
    )
    with pytest.raises(ValueError, match="scores 5 labels, not tokens: give the target as a label's number"):
        model.single_token(" yes")
    with pytest.raises(ValueError, match="scores 5 labels, not tokens, so it writes no text"):
        completions(model, [Prompt("The capital", "given")])
    pooled = load(
        live(lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**settings))), tokenizer, pack=False
    )
    with pytest.raises(ValueError, match=r"scores a text as a whole .* so it writes no text"):
        completions(pooled, [Prompt("The capital", "given")])


def test_a_wider_table_than_the_head_is_no_label_head():
    """An embedding padded to a round number has more rows than the output matrix, which is one over tokens
    all the same."""
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA))
    model.model.embed_tokens = torch.nn.Embedding(128, 32)
    opened = load(model.eval(), pack=False)
    assert opened.parts.labels == 0
    assert opened.vocabulary == 96
    assert opened.table_rows == 128
    recording = opened.record(ids(6, 2))
    assert torch.isfinite(sweep(recording, [], loss()).clean["loss"]).all()

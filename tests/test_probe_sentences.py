"""Fixed sentences beside a certificate's numbers: next tokens against the model's own scores, texts against
its own generation, and what has none."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from regraft.export.graft_folder import attach, swaps_of
from regraft.export.probe_sentences import NEXT, PROBES, WRITTEN, next_chances, probe_quantities
from regraft.jobs.graft_jobs import evaluate_grafts, sentences
from regraft.jobs.head_jobs import Build, build_head
from regraft.model.load import load
from regraft.modules.logits_view import LogitsView
from regraft.modules.placement import placed
from regraft.reporting.figures.graft_figures import CERTIFICATE


@pytest.fixture(scope="module")
def model():
    return load("specimen:gpt2", pack=False)


@pytest.fixture(scope="module")
def noisy(model):
    torch.manual_seed(0)
    head = copy.deepcopy(model.parts.head)
    head.weight = nn.Parameter(head.weight + 0.3 * head.weight.std() * torch.randn_like(head.weight))
    return head


def check_greedy(found, model, text):
    """A text is what whole forward passes write, token by token, as far as more than rounding decides."""
    ids, start = model.encode(text), len(model.encode(text))
    end, near = model.hf.generation_config.eos_token_id, 2 * model.rounding * model.check.largest
    with torch.no_grad():
        while len(ids) < start + WRITTEN and (len(ids) == start or ids[-1] != end):
            best = model.hf(torch.tensor([ids])).logits[0, -1].topk(2)
            if float(best.values[0] - best.values[1]) <= near:
                assert found.startswith("".join(map(model.token_text, ids[start:])))
                return
            ids.append(int(best.indices[0]))
    assert found == "".join(model.token_text(i) for i in ids[start:] if i != end)


def test_the_part_itself_says_and_writes_the_same(model):
    found = probe_quantities(model, [(model.parts.head, copy.deepcopy(model.parts.head))])
    assert found["probe_shared"][1] == [NEXT] * len(PROBES)
    before, after = found["continuation"][1]
    assert before == after
    assert min(found["decode_rate"][1]) > 0


def test_next_tokens_and_texts_are_the_models_own(model, noisy):
    found = probe_quantities(model, [(model.parts.head, noisy)])
    for place, text in enumerate(PROBES):
        ids = torch.tensor([model.encode(text)])
        with torch.no_grad():
            before = model.hf(ids).logits[0, -1].softmax(-1)
            with placed(model.hf, model.parts.head, noisy):
                after = model.hf(ids).logits[0, -1].softmax(-1)
        for state, chances in enumerate((before, after)):
            assert found["probe_probability"][1][state][place] == pytest.approx(
                chances.topk(NEXT).values.numpy(), rel=1e-4
            )
            assert found["probe_token"][1][state][place][0] == model.token_text(int(chances.argmax()))
        lists = [{*chances.topk(NEXT).indices.tolist()} for chances in (before, after)]
        assert found["probe_shared"][1][place] == len(lists[0] & lists[1])
        check_greedy(found["continuation"][1][0][place], model, text)
        with placed(model.hf, model.parts.head, noisy):
            check_greedy(found["continuation"][1][1][place], model, text)
    assert min(found["probe_shared"][1]) < NEXT, "the noise is felt"


def test_a_tree_is_searched_for_the_best_token_and_writes_what_its_whole_rows_say(
    model, tmp_path, monkeypatch
):
    """In `generate` the tree gives its best token alone; the text is that of the whole distribution."""
    build_head(model, tmp_path, how=Build(states=200))
    modes = []
    forward = LogitsView.forward

    def heard(self, hidden):
        modes.append(self.mode)
        return forward(self, hidden)

    monkeypatch.setattr(LogitsView, "forward", heard)
    data = evaluate_grafts(model, [tmp_path / "graft"], most=1)
    assert modes.count("top") > 2 * len(PROBES)
    ((old, view),) = swaps_of(model, [attach(tmp_path / "graft", model)])
    with placed(model.hf, old, view):
        for text, found in zip(PROBES, data.continuation.values[1], strict=True):
            check_greedy(str(found), model, text)
    for text, found in zip(PROBES, data.continuation.values[0], strict=True):
        check_greedy(str(found), model, text)
    (line,) = [line for line in sentences(data) if "fixed sentences" in line]
    same = sum(a == b for a, b in zip(*data.continuation.values, strict=True))
    assert f"{same} are written on with the same tokens, at " in line
    captions = [panel.caption for panel in CERTIFICATE.folded(data)]
    assert captions == [
        "The ten next tokens behind fixed sentences, before and after",
        "What is written behind them",
    ]


def test_an_encoder_decoder_begins_to_write_and_an_encoder_has_no_sentences():
    other = load("specimen:t5", pack=False)
    row = other.encode("The capital of France is")
    with torch.no_grad():
        wanted = other.hf(torch.tensor([row]), decoder_input_ids=torch.tensor([[1]])).logits[0, 0]
    assert other.hf.config.decoder_start_token_id == 1
    assert next_chances(other, row).numpy() == pytest.approx(wanted.double().softmax(-1).numpy(), rel=1e-4)
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    encoder = load(hf.BertForMaskedLM(hf.BertConfig(vocab_size=96, **small)).eval(), pack=False)
    assert probe_quantities(encoder, []) == {}

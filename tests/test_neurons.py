"""Neurons: planted consistent ones, control sets, contexts against a plain search, families that have
none."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from regraft.core.registry import experiments
from regraft.data.corpus import corpus
from regraft.experiments.observe.neurons import top
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from regraft.sweeps.live_reads import fitting
from small import opened

RUN = partial(run_experiment, experiments()["neurons"])


@pytest.fixture(scope="module")
def model():
    return load("specimen:gpt2")


def plant(model, token, block, neuron):
    """Make one neuron answer to one token id alone: its activation is its output, read off the token's own
    embedding."""
    found = model.blocks[block].module
    handle_at = found.mlp.c_proj

    def strong(module, args):
        changed = args[0].clone()
        changed[..., neuron] = torch.where(seen["ids"][..., None] == token, 1e3, -1e3)[..., 0].to(changed)
        return (changed,)

    seen = {}

    def ids(module, args, kwargs):
        seen["ids"] = args[0] if args else kwargs["input"]

    return [
        model.parts.embedding.register_forward_pre_hook(ids, with_kwargs=True),
        handle_at.register_forward_pre_hook(strong),
    ]


def test_a_planted_neuron_is_found_and_its_contexts_are_the_token(model, tmp_path):
    token = model.single_token(" lamp")
    handles = plant(model, token, 2, 77)
    file = tmp_path / "corpus.txt"
    file.write_text(
        "Tom has the bell.\n\nRose sees a lamp near the door.\n\nThe old lamp is hot.\n\nIt is late."
    )
    inside = ["Nora has the lamp and", "A lamp in the park is", "It is the lamp of Leo"]
    outside = ["Nora has the bell and", "A bell in the park is"]
    try:
        data = RUN(model, prompts=inside, control=outside, k=5, corpus=str(file), contexts=2)
    finally:
        for handle in handles:
            handle.remove()
    assert "N77@L2" in data.neuron.values
    row = data.neuron.values.tolist().index("N77@L2")
    assert all("[ lamp]" in text for text in data.context.values[row])
    assert (data.context_activation.values[row] == 1e3).all()
    assert float(data.consistent.sel(feature="given prompts", block="2")) >= 1


def test_texts_are_read_together_as_far_as_memory_allows_and_each_says_the_same(model, monkeypatch):
    inside, outside = ["14 + 43 =", "31 + 12 =", "20 + 21 is what?"], ["The capital of France is"]
    texts = {"prompts": inside, "control": outside, "k": 20}
    forwards = []
    handle = model.hf.register_forward_pre_hook(lambda module, args: forwards.append(1))
    try:
        together = RUN(model, **texts)
        few = len(forwards)
        monkeypatch.setattr("regraft.experiments.observe.neurons.HELD", 1)
        alone = RUN(model, **texts)
    finally:
        handle.remove()
    assert len(forwards) - few > few, "each text by itself"
    assert together.neuron.values.tolist() == alone.neuron.values.tolist()
    np.testing.assert_allclose(together.activation, alone.activation, rtol=1e-4, atol=1e-5)
    assert together.context.values.tolist() == alone.context.values.tolist()


def test_how_many_rows_go_together():
    assert fitting([3, 5, 2], 10) == 2
    assert fitting([3, 3, 3, 9], 9) == 3
    assert fitting([11], 10) == 1


def test_definition_by_a_plain_search(model):
    """Every neuron that is listed, and none other, is in the top k of each text of its set and of no other
    text."""
    inside, outside = (
        ["14 + 43 =", "31 + 12 =", "20 + 21 ="],
        ["The capital of France is", "Question: Is Warsaw in Europe?"],
    )
    data = RUN(model, prompts=inside, control=outside, k=12, show=10_000)
    wanted = set()
    for block in range(4):
        tops = []
        for text in [*inside, *outside]:
            recording = model.record([text])
            values = recording[f"{block}.mlp_act"][0, 1:].amax(0)
            tops.append(set(values.topk(12).indices.tolist()))
        wanted |= {f"N{i}@L{block}" for i in set.intersection(*tops[:3]) - set.union(*tops[3:])}
    assert set(data.neuron.values) == wanted
    assert data.attrs["found"] == len(wanted) == int(data.consistent.sum())
    assert wanted


def test_without_a_control_set_more_remain(model):
    texts = ["14 + 43 =", "31 + 12 ="]
    alone = RUN(model, prompts=texts, show=500)
    against = RUN(model, prompts=texts, control=["41 + 24 =", "The capital of France is"], show=500)
    assert set(against.neuron.values) < set(alone.neuron.values)


def test_contexts_are_the_strongest_of_the_corpus(model):
    data = RUN(model, category="holder", k=10, show=3, contexts=3)
    assert data.sizes["neuron"]
    label = str(data.neuron.values[0])
    index, block = label[1:].split("@L")
    best = []
    for ids in corpus(model, seed=0):
        values = model.record([ids])[f"{block}.mlp_act"][0, :, int(index)]
        special = torch.isin(torch.tensor(ids), torch.tensor(model.tokenizer.all_special_ids))
        values = values.masked_fill(special, float("-inf"))
        best.append(float(values[1:].max()) if len(values) > 1 else float(values[0]))
    wanted = sorted(best, reverse=True)[:3]
    assert np.allclose(data.context_activation.values[0], wanted, rtol=1e-4)


def test_ties_take_the_first_and_nothing_found_is_a_result(model):
    assert top(np.array([1.0, 3.0, 3.0, 2.0]), 2) == {1, 2}
    assert top(np.array([3.0, 3.0, 3.0]), 1) == {0}
    same = ["The capital of France is"] * 2
    data = RUN(model, prompts=same, control=same)
    assert data.attrs["found"] == 0
    assert data.sizes["neuron"] == 0


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "t5", "bert_headless", "qwen3_5", "gemma2", "phi3"])
def test_families_with_neurons(name, tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("5 6 7 8\n\n9 10 11")
    data = RUN(opened(name), prompts=["5 6 7", "5 6 8"], control=["20 21 22"], corpus=str(file))
    assert data.sizes["block"] == len(opened(name).main_blocks)
    assert data.attrs["found"] > 0


def test_without_a_tokenizer_there_are_neurons_but_no_contexts():
    data = RUN(opened("llama"), prompts=["5 6 7", "5 6 8"], control=["20 21 22"])
    assert data.attrs["found"] > 0
    assert "no contexts: without a tokenizer" in data.attrs["notes"]
    drawing = drawing_of(data)
    assert len(drawing.figures(data)) == 2
    assert "and in no other text" in drawing.finding(data)
    alone = RUN(opened("llama"), prompts=["5 6 7", "5 6 8"])
    assert "there is no control set" in drawing.finding(alone)


def test_a_corpus_is_cut_by_tokens(model, tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("x" * 3000 + "\n\n" + "lamp " * 500)
    rows = corpus(model, str(file))
    assert max(map(len, rows)) <= 128
    (tmp_path / "ids.txt").write_text("5 6 7 " * 200)
    short = corpus(opened("gpt2"), str(tmp_path / "ids.txt"))
    assert max(map(len, short)) == 126, "that model reads 128 tokens"
    assert sum(map(len, rows)) == sum(len(model.encode(t.strip())) for t in file.read_text().split("\n\n"))


def test_a_count_takes_the_first_of_each_set(model):
    own, other = [f"Tom has the {word}." for word in ("bell", "lamp", "ring", "key")], ["one", "two", "three"]
    some = RUN(model, prompts=own, control=other, count=2)
    assert list(some.prompt.values) == [*own[:2], *other[:2]]
    alone = RUN(model, prompts=own[:2], control=other[:2])
    assert list(some.neuron.values) == list(alone.neuron.values)
    assert list(some.consistent.values.ravel()) == list(alone.consistent.values.ravel())
    counted = RUN(model, count=2)
    every = RUN(model)
    assert {str(f): int((counted.text_feature == f).sum()) for f in counted.feature.values} == dict.fromkeys(
        map(str, every.feature.values), 2
    )
    for wrong, words in ((-1, "too few"), (1, "everything in common")):
        for texts in ({"prompts": own}, {}):
            with pytest.raises(ValueError, match=words):
                RUN(model, count=wrong, **texts)


def test_wrong_use_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="has everything in common with itself"):
        RUN(model, prompts=["one"])
    with pytest.raises(ValueError, match="no category 'nothing'"):
        RUN(model, category="nothing")
    with pytest.raises(ValueError, match="a control set alone"):
        RUN(model, control=["one"])
    with pytest.raises(ValueError, match="a block has 512 neurons: all would count"):
        RUN(model, k=512)
    with pytest.raises(ValueError, match="cannot be read \\(No such file"):
        RUN(model, prompts=["14 + 43 =", "31 + 12 ="], corpus=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="one for each expert"):
        RUN(opened("mixtral"), prompts=["5 6", "7 8"])
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(ValueError, match="is empty: give a text file"):
        RUN(model, prompts=["14 + 43 =", "31 + 12 ="], corpus=str(empty))

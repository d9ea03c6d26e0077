"""Geometry against closed forms, a plain computation over all states, and planted batches and padding."""

from __future__ import annotations

import weakref
from functools import partial

import numpy as np
import pytest
import torch

from families import FAMILIES
from regraft.core.registry import experiments
from regraft.data import evaluation
from regraft.data.generation import prompt_ids
from regraft.experiments.observe import geometry
from regraft.experiments.observe.geometry import Cloud, linear_cka
from regraft.experiments.observe.token_states import Observed, observed
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from small import opened

RUN = partial(run_experiment, experiments()["geometry"])


class Planted(Observed):
    """States given by hand in place of a model's: one recording's worth for each part."""

    def __init__(self, parts, categories):
        self.parts, self.categories = parts, categories

    def walk(self):
        first = 0
        for states in self.parts:
            yield first, states
            first += len(states[0])


def cloud(states_ND, categories=None, cut=None):
    depths = [states_ND, 2 * states_ND + 1]
    pieces = [depths] if cut is None else [[d[:cut] for d in depths], [d[cut:] for d in depths]]
    return Cloud.of(Planted(pieces, categories or ["a"] * len(states_ND)), seed=0)


def test_participation_ratio_has_its_closed_forms():
    torch.manual_seed(0)
    isotropic = torch.cat([torch.eye(8), -torch.eye(8)]) * 3 + 5
    assert cloud(isotropic).participation_ratio()[0] == pytest.approx(8.0)
    line = torch.randn(50, 1) @ torch.randn(1, 8) + 2
    assert cloud(line).participation_ratio()[0] == pytest.approx(1.0, abs=1e-6)
    plane = torch.zeros(40, 8)
    plane[:20, 1] = torch.tensor([1.0, -1.0]).repeat(10)
    plane[20:, 6] = torch.tensor([1.0, -1.0]).repeat(10)
    assert cloud(plane).participation_ratio()[0] == pytest.approx(2.0)
    assert cloud(plane).participation_ratio()[1] == pytest.approx(2.0)


def test_cka_of_a_rotation_is_one_and_of_noise_is_not():
    torch.manual_seed(0)
    states = torch.randn(60, 8).double()
    rotation = torch.linalg.qr(torch.randn(8, 8).double()).Q
    found = linear_cka(torch.stack([states, 3 * states @ rotation + 7, torch.randn(60, 8).double()]))
    assert float(found[0, 1]) == pytest.approx(1.0, abs=1e-12)
    assert float(found[0, 2]) < 0.5


def test_separation_is_between_over_within():
    states = torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 1.0], [4.0, -1.0]])
    assert cloud(states, ["a", "a", "b", "b"]).separation()[0] == pytest.approx(4.0)
    assert np.isnan(cloud(states).separation()).all()


def test_streaming_in_two_parts_is_one_cloud():
    torch.manual_seed(0)
    states = torch.randn(50, 6)
    kinds = ["a", "b"] * 25
    whole, parted = cloud(states, kinds), cloud(states, kinds, cut=17)
    for name in ("participation_ratio", "separation", "cka"):
        assert np.allclose(getattr(whole, name)(), getattr(parted, name)(), atol=1e-12)
    assert np.allclose(whole.pair_cosine(True), parted.pair_cosine(True), atol=1e-12)


@pytest.mark.parametrize("depths", [1, 2, 3])
def test_moments_that_do_not_fit_together_are_summed_one_walk_after_the_other(depths, monkeypatch):
    """At a width of 4,096 and 33 depths they would be 4 GiB: no more than MOST_BYTES are held, and the
    numbers are the same."""
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(30, 6, generator=draw) * (1 + torch.arange(6)) for _ in range(5)]
    parts = [[h[:11] for h in states], [h[11:] for h in states]]
    kinds = ["a", "b", "b"] * 10
    walks, held = [], []

    class Counted(Planted):
        def walk(self):
            walks.append(1)
            return super().walk()

    whole = Cloud.of(Planted(parts, kinds), seed=0)
    plain = geometry._add_second_moments
    sample = 5 * 30 * 6 * 4
    monkeypatch.setattr(geometry, "MOST_BYTES", sample + depths * 8 * 6 * 6 + 7)
    monkeypatch.setattr(
        geometry, "_add_second_moments", lambda total, some: held.append(plain(total, some)) or held[-1]
    )
    parted = Cloud.of(Counted(parts, kinds), seed=0)
    assert len(walks) == -(-5 // depths)
    assert max(made.numel() * made.element_size() for made in held) <= geometry.MOST_BYTES - sample
    assert parted.sample.numel() * parted.sample.element_size() == sample
    torch.testing.assert_close(parted.variance, whole.variance, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(parted.squares, whole.squares, rtol=1e-12, atol=0.0)


def test_pairs_of_states_are_held_some_at_a_time(monkeypatch):
    """All of them at once would be 5 GiB at a width of 4,096 and 33 depths, twice."""
    draw = torch.Generator().manual_seed(0)
    cloud = Cloud.of(Planted([[torch.randn(30, 6, generator=draw) for _ in range(3)]], ["a"] * 30), seed=0)
    one, other = cloud.pairs
    pairs = [torch.cosine_similarity(h[one].double(), h[other].double()) for h in cloud.sample]
    held, plain = [], geometry.cosine_similarity
    monkeypatch.setattr(
        geometry, "cosine_similarity", lambda a, b, dim: held.append(a.numel()) or plain(a, b, dim=dim)
    )
    assert np.allclose(
        cloud.pair_cosine(False), [float(each.mean()) for each in pairs], rtol=1e-12, atol=1e-14
    )
    assert max(held) <= geometry.PAIRS_AT_ONCE * 6
    assert sum(held) == 3 * len(one) * 6


@pytest.fixture(scope="module")
def model():
    return load("specimen:gpt2")


def test_own_texts_do_not_ask_for_those_that_ship(monkeypatch):
    """A model that knows none of them can be given others."""
    refused = lambda model: pytest.fail("the prompts that ship were asked for")  # noqa: E731
    monkeypatch.setattr("regraft.experiments.observe.token_states.suited_prompts", refused)
    assert observed(opened("bert_headless"), ["5 6 7", "8 9"], 20, 4, "").tokens == 5


def test_against_a_plain_computation_over_all_states(model):
    data = RUN(model, count=5, tokens=6)
    seen = observed(model, None, 5, 6, "")
    parts = [states for _, states in seen.walk()]
    states = [torch.cat([p[d] for p in parts]).double().numpy() for d in range(5)]
    assert data.attrs["tokens"] == len(states[0]) == sum(int(r.scored_BT.sum()) for r in seen.recordings)
    for depth, h in enumerate(states):
        sigma = np.linalg.svd(h - h.mean(0), compute_uv=False)
        assert data.participation_ratio[depth] == pytest.approx(
            (sigma**2).sum() ** 2 / (sigma**4).sum(), rel=1e-8
        )
        assert data.mean_norm[depth] == pytest.approx(np.linalg.norm(h, axis=1).mean())
    move = states[2] - states[1]
    assert data.update_size[1] == pytest.approx(
        (np.linalg.norm(move, axis=1) / np.linalg.norm(states[1], axis=1)).mean()
    )
    cosine = (move * states[-1]).sum(1) / np.linalg.norm(move, axis=1) / np.linalg.norm(states[-1], axis=1)
    assert data.update_persistence[1] == pytest.approx(cosine.mean())
    assert data.persistence[-1] == pytest.approx(1.0)
    assert np.allclose(np.diag(data.cka), 1.0)


def test_batches_and_padding_do_not_matter(model, monkeypatch):
    wide = RUN(model, count=6, tokens=6)
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 1)
    narrow = RUN(model, count=6, tokens=6)
    assert max(len(r.ids_BT) for r in observed(model, None, 6, 6, "").recordings) == 1
    for name in wide.data_vars:
        assert np.allclose(wide[name], narrow[name], atol=1e-5, equal_nan=True), name


def test_recordings_are_not_all_kept_and_a_corpus_streams(model, monkeypatch, tmp_path):
    """With no room to keep any, one recording is alive at a time, and every number is the same to the bit."""
    file = tmp_path / "corpus.txt"
    file.write_text(
        "\n\n".join(f"There are {n} lamps in the park and {n + 1} bells near the church." for n in range(120))
    )
    roomy = RUN(model, corpus=str(file))
    monkeypatch.setattr(evaluation, "KEPT_FLOATS", 0)
    alive, most, real = weakref.WeakSet(), [], evaluation.Recordings.__getitem__

    def counted(self, index):
        made = real(self, index)
        alive.add(made)
        most.append(len(alive))
        return made

    monkeypatch.setattr(evaluation.Recordings, "__getitem__", counted)
    tight = RUN(model, corpus=str(file))
    assert len(most) > 4
    assert max(most) <= 2, "the one at hand, and at most the one before it"
    for name in roomy.data_vars:
        assert np.array_equal(roomy[name], tight[name], equal_nan=True), name
    special = set(model.tokenizer.all_special_ids)
    texts = file.read_text().split("\n\n")
    assert roomy.attrs["tokens"] == sum(sum(i not in special for i in model.encode(t)[1:]) for t in texts)


def test_prompt_and_padding_positions_do_not_count(model):
    seen = observed(model, None, 6, 6, "")
    assert any(not bool(r.mask_BT.all()) for r in seen.recordings)
    before = [states[3].clone() for _, states in seen.walk()]
    for recording in seen.recordings:
        for stream in [*recording.taken.stream, *recording.taken.ends]:
            stream[~recording.scored_BT] = 1e9
    assert all(
        torch.equal(a, b) for a, (_, states) in zip(before, seen.walk(), strict=True) for b in [states[3]]
    )


def test_template_tokens_do_not_count():
    """With a chat template round the prompt, what is looked at begins where the template ends, and nothing in
    front of it."""
    chat = load("specimen:gpt2")
    chat.tokenizer.chat_template = "{% for m in messages %}Question: {{ m.content }} Answer:{% endfor %}"
    seen = observed(chat, ["The capital of France is"], 1, 5, "")
    (recording,) = seen.recordings
    spoken = prompt_ids(chat, "The capital of France is")
    assert len(spoken) > len(chat.encode("The capital of France is")) + 4
    assert recording.ids_BT[0, : len(spoken)].tolist() == spoken
    assert seen.pairs[0][1].tolist() == list(range(len(spoken), recording.positions))
    assert recording.scored_BT[0].nonzero()[:, 0].tolist() == seen.pairs[0][1].tolist()
    assert seen.tokens == recording.positions - len(spoken) > 0


def test_encoders_and_both_stacks():
    t5 = load("specimen:t5")
    for stack in ("encoder", "decoder"):
        assert RUN(t5, count=3, tokens=4, stack=stack).block.values[0] == f"{stack}.0"
    with pytest.raises(ValueError, match="choose encoder or decoder"):
        RUN(t5, stack="middle")
    torch.manual_seed(0)
    bert = load(FAMILIES["bert_headless"]().eval(), pack=False)
    data = RUN(bert, prompts=["5 6 7 8", "9 10 11"])
    assert data.attrs["tokens"] == 7
    causal = load(FAMILIES["gpt2"]().eval().transformer, pack=False)
    assert causal.parts.head is None
    assert RUN(causal, prompts=["5 6 7 8", "9 10 11"]).attrs["tokens"] == 5, (
        "no head: every token but the first of each"
    )
    with pytest.raises(ValueError, match="1 token is too few"):
        RUN(bert, prompts=["5"])

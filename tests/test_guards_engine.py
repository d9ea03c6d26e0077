"""Edits, metrics and the sweep's bookkeeping by hand: rows, positions, weights and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from regraft.model.sites import SiteError
from regraft.sweeps import metrics, recorded_layout
from regraft.sweeps import sweep as module
from regraft.sweeps.edits import Carried, Placed, apply_edits, pick_value
from regraft.sweeps.executor import route_logits
from regraft.sweeps.plan import Work
from regraft.sweeps.read_pairs import ReadPairs, _told_apart
from regraft.sweeps.recorded_layout import batch_rows, live_rows
from regraft.sweeps.routes import Route, Stop
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult, joined
from regraft.sweeps.variants import Add, Noise, Replace, Scale, Variant, Zero
from small import METRIC, opened, recorded, reference


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(x, placed, carried):
    """One edit after the other, one prompt, one position and one feature at a time."""
    out = x.clone()
    for one in placed:
        edit, where = one.edit, one.edit.position
        wanted = [where] if isinstance(where, int) else where
        for b, length in enumerate(carried.lengths):
            places = (
                range(carried.start, carried.positions)
                if wanted is None
                else [p + length if p < 0 else p for p in wanted]
            )
            for k, p in enumerate(places):
                for w, feature in enumerate(
                    range(x.shape[-1]) if one.features is None else one.features.tolist()
                ):
                    at = (one.row, b, p - carried.start, feature)
                    value = getattr(edit, "value", None)
                    if value is not None:
                        value = value.flatten(2) if value.dim() == 4 else value
                        value = (
                            value.expand(*value.shape[:-1], x.shape[-1]) if value.shape[-1] == 1 else value
                        )
                        if value.dim() == 3:
                            value = value[b % len(value), p, w]
                        elif value.dim() == 2:
                            value = value[k % len(value), w]
                        else:
                            value = value[w]
                    if isinstance(edit, Zero):
                        out[at] = 0.0
                    elif isinstance(edit, Scale):
                        out[at] = out[at] * edit.factor
                    else:
                        out[at] = value + (out[at] if isinstance(edit, Add) else 0)
    return out


@pytest.mark.parametrize("start", [0, 3])
def test_edits_of_many_rows_equal_one_number_at_a_time(start):
    carried = Carried(start, 8, (8, 6))
    x = numbers(5, 2, 8 - start, 6)
    some, other = torch.tensor([1, 4]), torch.tensor([5, 0])
    placed = [
        Placed(0, Zero("s", 4)),
        Placed(0, Add("s", numbers(6, seed=1), -1)),
        Placed(1, Zero("s", [3, 5])),
        Placed(1, Scale("s", -2.0, 3)),
        Placed(2, Replace("s", numbers(2, 6, seed=2), [-1, -2])),
        Placed(2, Replace("s", numbers(2, 8, 6, seed=3), 5)),
        Placed(3, Replace("s", numbers(1, 8, 2, seed=4), 4), some),
        Placed(3, Add("s", numbers(2, 8, 2, 1, seed=5), [4, 5]), other),
        Placed(4, Scale("s", 3.0)),
        Placed(4, Add("s", numbers(1, 1, seed=6))),
        Placed(2, Add("s", numbers(1, 6, seed=7))),
        Placed(3, Zero("s", -1), torch.tensor([2, 3])),
    ]
    before = x.clone()
    found = apply_edits(x, placed, carried)
    torch.testing.assert_close(found, by_hand(x, placed, carried))
    assert torch.equal(x, before), "a copy is edited"
    assert torch.equal(apply_edits(x, [], carried), x)


def test_noise_is_as_large_as_the_activation_and_the_same_again():
    x = numbers(2, 1, 400, 64) * torch.linspace(0.1, 5, 400)[:, None]
    carried = Carried(0, 400, (400,))
    placed = [Placed(0, Noise("s", 0.5, seed=3)), Placed(1, Noise("s", 0.5, seed=4))]
    found = apply_edits(x, placed, carried)
    added = (found - x)[:, 0]
    size = x[:, 0].pow(2).mean(-1).sqrt()
    assert float((added.pow(2).mean(-1).sqrt() / size).mean()) == pytest.approx(0.5, rel=0.03)
    assert abs(float(added.mean() / size.mean())) < 0.02
    assert torch.equal(found, apply_edits(x, placed, carried))
    assert float((added[0] / size[0, :, None] - added[1] / size[1, :, None]).abs().mean()) > 0.1


@pytest.mark.parametrize("shape", [(5,), (3, 6), (2, 7, 6), (3, 8, 6), (2, 8, 5), ()])
def test_values_that_do_not_fit_are_refused(shape):
    positions = torch.tensor([[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="s"):
        pick_value(Zero("s"), torch.zeros(shape), positions, Carried(0, 8, (8, 8)), 6)


def test_keys_tell_edits_apart_by_all_that_they_do():
    value = torch.zeros(4)
    one = Replace("1.z", value, 2)
    assert one.key == one.key != Replace("1.z", value, 2).key
    assert Zero("1.z", [1, 2]).key == Zero("1.z", (1, 2)).key
    keys = [
        Zero("1.z").key, Zero("2.z").key, Zero("1.z", 1).key, Scale("1.z", 2.0).key, Scale("1.z", 3.0).key,
        Scale("2.z", 2.0).key,
        Scale("1.z", 2.0, 1).key, Noise("1.z", 0.1).key, Noise("1.z", 0.2).key, Noise("1.z", 0.1, 1).key,
        Noise("2.z", 0.1).key,
        Noise("1.z", 0.1, 0, 3).key, Add("1.z", value).key,
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    module_one, module_two = torch.nn.Identity(), torch.nn.Identity()
    assert Stop(1, module_one).key == Stop(1, module_one).key
    assert len({Stop(1).key, Stop(2).key, Stop(1, module_one).key, Stop(1, module_two).key}) == 4


def test_routes_by_hand():
    def blocks(route):
        return [stop.block for stop in route.stops]

    donor = torch.nn.Identity()
    assert blocks(Route.skip(5, [1, 3, 1])) == [0, 2, 4]
    assert blocks(Route.swap(5, 3, 1)) == [0, 3, 2, 1, 4]
    assert blocks(Route.repeat(4, 2, 3)) == [0, 1, 2, 2, 2, 3]
    assert blocks(Route.repeat(4, 2, 0)) == [0, 1, 3]
    assert [(s.block, s.module) for s in Route.replace(3, {1: donor}).stops] == [
        (0, None),
        (1, donor),
        (2, None),
    ]
    for wrong in (-1, 5):
        for make in (
            lambda b: Route.skip(5, [b]),
            lambda b: Route.swap(5, 0, b),
            lambda b: Route.swap(5, b, 0),
            lambda b: Route.repeat(5, b, 2),
            lambda b: Route.replace(5, {b: donor}),
        ):
            with pytest.raises(ValueError, match=f"no block {wrong}"):
                make(wrong)
    Route.skip(5, [0, 4])


def faked(logits, causal=True, scored=None, lengths=(4, 3)):
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    scored = mask.clone() if scored is None else scored
    ids = torch.tensor([[3, 1, 4, 2], [5, 0, 2, 0]])
    parts = SimpleNamespace(labels=None)
    model = SimpleNamespace(
        causal=causal, vocabulary=logits.shape[-1], parts=parts, single_token=lambda text: int(text[1:])
    )
    return SimpleNamespace(
        model=model,
        ids_BT=ids,
        scored_BT=scored,
        scored_is_given=False,
        lengths_B=mask.sum(1),
        prompts=2,
        positions=4,
    )


def test_metrics_by_their_definitions():
    logits, clean = numbers(6, 9), numbers(6, 9, seed=1)
    logits[0, 2] = logits[0, 5]
    recording = faked(logits)
    pairs = torch.arange(6)
    p, q = clean.softmax(-1), logits.softmax(-1)

    def score(metric):
        return metrics.resolved(metric, recording).score(
            logits, pairs, recording, lambda chosen: clean[chosen]
        )

    close = torch.testing.assert_close
    close(score(metrics.logit_difference(2, "t5")), logits[:, 2] - logits[:, 5])
    close(score(metrics.token_logit(3)), logits[:, 3])
    close(score(metrics.probability("t3")), q[:, 3])
    close(score(metrics.log_probability(3)), q[:, 3].log())
    close(score(metrics.rank(5)), torch.tensor([float(sum(x > row[5] for x in row)) for row in logits]))
    close(score(metrics.kl_to_clean()), (p * (p / q).log()).sum(-1))
    close(score(metrics.top1_agreement()), (logits.argmax(-1) == clean.argmax(-1)).float())
    close(score(metrics.stream_distance()), (logits - clean).norm(dim=1) / clean.norm(dim=1))
    assert metrics.stream_distance().reads == "stream"
    assert metrics.kl_to_clean().reads == "logits"
    better = [metrics.resolved(m, recording).larger_is_better for m in (
        metrics.loss(), metrics.rank(1), metrics.kl_to_clean(), metrics.stream_distance(),
        metrics.top1_agreement(), metrics.probability(1),
        metrics.log_probability(1), metrics.token_logit(1), metrics.logit_difference(1, 2))]  # fmt: skip
    assert better == [False] * 4 + [True] * 5
    for wrong in (-1, 9):
        with pytest.raises(ValueError, match=str(wrong)):
            metrics.resolved(metrics.token_logit(wrong), recording)
    for right in (0, 8):
        close(score(metrics.token_logit(right)), logits[:, right])


def test_positions_that_metrics_read():
    recording = faked(numbers(5, 9))

    def read(metric, one=recording):
        return [(int(b), int(t)) for b, t in zip(*metrics.resolved(metric, one).pairs(one), strict=True)]

    predicted = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert read(metrics.loss()) == read(metrics.kl_to_clean()) == predicted
    assert read(metrics.token_logit(1)) == [(0, 3), (1, 2)]
    assert read(metrics.token_logit(1, position=-3)) == [(0, 1), (1, 0)]
    assert read(metrics.token_logit(1, position=2)) == read(metrics.kl_to_clean(2)) == [(0, 2), (1, 2)]
    for outside in (3, -4):
        with pytest.raises(ValueError, match=str(outside)):
            read(metrics.token_logit(1, position=outside))
    unscored = faked(numbers(5, 9), scored=torch.zeros(2, 4, dtype=torch.bool))
    assert read(metrics.kl_to_clean(), unscored) == [(0, 3), (1, 2)]
    with pytest.raises(ValueError, match="no token is scored"):
        read(metrics.loss(), unscored)
    encoder = faked(numbers(5, 9), causal=False)
    assert read(metrics.kl_to_clean(), encoder) == [(0, 3), (1, 2)]
    with pytest.raises(ValueError, match="no token is scored"):
        read(metrics.loss(), encoder)
    encoder.scored_is_given = True
    assert read(metrics.loss(), encoder) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    for one, shift in ((recording, 1), (encoder, 0)):
        prompt, position = metrics.loss().pairs(one)
        logits = numbers(len(prompt), 9)
        wanted = [
            -float(row.log_softmax(-1)[one.ids_BT[b, t + shift]])
            for row, b, t in zip(logits, prompt, position, strict=True)
        ]
        assert metrics.loss().score(logits, torch.arange(len(prompt)), one, None).tolist() == pytest.approx(
            wanted, rel=1e-5
        )


def test_pairs_of_several_metrics_are_read_once_and_averaged_by_prompt():
    recording = faked(numbers(5, 9))
    chosen = [metrics.loss(), metrics.resolved(metrics.token_logit(1), recording), metrics.kl_to_clean(1)]
    pairs = ReadPairs(recording, chosen)
    union = list(zip(pairs.prompt.tolist(), pairs.position.tolist(), strict=True))
    assert union == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    assert pairs.own_index["loss"].tolist() == [0, 1, 2, -1, 3, 4, -1]
    assert pairs.places["logit"].tolist() == [3, 6]
    assert pairs.counts["loss"].tolist() == [3, 2]
    scores = torch.arange(14.0).view(2, 7)
    assert pairs.per_prompt("loss", scores).tolist() == [[1.0, 4.5], [8.0, 11.5]]
    assert pairs.per_prompt("logit", scores).tolist() == [[3.0, 6.0], [10.0, 13.0]]
    streams, clean = numbers(3, 2, 2, 5), numbers(2, 4, 5, seed=1)
    suffix = pairs.gather(streams, 2, clean)
    for at, (b, t) in enumerate(union):
        assert torch.equal(suffix[:, at], streams[:, b, t - 2] if t >= 2 else clean[b, t].expand(3, -1))


def test_metrics_of_one_kind_bear_their_targets_or_a_number():
    recording = faked(numbers(5, 9))
    chosen = [
        metrics.resolved(m, recording)
        for m in (metrics.token_logit(1), metrics.rank(2), metrics.token_logit(3))
    ]
    told = _told_apart(chosen)
    assert [m.name for m in told] == ["logit(1)", "rank", "logit(3)"]
    assert [m.token for m in told] == [1, 2, 3]
    twice = _told_apart([metrics.resolved(metrics.token_logit(1), recording)] * 2)
    assert [m.name for m in twice] == ["logit_1", "logit_2"]
    at = [metrics.resolved(metrics.token_logit(1, position=p), recording) for p in (0, 1)]
    assert [m.name for m in _told_apart(at)] == ["logit(1, position=0)", "logit(1, position=1)"]


def test_means_are_weighted_by_positions_and_resultsjoined():
    def part(values, clean, weights, deviation, note):
        one = {"m": torch.tensor(values)}
        return SweepResult(
            one, {"m": torch.tensor(clean)}, {"m": torch.tensor(clean)}, {"m": torch.tensor(weights)},
            {"m": "nats"},
            Work(1, 2, 3, 4), deviation, [note],
        )  # fmt: skip

    first = part([[1.0, 2.0], [5.0, 6.0]], [1.0, 3.0], [1.0, 3.0], 0.5, "a")
    assert first.mean("m").tolist() == [1.75, 5.75]
    assert first.clean_mean("m") == 2.5
    both = joined([first, part([[9.0], [8.0]], [7.0], [4.0], 0.1, "a")])
    assert both.mean("m").tolist() == [(1 + 6 + 36) / 8, (5 + 18 + 32) / 8]
    assert both.clean_mean("m") == (1 + 9 + 28) / 8
    assert both.deviation == 0.5
    assert both.control["m"].tolist() == [1.0, 3.0, 7.0]
    assert (both.work.planned, both.work.executed, both.notes) == (2, 8, ["a"])


def test_rows_at_once_are_bounded(monkeypatch):
    model = opened("llama")
    recording = recorded(model, 7, 5)
    monkeypatch.setattr(recorded_layout, "CPU_ROW_POSITIONS", 43)
    assert batch_rows(recording) == 3
    monkeypatch.setattr(recorded_layout, "CPU_ROW_POSITIONS", 3)
    assert batch_rows(recording) == 1
    monkeypatch.setattr(recorded_layout, "LIVE_FLOATS", 2 * 7 * 32 * 5)
    assert live_rows(recording) == 5
    monkeypatch.setattr(recorded_layout, "LIVE_FLOATS", 7)
    assert live_rows(recording) == 2
    grid = [Variant([Zero(f"{b}.mlp_out", position=p)], name=f"{b}{p}") for b in range(4) for p in (1, 4)]
    found = sweep(recording, grid, [METRIC, metrics.loss()])
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 5 * model.vocabulary)
    again = sweep(recording, grid, [METRIC, metrics.loss()])
    for name in ("d", "loss"):
        torch.testing.assert_close(found.values[name], again.values[name])
        torch.testing.assert_close(found.control[name], found.clean[name])
    torch.testing.assert_close(found.values["d"], reference(model, recording, grid), rtol=1e-4, atol=1e-5)
    assert found.work.executed >= found.work.planned > 0
    assert found.weights["loss"].tolist() == [6, 4]


def test_edits_behind_the_last_block_are_made_where_a_metric_reads():
    """At the positions that they name only, by the value that belongs to each prompt and position."""
    model = opened("llama")
    recording = recorded(model, 6, 4)
    value = numbers(2, 6, 96)
    norm = numbers(2, 32)
    variants = [
        Variant([Replace("logits", value, [3, 1])]),
        Variant([Add("final_norm", norm, [2, -1])]),
        Variant([Scale("logits", 2.0, 0)]),
        Variant([Zero("final_norm"), Add("logits", torch.ones(96))]),
        Variant([Zero("2.resid_post", -1), Scale("logits", 3.0)]),
    ]
    found = sweep(recording, variants, [metrics.token_logit(7, position=place) for place in (None, 0, 2, 1)])
    clean = recording["logits"][..., 7]
    head = model.parts.head.weight.detach()[7]
    at = ("logit(7)", *(f"logit(7, position={place})" for place in (0, 2, 1)))
    last, first, second, other = (found.values[name] for name in at)
    close = torch.testing.assert_close
    close(last[0], torch.stack([clean[0, 5], value[1, 3, 7]]))
    close(other[0], value[:, 1, 7])
    close(second[0], clean[:, 2])
    close(first[0], clean[:, 0])
    close(last[1], torch.stack([clean[0, 5], clean[1, 3]]) + norm[1] @ head)
    close(second[1], clean[:, 2] + norm[0] @ head)
    close(first[2], 2 * clean[:, 0])
    close(last[2], torch.stack([clean[0, 5], clean[1, 3]]))
    assert last[3].tolist() == first[3].tolist() == [1.0, 1.0]
    assert float((last[4] - 3 * torch.stack([clean[0, 5], clean[1, 3]])).abs().min()) > 1e-4
    close(first[4], 3 * clean[:, 0])
    for site in ("final_norm", "logits"):
        with pytest.raises(SiteError, match="noise"):
            sweep(recording, Variant([Noise(site, 0.1)]), METRIC)


def test_a_routes_logits_are_those_of_the_full_run():
    model = opened("llama")
    recording = recorded(model, 6, 6)
    route = Route.order([0, 2, 2, 3])
    with torch.no_grad():
        torch.testing.assert_close(
            route_logits(recording, Route.order(range(4))), model.hf(recording.ids_BT).logits
        )
    wanted = reference(model, recording, [Variant(route=route)], score=lambda x: x)[0]
    torch.testing.assert_close(route_logits(recording, route)[:, -1], wanted, rtol=1e-4, atol=1e-5)

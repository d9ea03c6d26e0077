"""Machines that serve requests: against the formula of one queue, against time that passes in small steps,
and what each arrangement must do."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.systems.serving_queue import (
    Answered,
    Request,
    Service,
    apart,
    crossing,
    goodput,
    poisson,
    together,
)

PLAIN = Service(lambda prompt: prompt / 100, lambda count, length: 0.1 + 0.01 * count, lambda prompt: 0.05)


def test_one_machine_that_only_reads_waits_as_pollaczek_and_khinchine_say():
    """Mean wait λE[S²]/(2(1-ρ)) of independent arrivals, whatever the work's distribution."""
    prompts, shares, rate = (20, 60), (0.5, 0.5), 1.5
    work = np.array(prompts) / 100
    load = rate * work.mean()
    wanted = rate * (work**2).mean() / (2 * (1 - load))
    means = []
    for seed in range(30):
        answers = together(poisson(rate, 4000, prompts, shares, 1, seed), 1, PLAIN, 8)
        means.append(np.mean([one.first_s - one.request.prompt / 100 for one in answers]))
    error = 4 * np.std(means) / len(means) ** 0.5
    assert abs(np.mean(means) - wanted) < error < 0.1 * wanted


def stepped(requests, service, batch, tick=1e-4):
    """One machine that reads and writes, told by time that passes in small steps."""
    waiting, writing, found = list(enumerate(requests)), [], {}
    now, busy_until, doing, reading = 0.0, 0.0, "", (0, requests[0])
    while len(found) < len(requests):
        if now + 1e-9 >= busy_until:
            if doing == "read":
                writing.append([*reading, now, reading[1].tokens - 1])
            writing = [[*one[:3], one[3] - (doing == "step")] for one in writing]
            for number, request, first, left in writing:
                if left <= 0:
                    found[number] = (first - request.at, (now - first) / max(1, request.tokens - 1))
            writing, doing = [one for one in writing if one[3] > 0], ""
            if waiting and waiting[0][1].at <= now + 1e-9 and len(writing) < batch:
                reading = waiting.pop(0)
                doing, busy_until = "read", now + service.read(reading[1].prompt)
            elif writing:
                doing, busy_until = "step", now + service.step(len(writing), 0)
        now += tick
    return [found[number] for number in range(len(requests))]


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_events_are_those_of_time_that_passes_in_small_steps(batch):
    requests = poisson(2.0, 25, [10, 40], [1, 1], 4, 3)
    answers = together(requests, 1, PLAIN, batch)
    wanted = stepped(requests, PLAIN, batch)
    for one, (first, between) in zip(answers, wanted, strict=True):
        assert one.first_s == pytest.approx(first, abs=0.02), one
        assert one.between_s == pytest.approx(between, abs=0.01), one


def test_a_lone_request_waits_for_nothing():
    lone = [Request(1.0, 50, 11)]
    (one,) = together(lone, 3, PLAIN, 8)
    assert one.first_s == pytest.approx(0.5)
    assert one.between_s == pytest.approx(0.11)
    (other,) = apart(lone, 1, 2, PLAIN, 8)
    assert other.first_s == pytest.approx(0.5 + 0.05), "moving is added"
    assert other.between_s == pytest.approx(0.11)


def test_reading_stands_in_the_way_of_writing_only_where_both_are_on_one_machine():
    requests = [Request(0.0, 10, 11), Request(0.5, 100, 2)]
    first = together(requests, 1, PLAIN, 8)[0]
    assert first.between_s > 0.11 + 0.09, "a second of reading, over ten tokens"
    assert apart(requests, 1, 1, PLAIN, 8)[0].between_s == pytest.approx(0.11)


def test_a_link_carries_one_prompt_at_a_time():
    slow = Service(lambda prompt: 0.1, lambda count, length: 0.1, lambda prompt: 1.0)
    answers = apart([Request(0.0, 5, 1), Request(0.0, 5, 1)], 1, 1, slow, 8)
    assert [one.first_s for one in answers] == pytest.approx([1.1, 2.1])
    answers = apart([Request(0.0, 5, 1), Request(0.0, 5, 1)], 2, 1, slow, 8)
    assert [one.first_s for one in answers] == pytest.approx([1.1, 1.1])


@pytest.mark.parametrize("batch", [1, 3])
def test_every_request_is_answered_once(batch):
    requests = poisson(4.0, 200, [10, 30], [3, 1], 5, 0)
    for answers in (together(requests, 3, PLAIN, batch), apart(requests, 1, 2, PLAIN, batch)):
        assert sorted(one.request.at for one in answers) == [request.at for request in requests]
        assert min(one.first_s - one.request.prompt / 100 for one in answers) >= -1e-9
        assert min(one.between_s for one in answers) >= 0.11 - 1e-9


def test_requests_come_at_their_rate_with_their_lengths():
    requests = poisson(5.0, 20_000, [10, 30], [3, 1], 5, seed=0)
    gaps = np.diff([0.0, *(request.at for request in requests)])
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)
    assert gaps.std() == pytest.approx(0.2, rel=0.05), "independent: as wide as the mean"
    assert np.mean([request.prompt == 30 for request in requests]) == pytest.approx(0.25, abs=0.02)
    assert (
        requests
        == poisson(5.0, 20_000, [10, 30], [3, 1], 5, 0)
        != poisson(5.0, 20_000, [10, 30], [3, 1], 5, 1)
    )


def test_an_answer_is_good_within_both_limits_and_the_crossing_is_for_good():
    seconds = ((0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (0.1, 0.1))
    told = [
        Answered(Request(1.0 + number, 1, 2), first, between)
        for number, (first, between) in enumerate(seconds)
    ]
    assert goodput(told, 0.5, 0.5) == pytest.approx(2 / 4)
    assert crossing([1, 2, 3, 4], [5, 5, 5, 5], [6, 4, 6, 7]) == 3.0
    assert crossing([1, 2], [5, 5], [6, 6]) == 1.0
    assert np.isnan(crossing([1, 2], [5, 5], [6, 5]))
    assert np.isnan(crossing([1, 2], [5, 5], [5, 5.04])), "a hundredth is no win"
    assert crossing([10, 20, 30], [8, 9, 3], [8, 11, 2]) == 20.0, "at thirty both drown"
    assert np.isnan(crossing([30, 40], [3, 3], [14, 14]))

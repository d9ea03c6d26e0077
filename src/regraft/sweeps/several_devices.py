"""Shares of a sweep spread over several devices of one machine, a copy of the model on each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import Empty, Queue
from threading import Thread
from typing import Any

from regraft.model.model import Model
from regraft.model.recorded_again import Given, recorded_again
from regraft.model.recording import Recording
from regraft.sweeps.metrics import AnyMetric
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Variant

Job = tuple[int, Sequence[Variant]]


class Devices:
    """Copies of one model on other devices; the model itself measures, too.

    Its own shares are measured by the thread that asks, which may hold the model already.

    Examples:
        >>> two = regraft.Devices(model, [regraft.load()])  # the second one on "cuda:1", for instance
        >>> clean, cells = model.record("It is dark"), [regraft.Zero(f"{b}.mlp_out") for b in range(12)]
        >>> regraft.sweep(clean, cells, regraft.loss(), cluster=two).values["loss"].shape
        torch.Size([12, 1])
    """

    def __init__(self, model: Model, copies: Sequence[Model]):
        self.model, self.taken_of, self.copies = model, model.fingerprint(), list(copies)

    def serves(self, recording: Recording) -> bool:
        """Whether the copies are copies of the recording's model as it is."""
        return served(recording, self.model, self.taken_of)

    def measured(
        self, recording: Recording, shares: Sequence[Job], metrics: Sequence[AnyMetric], exact: bool
    ) -> Iterator[tuple[int, SweepResult]]:
        """Each share's number and result, in the order in which they are done."""
        given, jobs = Given.of(recording), _queue_of(shares)
        done: Queue[tuple[int, SweepResult] | BaseException] = Queue()

        def work(copy: Model) -> None:
            try:
                own = recorded_again(copy, given)
                while (job := _next(jobs)) is not None:
                    result = sweep(own, list(job[1]), list(metrics), exact=exact)
                    done.put((job[0], on_cpu(result)))
            except BaseException as error:  # whatever it is, whoever asked hears of it
                done.put(error)

        threads = [Thread(target=work, args=(copy,), daemon=True) for copy in self.copies]
        for thread in threads:
            thread.start()
        left = len(shares)
        while left:
            job = _next(jobs)
            if job is not None:
                done.put((job[0], sweep(recording, list(job[1]), list(metrics), exact=exact, alone=True)))
            one = done.get()
            if isinstance(one, BaseException):
                raise one
            left -= 1
            yield one

    def close(self) -> None:
        """Let the copies go."""
        self.copies.clear()


def served(recording: Recording, model: Model, taken_of: tuple[Any, ...]) -> bool:
    """Whether a recording is of a model that was copied when its weights were these, and that nothing hangs
    on: no hook and no dictionary, which the copies do not have."""
    plain = not model.hooked_since and not model.dictionaries
    return recording.model is model and plain and recording.taken_of == taken_of


def _queue_of(shares: Sequence[Job]) -> Queue[Job]:
    jobs: Queue[Job] = Queue()
    for job in shares:
        jobs.put(job)
    return jobs


def _next(jobs: Queue[Job]) -> Job | None:
    try:
        return jobs.get_nowait()
    except Empty:
        return None


def on_cpu(result: SweepResult) -> SweepResult:
    """The same result with its tensors on the CPU."""
    for part in (result.values, result.clean, result.control, result.weights):
        part.update({name: tensor.cpu() for name, tensor in part.items()})
    return result

"""How busy the rest of the machine was during a measurement. Works on Linux; elsewhere it reports 0."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

STAT = Path("/proc/stat")


class Others:
    """Measures from its creation on. This process, its ended children and the given living ones do not
    count."""

    def __init__(self, living: Iterable[int] = ()):
        self.living = tuple(living)
        self.began, self.busy, self.own = time.perf_counter(), _busy(), _own(self.living)

    def seconds(self) -> float:
        """Seconds since the creation."""
        return time.perf_counter() - self.began

    def cores(self) -> float:
        """How many cores other processes kept busy, on average."""
        others = (_busy() - self.busy) - (_own(self.living) - self.own)
        return max(0.0, others) / self.seconds() if STAT.exists() else 0.0


def _busy() -> float:
    """CPU seconds of all processes since the machine started, in user and kernel."""
    if not STAT.exists():
        return 0.0
    user, nice, system = (int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _own(living: tuple[int, ...]) -> float:
    """CPU seconds of this process, of its ended children, and of those that live."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    files = [Path(f"/proc/{pid}/stat") for pid in living]
    fields = [file.read_text().rsplit(")", 1)[1].split() for file in files if file.exists()]
    ticks = sum(int(user) + int(system) for user, system in (found[11:13] for found in fields))
    return sum(u.ru_utime + u.ru_stime for u in used) + ticks / os.sysconf("SC_CLK_TCK")

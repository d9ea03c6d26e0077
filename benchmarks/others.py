"""How busy the rest of the machine was during a measurement. Works on Linux; elsewhere it reports 0."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

STAT = Path("/proc/stat")


class Others:
    """Measures from its creation on. Processes that this one started count as its own once they have ended."""

    def __init__(self):
        self.began, self.busy, self.own = time.perf_counter(), _busy(), _own()

    def seconds(self) -> float:
        """Seconds since the creation."""
        return time.perf_counter() - self.began

    def cores(self) -> float:
        """How many cores processes other than ours kept busy, on average."""
        return max(0.0, (_busy() - self.busy) - (_own() - self.own)) / self.seconds() if STAT.exists() else 0.0


def _busy() -> float:
    """CPU seconds of all processes since the machine started, in user and kernel."""
    if not STAT.exists():
        return 0.0
    user, nice, system = (int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """CPU seconds of this process and of its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)

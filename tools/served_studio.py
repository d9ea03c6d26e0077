"""A studio in a process of its own, as a user starts it: for its pictures, and for tests that look at it from
outside."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

START = "from regraft.cli.main import main; main()"
"""The command line, without the script that an installation makes of it."""


class Served:
    """A studio that listens on a free port: its address, and its processes."""

    def __init__(self, runs: Path, *words: str, start: str = START):
        self.runs = runs
        self.process = subprocess.Popen(
            [sys.executable, "-c", start, "studio", "--runs", str(runs), "--port", "0", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        assert self.process.stderr is not None
        self._drains = threading.Thread(target=self._drain, args=(self.process.stderr,), daemon=True)
        self._drains.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"http://\S+/", line):
                self.address = found.group(0)
                break
        else:
            raise AssertionError("".join(self.said))

    def _drain(self, stream) -> None:
        self.said.extend(stream)

    @property
    def workers(self) -> list[psutil.Process]:
        """Processes that run experiments."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in found if "regraft.studio.worker" in " ".join(_words(one))]

    @property
    def resident(self) -> int:
        """Bytes that the studio's own process holds."""
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self) -> int:
        """End it as Ctrl-C does; returns its exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self._drains.join(30)
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []

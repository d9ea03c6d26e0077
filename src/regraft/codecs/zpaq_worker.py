"""Decompression of one ZPAQ block in a process of its own, whose memory and time are limited.

A ZPAQ block brings the program that decodes it along, so a block of somebody else's may ask for any memory
and any time. `python -m regraft.codecs.zpaq_worker RAW` reads it from standard input and writes at most RAW
bytes; `unpacked` is the other side of that.
"""

from __future__ import annotations

import subprocess
import sys

from regraft.codecs.frame import DamagedFileError

MEMORY = 3 << 30
"""Bytes of address space that decompression may take, more than level 5 does for the largest block."""
SECONDS = 20
"""Seconds of the processor for any block, beside those for its length."""
BYTES_A_SECOND = 50_000
"""The slowest rate that is waited for, well below level 5's on a machine of today."""
TOO_LONG, NOT_HERE = 3, 4
"""The exit codes where a block holds more than it should, and where the library cannot be loaded."""


def unpacked(stored: bytes, raw: int) -> bytes:
    """A block of `raw` bytes.

    Raises:
        DamagedFileError: it is none, or asks for more memory or time than a block needs.
    """
    # -P: what lies in the folder that one stands in is not run
    command = [sys.executable, "-P", "-m", "regraft.codecs.zpaq_worker", str(raw)]
    done = subprocess.run(command, input=stored, capture_output=True, check=False)
    if done.returncode == NOT_HERE:
        raise RuntimeError("the process that unpacks cannot load the library zpaq: install the extra codecs")
    if done.returncode == TOO_LONG or (done.returncode == 0 and len(done.stdout) != raw):
        raise DamagedFileError("a block does not unpack to its length: the file is damaged")
    if done.returncode:
        said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
        reason = said[-1] if said else f"its process ended with {done.returncode}"
        raise DamagedFileError(f"a block could not be unpacked ({reason}): the file is damaged")
    return done.stdout


def limit(raw: int) -> None:
    """Limit this process's memory and time."""
    import resource

    seconds = SECONDS + raw // BYTES_A_SECOND
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """Decompress standard input to standard output."""
    raw = int(sys.argv[1])
    limit(raw)
    try:
        import zpaq
    except ImportError:
        return NOT_HERE
    stored = sys.stdin.buffer.read()
    try:
        data = zpaq.decompress(stored, threads=1)
    except (zpaq.Error, MemoryError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if len(data) > raw:
        return TOO_LONG
    sys.stdout.buffer.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())

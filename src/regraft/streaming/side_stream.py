"""How weights that were read get to the device that computes: on a card beside its computing, not in turns
with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class SideStream:
    """Copies to a card on a stream of their own; nothing of the kind on a processor.

    The thread that reads waits for its copies, and the stream that computes does not. What was copied there
    is used by another stream, and must not be given out again before that one is done with it.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def copying(self) -> Iterator[None]:
        """While inside, this thread's copies go by the side; all are done behind it."""
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            yield
        self.stream.synchronize()

    def handed_over(self, module: nn.Module) -> None:
        """Say that the stream that computes uses a module's weights from now on."""
        if self.stream is not None:
            for parameter in module.parameters():
                if parameter.device.type == "cuda":
                    parameter.data.record_stream(torch.cuda.current_stream(parameter.device))


def pin(address: int, size: int) -> None:
    """Keep memory where it is, so that a card reads it by itself.

    Raises:
        MemoryError: the driver refuses.
    """
    driver: Any = torch.cuda.cudart()
    code = int(driver.cudaHostRegister(address, size, 0))
    if code:
        raise MemoryError(f"the driver does not pin {size:,} bytes of memory (error {code}): allow less")


def unpin(address: int) -> None:
    """Let pinned memory go."""
    driver: Any = torch.cuda.cudart()
    driver.cudaHostUnregister(address)

"""Batches that are made, and brought to the GPU, while the network is at the one before."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from utils.system.threads import SuccessiveThreads


class PrefetchingLoader(DataLoader):
    """A loader that makes the next batch in a thread, and where ``device`` is a GPU also brings it there.

    Cutting crops leaves the interpreter to other threads most of the time. Processes of torch's loader are slower at
    it: they hand over each batch in memory that is new to both sides (docs/performance.md).
    """

    def __init__(self, *args: Any, device: torch.device, **options: Any) -> None:
        super().__init__(*args, **options)
        self.device = device

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Iterator[Any] = super().__iter__()
        if self.device.type == "cuda":
            batches = self._moved(batches, torch.cuda.Stream(self.device))
        with SuccessiveThreads() as threads:
            ahead = threads.submit(next, batches, None)
            while (batch := ahead.result()) is not None:
                ahead = threads.submit(next, batches, None)
                if self.device.type == "cuda":
                    # or the stream that brought it could overwrite it while kernels of this one still read it
                    for value in filter(torch.is_tensor, batch.values()):
                        value.record_stream(torch.cuda.current_stream(self.device))
                yield batch

    def _moved(self, batches: Iterator[Any], stream: torch.cuda.Stream) -> Iterator[Any]:
        """The batches on the GPU, brought there by a stream of their own, so that no kernel waits for that."""
        while True:
            # each thread has its own current device, which pinning takes, and the next batch is made in another thread
            torch.cuda.set_device(self.device)
            if (batch := next(batches, None)) is None:
                return
            with torch.cuda.stream(stream):
                moved = {
                    key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
                    for key, value in batch.items()
                }
            stream.synchronize()
            yield moved

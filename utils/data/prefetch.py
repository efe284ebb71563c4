"""Make the next batch, and copy it to the GPU, while the network works on the current one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from utils.system.threads import SuccessiveThreads


class PrefetchingLoader(DataLoader):
    """A loader that makes the next batch in a thread, and copies it to ``device`` if that is a GPU.

    Cutting crops releases the interpreter's lock most of the time. Torch's worker processes are slower: they hand over
    each batch in freshly mapped memory (docs/performance.md).
    """

    def __init__(self, *args: Any, device: torch.device, **options: Any) -> None:
        super().__init__(*args, **options)
        self.device = device

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Iterator[Any] = super().__iter__()
        if self.device.type == "cuda":
            batches = self._on_gpu(batches, torch.cuda.Stream(self.device))
        with SuccessiveThreads() as threads:
            ahead = threads.submit(next, batches, None)
            while (batch := ahead.result()) is not None:
                ahead = threads.submit(next, batches, None)
                if self.device.type == "cuda":
                    # else the copying stream could reuse its memory while kernels of this one still read it
                    for value in filter(torch.is_tensor, batch.values()):
                        value.record_stream(torch.cuda.current_stream(self.device))
                yield batch

    def _on_gpu(self, batches: Iterator[Any], stream: torch.cuda.Stream) -> Iterator[Any]:
        """The batches, copied to the GPU in a stream of their own, so that no kernel waits for the copy."""
        while True:
            # the current device, where memory is pinned, is each thread's own, and each batch comes in a new thread
            torch.cuda.set_device(self.device)
            if (batch := next(batches, None)) is None:
                return
            with torch.cuda.stream(stream):
                copied = {
                    key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
                    for key, value in batch.items()
                }
            stream.synchronize()
            yield copied

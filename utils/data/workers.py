"""Make batches in worker processes."""

import contextlib
import multiprocessing
import pickle
import signal
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.distributed.process import Process
from utils.system.errors import InputError, LostError

FORK = multiprocessing.get_context("fork")  # so that the dataset isn't copied
AHEAD = 2  # batches that each worker is asked for before the first of them is taken
LENGTH = struct.Struct("!Q")
CHECK_SECONDS = 0.5  # from one look for a signal to the next, while a batch is awaited
PATIENCE_SECONDS = 30.0  # after a signal, for a batch without which several processes can't stop together
END_SECONDS = 5.0  # for a process to end that is killed, or has closed its socket

Batch = Mapping[str, Any]


class WorkerLoader(DataLoader):
    """A loader whose batches are made in processes, some ahead, and come through sockets.

    Torch's own workers hand batches over in shared memory. Containers have 64 MB of it, and a worker that gets none
    dies, or waits for ever. A socket needs none, and shows at once that the worker has ended, however it did. The
    workers stay from one pass to the next.

    Args:
        owner: the process that takes the batches.
        workers: the number of worker processes, at least 1.
    """

    def __init__(self, *args: Any, owner: Process, workers: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.owner = owner
        self.count = workers
        self._workers: list[_Worker] = []
        self._asked: deque[_Worker] = deque()  # those that make the next batches, in order

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches in order.

        Raises:
            InputError: if a process can't be started.
            LostError: if a worker dies.
            Stopped: if a signal comes while a batch is awaited.
        """
        if self._asked:  # the last pass was left early, and its batches would come first
            for worker in self._workers:
                worker.end()
            self._workers.clear()
            self._asked.clear()
        while len(self._workers) < self.count:
            others = [worker.socket for worker in self._workers]
            self._workers.append(_Worker(self.dataset, self.collate_fn, self.owner, others))
        turns = cycle(self._workers)
        assert self.batch_sampler is not None
        for keys in self.batch_sampler:
            worker = next(turns)
            worker.ask(keys)
            self._asked.append(worker)
            if len(self._asked) == AHEAD * self.count:
                yield self._next()
        while self._asked:
            yield self._next()

    def _next(self) -> Any:
        batch = self._asked[0].batch(self.pin_memory)
        self._asked.popleft()
        return batch


@dataclass(frozen=True)
class _Announced:
    """A tensor whose bytes follow the message."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class _Worker:
    """A worker process, as its owner sees it.

    Args:
        others: the owner's sockets to other workers, which this one inherits and closes.

    Raises:
        InputError: if it can't be started.
    """

    def __init__(
        self, dataset: Dataset, collate: Callable[[list[Any]], Batch], owner: Process, others: Sequence[socket.socket]
    ) -> None:
        self.owner = owner
        self.socket, theirs = socket.socketpair()
        arguments = (theirs, [*others, self.socket], dataset, collate, owner.stop.leave_to_parent)
        self.process = FORK.Process(target=_serve, args=arguments, daemon=True)
        # at its end the program waits for its processes, and this one may hang
        self.end = Finalize(self, _end, (self.process, self.socket), exitpriority=0)
        with theirs:
            try:
                self.process.start()
            except OSError as error:
                self.end.cancel()
                raise InputError(
                    f"`workers`: a process can't be started ({error.strerror}). Give fewer, or 0 to do without."
                ) from error
        self.socket.settimeout(CHECK_SECONDS)

    def ask(self, keys: Sequence[Any]) -> None:
        """Ask for the batch of some keys of the dataset."""
        text = pickle.dumps(keys)
        with self._death_told():
            self.socket.sendall(LENGTH.pack(len(text)) + text)

    def batch(self, pin_memory: bool) -> Batch:
        """The next batch that it was asked for; an error in making it is raised here."""
        with self._death_told():
            length = bytearray(LENGTH.size)
            self._receive(memoryview(length))
            text = bytearray(*LENGTH.unpack(length))
            self._receive(memoryview(text))
            answer = pickle.loads(text)
            if isinstance(answer, Exception):
                raise answer
            batch = {}
            for key, value in answer.items():
                if isinstance(value, _Announced):
                    batch[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=pin_memory)
                    self._receive(_bytes(batch[key]))
                else:
                    batch[key] = value
        return batch

    def _receive(self, rest: memoryview) -> None:
        """Fill some memory."""
        patience = PATIENCE_SECONDS
        while rest:
            try:
                size = self.socket.recv_into(rest)
            except TimeoutError:
                if self.owner.world_size == 1:
                    self.owner.stop.raise_if_requested()
                elif self.owner.stop.number:
                    patience -= CHECK_SECONDS
                    if patience < 0:
                        raise LostError("a process of `workers` hangs.") from None
                continue
            if size == 0:
                raise EOFError
            rest = rest[size:]

    @contextlib.contextmanager
    def _death_told(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            self.process.join(END_SECONDS)
            code = self.process.exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else "ended"
            memory = " (is the machine out of memory?)" if code == -signal.SIGKILL else ""
            raise LostError(
                f"a process of `workers` {how}{memory}. With `workers` 0 the main process does its work."
            ) from None


def _end(process: BaseProcess, connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.join(END_SECONDS)


def _serve(
    connection: socket.socket,
    inherited: Sequence[socket.socket],
    dataset: Dataset,
    collate: Callable[[list[Any]], Batch],
    leave_signals: Callable[[], None],
) -> None:
    """Make batches until the owner closes the socket, or is gone."""
    leave_signals()
    for other in inherited:
        other.close()
    torch.set_num_threads(1)  # OpenMP's threads aren't there after a fork
    with contextlib.suppress(ConnectionError), connection.makefile("rb") as requests, ThreadPoolExecutor(1) as sender:
        sent: Future[None] | None = None
        while length := requests.read(LENGTH.size):
            keys = pickle.loads(requests.read(*LENGTH.unpack(length)))
            tensors = []
            try:
                batch = collate([dataset[key] for key in keys])
                tensors = [value.contiguous() for value in batch.values() if isinstance(value, Tensor)]
                text = pickle.dumps({key: _announced(value) for key, value in batch.items()})
            except Exception as error:
                tensors = []
                text = _pickled(error)
            if sent is not None:
                sent.result()
            # the owner may still take the batch of another, and the next one is made meanwhile
            sent = sender.submit(_send, connection, text, tensors)


def _send(connection: socket.socket, text: bytes, tensors: Sequence[Tensor]) -> None:
    connection.sendall(LENGTH.pack(len(text)) + text)
    for tensor in tensors:
        connection.sendall(_bytes(tensor))


def _announced(value: Any) -> Any:
    return _Announced(value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else value


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _pickled(error: Exception) -> bytes:
    """An error for the owner; where it can't be handed over, its traceback."""
    try:
        text = pickle.dumps(error)
        pickle.loads(text)
    except Exception:
        return pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
    return text

"""A network's forward and backward pass as a CUDA graph: recorded once, and launched as a whole in every step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import graph as autograd_graph

from networks.precision import Precision
from networks.registry import architecture_of
from utils.distributed.process import Process
from utils.system.errors import InputError, first_line


def obstacle(network: nn.Module, process: Process, accumulate: int, *, compiled: bool, recomputed: bool) -> str | None:
    """Why a run's steps can't be recorded, in words; None if they can.

    Args:
        accumulate: batches in a step. Several would write their gradients to the same memory.
        compiled, recomputed: whether the network's blocks are.
    """
    architecture = architecture_of(network)
    reasons = {
        f"{process.device} is no GPU": process.device.type != "cuda",
        "several processes would have to exchange gradients inside the recording": process.world_size > 1,
        "several batches make a step (`accumulate`)": accumulate > 1,
        "its blocks are compiled (`compile`)": compiled,
        "its blocks are recomputed (`activation_checkpointing`)": recomputed,
        f"{architecture.name} doesn't declare that it can be (“cuda_graph” in its class)": not architecture.declared(
            "cuda_graph", False
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def record(network: nn.Module, batch: Sequence[int], precision: Precision) -> nn.Module:
    """A network whose forward and backward pass in training is launched as a whole.

    Launching their thousand and more kernels one by one takes a CPU longer than a fast GPU needs to compute them.
    Batches of another shape, and validation, are computed as before. The recording keeps the memory of a step. Record
    before anything else, such as a loader, uses the GPU.

    Args:
        network: on its GPU; its parameters have to stay where they are.
        batch: the shape of the images of a step, (B, C, D, H, W).
        precision: in which it is trained.

    Raises:
        InputError: if that can't be recorded here.
    """
    recorded = _Recorded(network, batch).train()
    try:
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        image = torch.zeros(tuple(batch), device=precision.device)
        with torch.cuda.device_of(image), precision.autocast(cache=False):
            torch.cuda.make_graphed_callables(recorded.whole, (image,), allow_unused_input=True)
    except torch.OutOfMemoryError:
        raise InputError(
            f"{precision.device}: has no room for a step with {batch[0]} crops. Give a smaller `batch_size` (with "
            "`accumulate`) or `crops_per_scan`, or `activation_checkpointing`."
        ) from None
    except RuntimeError as error:
        raise InputError(
            f"{precision.device}: a training step can't be computed, or not be recorded as a CUDA graph "
            f"({first_line(error)}). If the same command with `nocuda_graph` trains, it is the recording."
        ) from error
    if hasattr(autograd_graph, "set_warn_on_accumulate_grad_stream_mismatch"):  # older ones don't warn
        # what is recorded was computed on a stream of its own, so that torch, rightly, lets two streams meet
        autograd_graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    with torch.no_grad():
        for buffer, before in buffers:  # running statistics, which the passes to warm up have changed
            buffer.copy_(before)
    return recorded


class _Recorded(nn.Module):
    def __init__(self, network: nn.Module, batch: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.whole = _Whole(network)
        self.batch = torch.Size(batch)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """What the network makes of (B, C, D, H, W)."""
        way = self.whole if image.shape == self.batch else self.network
        logits: Tensor | list[Tensor] = way(image)
        return logits


class _Whole(nn.Module):
    """What torch gives another forward pass, so that the network keeps its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        logits: Tensor | list[Tensor] = self.network(image)
        return logits

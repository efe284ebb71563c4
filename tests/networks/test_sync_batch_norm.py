"""Batch normalisation over two processes is that of one process which has both batches."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from networks.layers.sync_batch_norm import synchronise
from utils.distributed.process import Process
from utils.distributed.rendezvous import RankInfo


def batch() -> torch.Tensor:
    return 3 + 2 * torch.randn((4, 5, 3, 4, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def layers() -> nn.Sequential:
    torch.manual_seed(1)
    network = nn.Sequential(
        *(nn.Conv3d(5, 5, 1), nn.BatchNorm3d(5)),
        *(nn.Conv3d(5, 5, 1), nn.BatchNorm3d(5, affine=False)),
        *(nn.Conv3d(5, 5, 1), nn.BatchNorm3d(5, track_running_stats=False)),
        *(nn.Flatten(2), nn.Conv1d(5, 5, 1), nn.BatchNorm1d(5), nn.Conv1d(5, 1, 1)),
    )
    nn.init.uniform_(network[1].weight)  # type: ignore[arg-type]
    return network


def loss(output: torch.Tensor) -> torch.Tensor:
    return output.sin().mean()


def train(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network = layers()
    names = list(network.state_dict())
    norm = network[1]
    synchronise(network)
    assert list(network.state_dict()) == names
    assert network[1].weight is norm.weight
    output = network(batch()[rank::2])
    loss(output).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    torch.save([output, [g / 2 for g in gradients if g is not None], network.state_dict()], f"{folder}/{rank}.pt")
    network.eval()
    torch.save(network(batch()), f"{folder}/evaluated{rank}.pt")
    partly_fixed = nn.Conv3d(5, 1, 1)
    partly_fixed.weight.requires_grad_(False)
    loss(Process(torch.device("cpu"), RankInfo(rank, 2)).wrap(partly_fixed)(batch()[rank::2])).backward()
    assert partly_fixed.bias is not None
    assert partly_fixed.bias.grad is not None
    dist.destroy_process_group()


def test_output_gradients_and_running_statistics(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train, (str(tmp_path),), nprocs=2)
    network = layers()
    output = network(batch())
    loss(output).backward()
    state = network.state_dict()
    network.eval()
    for rank in range(2):
        ours, gradients, ours_state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(ours, output[rank::2].detach(), rtol=1e-5, atol=1e-6)
        expected = [parameter.grad for parameter in network.parameters()]
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours_state, state, rtol=1e-5, atol=1e-6)
        evaluated = torch.load(tmp_path / f"evaluated{rank}.pt", weights_only=True)
        torch.testing.assert_close(evaluated, network(batch()).detach(), rtol=1e-5, atol=1e-6)

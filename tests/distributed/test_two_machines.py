"""Two machines with a network between them: network namespaces of this one, each with its own torchrun."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY, TINY
from tests.training.test_training import lines

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclass
class Machine:
    """A network namespace with a single cable, to the other machine.

    Attributes:
        folder: where its programs run; the other machine doesn't use it.
    """

    name: str
    address: str
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, argv: Sequence[str], nodes: str, *options: str) -> "subprocess.Popen[str]":
        """Start torchrun with one process on this machine."""
        hosts_store = self.address == ADDRESSES[0]  # else torchrun asks a name server, and there is none
        command = [
            *("ip", "netns", "exec", self.name),
            *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc_per_node=1"),
            *("--rdzv_backend=c10d", f"--rdzv_endpoint={ADDRESSES[0]}:29400", "--rdzv_id=unetr"),
            *(
                f"--local-addr={self.address}",
                f"--rdzv-conf=last_call_timeout=1,is_host={hosts_store}",
                *options,
                *("-m", "tests.machine_of_two"),  # as a file it would find tests/networks in place of networks
                *argv,
            ),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "GLOO_SOCKET_IFNAME": "cable",
            "WEIGHTS": str(self.folder / "rank"),
            "OMP_NUM_THREADS": "1",
        }
        with open(self.folder / "log", "w") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
            )
        self.started.append(process)
        return process

    @property
    def text(self) -> str:
        """The output of its programs."""
        return (self.folder / "log").read_text()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    if shutil.which("ip") is None:
        pytest.skip("needs ip of iproute2, which .ci/run installs")
    names = [f"unetr-{letter}-{os.getpid()}" for letter in "ab"]
    made: list[Machine] = []
    try:
        try:
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("netns", "add", name)
                folder = tmp_path / name
                folder.mkdir()
                made.append(Machine(name, address, folder))
            ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
            for machine in made:
                ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "cable")
                ip("-n", machine.name, "link", "set", "cable", "up")
                ip("-n", machine.name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"may not make network namespaces here ({error.stderr.strip()})")
        yield made
    finally:
        for machine in made:
            for process in machine.started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            for pid in subprocess.run(
                ["ip", "netns", "pids", machine.name], check=False, capture_output=True, text=True
            ).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", machine.name)


def flags(phantoms: Path, *more: str) -> list[str]:
    common = ["--distributed", "--device=cpu", f"--data_dir={phantoms}", "--logdir=run", "--workers=0"]
    return [*common, "--save_checkpoint", "--noamp", *TINY, "--crops_per_scan=1", *more]


def test_they_finish_with_the_same_weights(machines: list[Machine], phantoms: Path) -> None:
    argv = flags(phantoms, "--max_epochs=3", "--val_every=3")
    started = [machine.start(argv, "2") for machine in machines]
    assert [process.wait(120) for process in started] == [0, 0], [machine.text for machine in machines]
    files = [path for machine in machines for path in sorted(machine.folder.glob("rank*.pt"))]
    assert sorted(path.name for path in files) == ["rank0.pt", "rank1.pt"]
    assert files[0].parent != files[1].parent
    ours, theirs = (torch.load(path, weights_only=True) for path in files)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    folders = [machine.folder / "runs" / "run" for machine in machines if (machine.folder / "runs").exists()]
    assert [path.parent.parent for path in folders] == [path.parent for path in files if path.name == "rank0.pt"]
    assert [line["epoch"] for line in lines(folders[0])] == [1, 2, 3]
    kept = torch.load(folders[0] / "model_final.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(ours[name], kept[name]) for name in ours)


def test_one_continues_alone_when_the_other_is_lost(machines: list[Machine], phantoms: Path) -> None:
    """The cable is cut. The first machine hosts the rendezvous, and both see the same disk."""
    shared = machines[0].folder / "runs"
    shared.mkdir()
    (machines[1].folder / "runs").symlink_to(shared)
    argv = flags(phantoms, "--max_epochs=60", "--val_every=60", "--save_every=1", "--resume", "--dist_timeout=4")
    first, second = (machine.start(argv, "1:2", "--max-restarts=2") for machine in machines)
    deadline = time.monotonic() + 60
    while machines[0].text.count(": loss") + machines[1].text.count(": loss") < 5:
        assert time.monotonic() < deadline, [machine.text for machine in machines]
        time.sleep(0.05)
    ip("-n", machines[0].name, "link", "set", "cable", "down")
    assert first.wait(120) == 0, [machine.text for machine in machines]
    text = "".join(machine.text for machine in machines)
    assert "2 processes" in text
    assert "1 process\n" in machines[0].text
    assert "(--dist_timeout)" in text
    assert [line["epoch"] for line in lines(shared / "run")] == list(range(1, 61))
    assert second.poll() is None or second.returncode != 0

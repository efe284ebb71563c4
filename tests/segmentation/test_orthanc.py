"""The script of docs/deploy.md, beside a real Orthanc."""

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.conftest import REPOSITORY
from tests.io.series import write_series
from tests.segmentation.conftest import load, scan_of

ORTHANC = shutil.which("Orthanc")
pytestmark = pytest.mark.skipif(ORTHANC is None, reason="no Orthanc in PATH (Debian's package orthanc)")
PATIENCE = 120.0  # seconds


def wait_for(found: Callable[[], Any]) -> Any:
    """The first answer that isn't empty."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := found()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return answer


@contextmanager
def running(command: list[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A program that doesn't outlive the block, whatever happens there, and that Ctrl-C reaches."""
    # shells let programs in the background ignore it, and what these start inherits that
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, text=True, preexec_fn=heed, **options) as program:
        try:
            yield program
        finally:
            program.kill()


class Archive:
    """An Orthanc on this machine."""

    def __init__(self, folder: Path, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.settings = folder / "orthanc.json"
        content = {"Name": "test", "HttpPort": port, "RemoteAccessAllowed": False, "DicomServerEnabled": False,
                   "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
                   "StableAge": 1}  # fmt: skip
        self.settings.write_text(json.dumps(content))

    def ask(self, path: str, content: bytes | None = None) -> Any:
        with urllib.request.urlopen(urllib.request.Request(self.address + path, content), timeout=60) as answer:
            return answer.read()

    def is_up(self) -> bool:
        try:
            return bool(self.ask("/system"))
        except urllib.error.URLError:
            return False

    def instances(self, modality: str) -> list[pydicom.Dataset]:
        """All files of a modality."""
        series = [json.loads(self.ask(f"/series/{one}")) for one in json.loads(self.ask("/series"))]
        found = [one for one in series if one["MainDicomTags"]["Modality"] == modality]
        files = [self.ask(f"/instances/{instance}/file") for one in found for instance in one["Instances"]]
        return [pydicom.dcmread(io.BytesIO(content)) for content in files]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Archive(tmp_path, port)
    with running([str(ORTHANC), str(made.settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        wait_for(made.is_up)
        yield made


def test_a_series_that_arrives_gets_its_mask(archive: Archive, trained: Path, phantoms: Path, tmp_path: Path) -> None:
    image = load(scan_of(phantoms))
    voxels = np.asarray(image.dataobj).astype(np.int16)
    slices = write_series(tmp_path / "scan", voxels, image.affine)
    other = write_series(tmp_path / "other", voxels[:, :, :3], image.affine, Modality="MR")
    broken = write_series(tmp_path / "broken", voxels[:, :, :3], image.affine, ImageOrientationPatient=None)
    for dataset in (*broken, *other, *slices):
        archive.ask("/instances", Path(dataset.filename).read_bytes())

    command = [sys.executable, str(REPOSITORY / "docs" / "orthanc_segment.py"), archive.address]
    command += [str(trained / "model.pt"), f"--state={tmp_path / 'state.txt'}"]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as script:
        (contours,) = wait_for(lambda: archive.instances("RTSTRUCT"))
        (seg,) = wait_for(lambda: archive.instances("SEG"))
        # what it stored is a series too, which has a line of the list of changes and no mask
        wait_for(lambda: int((tmp_path / "state.txt").read_text()) >= json.loads(archive.ask("/changes?last"))["Last"])
        script.send_signal(signal.SIGINT)
        out, err = script.communicate(timeout=PATIENCE)
    series = slices[0].SeriesInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series
    assert seg.StudyInstanceUID == contours.StudyInstanceUID == slices[0].StudyInstanceUID
    names = [str(one.SegmentLabel) for one in seg.SegmentSequence]
    assert [str(one.ROIName) for one in contours.StructureSetROISequence] == names
    assert out.startswith(f"{series}: {', '.join(names)} found")
    assert out.count("\n") == 1
    assert [line for line in err.splitlines() if line.startswith("error: series ")] == [err.splitlines()[0]]
    assert err.splitlines()[1:] == ["stopped by the keyboard"]
    assert script.returncode == 128 + signal.SIGINT

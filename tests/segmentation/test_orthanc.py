"""The script of docs/deploy.md, beside a real Orthanc."""

import http.server
import io
import json
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
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


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, which doesn't wait between two tries."""
    module: Any = runpy.run_path(str(REPOSITORY / "docs" / "orthanc_segment.py"))
    monkeypatch.setitem(module["Orthanc"]._answer.__globals__, "WAIT", 0)
    return module


@contextmanager
def answering(*answers: int) -> Iterator[str]:
    """The address of a server that gives one status after the other, the last one again and again."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.end_headers()
            self.wfile.write(b"content")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("answers", "content", "said"),
    [
        ((503, 503, 200), b"content", 2), ((500, 200), b"content", 1), ((503,) * 10 + (200,), b"content", 10),
        ((404,), None, 0), ((500,), None, 5),
    ],
)  # fmt: skip
def test_requests_are_repeated_where_that_helps(
    script: Any, answers: tuple[int, ...], content: bytes | None, said: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(*answers) as address:
        if content is None:
            with pytest.raises(urllib.error.HTTPError):
                script["Orthanc"](address).get("/changes")
        else:
            assert script["Orthanc"](address).get("/changes") == content
    assert capsys.readouterr().err.count("Tried again in 0 seconds.") == said


def test_whatever_a_series_brings_about_costs_a_line_and_a_full_disk_the_program(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def get(self, path: str) -> bytes:
            raise self.error

    script["handle"](Failing(RuntimeError("odd")), "one", None, "CT")
    assert capsys.readouterr().err == "error: series one: RuntimeError: odd\n"
    with pytest.raises(OSError, match="No space"):
        script["handle"](Failing(OSError(28, "No space left on device")), "one", None, "CT")


@pytest.mark.skipif(ORTHANC is None, reason="no Orthanc in PATH (Debian's package orthanc)")
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

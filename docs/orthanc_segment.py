"""Segment each new series of an Orthanc, and store the mask there as DICOM SEG and RTSTRUCT (docs/deploy.md).

python docs/orthanc_segment.py http://localhost:8042 runs/NAME/model.pt

It follows Orthanc's list of changes. What it has done is kept in a file, so that it goes on there after a restart. A
user and a password for Orthanc are read from ORTHANC_USER and ORTHANC_PASSWORD.
"""

import argparse
import base64
import http.client
import io
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.segmentation import Segmenter
from utils.system.errors import InputError, first_line, one_line_errors
from utils.system.files import atomic_write

WAIT = 10  # seconds between two tries
TRIES = 6  # of a request that Orthanc answers with an error of its own
AWAY = (401, 502, 503, 504)  # the password is wrong, or Orthanc is down behind a proxy: waiting helps


class Orthanc:
    """The few calls of Orthanc's REST API that are needed. Each waits for an Orthanc that can't be reached.

    Raises:
        HTTPError: if Orthanc refuses a request, or has answered it with an error of its own :data:`TRIES` times.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        login = f"{os.environ.get('ORTHANC_USER', '')}:{os.environ.get('ORTHANC_PASSWORD', '')}"
        self.headers = {} if login == ":" else {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}

    def get(self, path: str) -> bytes:
        """What Orthanc has at a path."""
        return self._answer(urllib.request.Request(self.address + path, headers=self.headers))

    def post(self, path: str, content: bytes) -> bytes:
        """Send a file."""
        return self._answer(urllib.request.Request(self.address + path, content, self.headers))

    def _answer(self, request: urllib.request.Request) -> bytes:
        tries = 0
        while True:
            try:
                with urllib.request.urlopen(request, timeout=600) as answer:
                    content: bytes = answer.read()
                    return content
            except urllib.error.HTTPError as error:
                tries += error.code not in AWAY
                if error.code not in AWAY and (error.code < 500 or tries == TRIES):
                    raise
                reason: Exception = error
            except (OSError, http.client.HTTPException) as error:
                reason = error
            print(f"error: {self.address}: {reason}. Tried again in {WAIT} seconds.", file=sys.stderr, flush=True)
            time.sleep(WAIT)


def segment_series(orthanc: Orthanc, series: str, segmenter: Segmenter) -> str:
    """Segment a series, store SEG and RTSTRUCT, and return a line about it."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "series")
        with zipfile.ZipFile(io.BytesIO(orthanc.get(f"/series/{series}/archive"))) as archive:
            archive.extractall(files)
        found = segmenter(files, name="its files")
        results = [Path(folder, "seg.dcm"), Path(folder, "rtstruct.dcm")]
        found.write_dicom_seg(results[0])
        found.write_rtstruct(results[1])
        for path in results:
            orthanc.post("/instances", path.read_bytes())
    organs = [name for value, name in found.labels.items() if (found.array == value).any()]
    return f"{', '.join(organs) or 'no organ'} found" + "".join(f"; {remark}" for remark in found.remarks)


def last_change(state: Path) -> int:
    """The number of the last change that was handled; 0 if there was none.

    Raises:
        InputError: if the file can't be read, or holds something else.
    """
    try:
        text = state.read_text(errors="replace") if state.exists() else "0"
    except OSError as error:
        raise InputError(f"--state {state}: can't be read ({error.strerror}). Give another file.") from error
    if not text.strip().isdecimal():
        raise InputError(f"--state {state}: holds no number. Remove it to begin anew, or give another.")
    return int(text)


def require_same_archive(orthanc: Orthanc, last: int, state: Path) -> None:
    """Check that an address is Orthanc's, and has the change that was handled last.

    Raises:
        InputError: if it isn't, or hasn't.
    """
    try:
        newest = int(json.loads(orthanc.get("/changes?last"))["Last"])
    except (urllib.error.HTTPError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{orthanc.address}: isn't the address of Orthanc's REST API. Give another.") from error
    if newest < last:
        raise InputError(
            f"--state {state}: has change {last}, and {orthanc.address} has {newest} changes: it is of another "
            "archive. Remove it to begin anew, or give another."
        )


def follow(orthanc: Orthanc, segmenter: Segmenter, modality: str, state: Path) -> None:
    """Segment series after series, as they are complete."""
    last = last_change(state)
    require_same_archive(orthanc, last, state)
    while True:
        answer: dict[str, Any] = json.loads(orthanc.get(f"/changes?since={last}&limit=100"))
        for change in answer["Changes"]:
            if change["ChangeType"] == "StableSeries":  # none of its files came for a minute (Orthanc's StableAge)
                handle(orthanc, change["ID"], segmenter, modality)
            last = change["Seq"]
            with atomic_write(state) as temporary:
                temporary.write_text(str(last))
        if answer["Done"]:
            time.sleep(1)


def handle(orthanc: Orthanc, series: str, segmenter: Segmenter, modality: str) -> None:
    """Segment a series if it is of the modality; one that can't be segmented, or was deleted, costs a line."""
    try:
        tags = json.loads(orthanc.get(f"/series/{series}"))["MainDicomTags"]
        if tags.get("Modality") == modality:
            print(f"{tags['SeriesInstanceUID']}: {segment_series(orthanc, series, segmenter)}", flush=True)
    except urllib.error.HTTPError as error:  # 404: it was deleted
        print(f"error: series {series}: Orthanc answered {error}", file=sys.stderr, flush=True)
    except OSError:
        raise  # a full disk is no fault of a series
    except Exception as error:  # whatever its files bring about; the next series waits
        what = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        print(f"error: series {series}: {what}{first_line(error)}", file=sys.stderr, flush=True)


def main() -> None:
    """Read the flags, load the networks, follow the archive."""
    parser = argparse.ArgumentParser(description="Segment each new series of an Orthanc.")
    parser.add_argument("address", help="of Orthanc's REST API, such as http://localhost:8042")
    parser.add_argument("weights", nargs="+", help="checkpoints, whose probabilities are averaged")
    parser.add_argument("--modality", default="CT", help="of the series that are segmented")
    parser.add_argument("--state", type=Path, default=Path("orthanc_state.txt"), help="file that keeps what is done")
    args = parser.parse_args()
    if not args.address.startswith(("http://", "https://")):
        parser.error(f"{args.address}: is no address. Give one such as http://localhost:8042.")
    with one_line_errors():
        follow(Orthanc(args.address), Segmenter(args.weights), args.modality, args.state)


if __name__ == "__main__":
    main()

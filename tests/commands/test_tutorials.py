"""The notebooks run from their first cell to their last, and what they show holds."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
NAMES = ("tutorial.ipynb", "tutorial_lightning.ipynb")
SECONDS_PER_CELL = 900  # training takes half a minute on a machine that has nothing else to do
# a test trains for about half as long as a reader, to a Dice of about half of that
FEWER_EPOCHS = {
    "--max_epochs 30 --val_every 6": "--max_epochs 15 --val_every 5",
    "epochs = 25\n": "epochs = 15\n",
    "check_val_every_n_epoch=5": "check_val_every_n_epoch=3",
}
DICE = r"(\d\.\d+)"


class ThisPython(KernelSpecManager):
    """Kernels of the Python that runs the tests, whatever is registered on the machine."""

    def get_kernel_spec(self, kernel_name: str) -> Any:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return self.kernel_spec_class(argv=argv, display_name=kernel_name, language="python", resource_dir="")


def _execute(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All that a notebook prints; it works in a folder of its own below ``folder``."""
    for variable in ("TMPDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(DOCS / name, as_version=4)
    for cell in book.cells:
        for all_epochs, fewer in FEWER_EPOCHS.items():
            cell.source = cell.source.replace(all_epochs, fewer)
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython())
    # a cell that raises, or a program that fails in one, raises here
    resources = {"metadata": {"path": str(DOCS)}}
    NotebookClient(book, km=manager, timeout=SECONDS_PER_CELL, resources=resources).execute()
    assert not [cell.source for cell in book.cells if cell.cell_type == "code" and cell.execution_count is None]
    return _printed(book)


def _outputs(book: Any) -> list[Mapping[str, Any]]:
    return [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]


def _printed(book: Any) -> str:
    return "".join(output["text"] for output in _outputs(book) if output["output_type"] == "stream")


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} is not in:\n{text}"
    return float(found[1])


def _check_tutorial(printed: str) -> None:
    # without training both are below 0.05
    least = 0.4 if "epoch 30/30" in printed else 0.15
    assert _number(f"mean Dice on the network's grid: {DICE}", printed) > least
    assert _number(f"mean Dice on the scan's own grid: {DICE}", printed) > least
    assert "same shape: True" in printed
    assert "same affine: True" in printed
    by_hand = _number(f"Dice of the liver by hand: {DICE}", printed)
    assert by_hand > 0.8
    assert by_hand == _number(f"by hand: .*, in the file: {DICE}", printed)
    liver = re.search(r"patient_a, volumes in ml.*?\nliver +(\S+) +(\S+)\n", printed, re.DOTALL)
    assert liver is not None
    assert float(liver[1]) == pytest.approx(float(liver[2]), rel=0.2)
    assert f"liver: {liver[1]} ml" in printed
    assert "the mask of test.py: True" in printed
    assert "the same mask from an array: True" in printed


def _check_lightning(printed: str) -> None:
    dice = [float(value) for value in re.findall(f"validation Dice {DICE}", printed)]
    assert len(dice) == 5
    whole = "checkpoint after epoch 25" in printed
    assert dice[-1] > (0.2 if whole else 0.1)  # without training it is below 0.05
    assert dice[-1] > dice[0]
    # the checkpoint that Lightning's weights went into is read without flags, and gives the same number
    assert f"lightning.pt (checkpoint after epoch {25 if whole else 15})" in printed
    assert "the same: True" in printed


CHECKS = {"tutorial.ipynb": _check_tutorial, "tutorial_lightning.ipynb": _check_lightning}


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_what_it_shows_holds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(DOCS.rglob("*"))
    CHECKS[name](_execute(name, tmp_path, monkeypatch))
    assert sorted(DOCS.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_those_of_a_whole_run(name: str) -> None:
    book = nbformat.read(DOCS / name, as_version=4)
    nbformat.validate(book)
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in _outputs(book) if output["output_type"] == "error"]
    CHECKS[name](_printed(book))


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_small_and_tell_of_no_machine_or_warning(name: str) -> None:
    assert (DOCS / name).stat().st_size < 1_500_000
    book = nbformat.read(DOCS / name, as_version=4)
    assert not [output for output in _outputs(book) if output.get("name") == "stderr"]
    texts = [output.get("text") or output["data"].get("text/plain", "") for output in _outputs(book)]
    for text in texts:
        assert not re.search(r"/(work|home|root|tmp|usr)\b|[Ww]arning", text)


def test_tutorial_has_pictures() -> None:
    book = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    pictures = [output for output in _outputs(book) if "image/png" in output.get("data", {})]
    assert len(pictures) == 5  # a phantom, the curves, the validation, a labelled scan and a new one

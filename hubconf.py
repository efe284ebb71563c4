"""What ``torch.hub.load("PATH", NAME, source="local")`` gives: ``segmenter`` and ``unetr``.

A program that loads them may have a package called ``utils`` or ``networks`` of its own. Ours are imported under their
names for the time of the call alone, and its own stay what they are.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

dependencies = ["torch", "monai", "nibabel", "numpy", "scipy"]
OURS = ("utils", "networks", "optimizers")
LATER = ["utils.io.simpleitk_formats", "utils.io.dicom_labels", "utils.io.dicom_series"]
if importlib.util.find_spec("numba") is not None:
    LATER.append("networks.layers.norm_kernels")
# ours, between two calls; torch.hub imports this file anew at each
_KEPT = f"unetr_hub:{Path(__file__).parent}"
_modules: dict[str, Any] = vars(sys.modules.setdefault(_KEPT, ModuleType(_KEPT))).setdefault("modules", {})


def segmenter(weights: Any, **options: Any) -> Any:
    """A :class:`utils.segmentation.Segmenter`: ``torch.hub.load(PATH, "segmenter", weights="model.pt")``."""
    with _our_modules():
        return importlib.import_module("utils.segmentation").Segmenter(weights, **options)


def unetr(**settings: Any) -> Any:
    """The bare network with fresh weights, by the fields of :class:`networks.unetr.UNETRConfig`."""
    with _our_modules():
        return importlib.import_module("networks").build_network("unetr", **settings)


@contextmanager
def _our_modules() -> Iterator[None]:
    """Let ``utils`` and the others mean ours, and leave the program's own as they were.

    What ours import later, when they are called (:data:`LATER`), is imported here and stays, under names that hardly
    anyone else has.
    """
    theirs = _take_out()
    sys.modules.update(_modules)
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        yield
        for name in LATER:
            importlib.import_module(name)
    finally:
        sys.path.remove(str(Path(__file__).parent))
        _modules.update(_take_out())
        sys.modules.update(theirs)
        sys.modules.update({name: _modules[name] for name in LATER if name in _modules})


def _take_out() -> dict[str, Any]:
    """Remove all modules of these names from those that are imported."""
    names = [name for name in sys.modules if name.split(".")[0] in OURS]
    return {name: sys.modules.pop(name) for name in names}

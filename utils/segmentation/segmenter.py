"""Trained networks for other programs: an object that segments arrays, images and files."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import nibabel as nib
import numpy as np

from utils.checkpoints.load import LoadSettings, load_ensemble
from utils.checkpoints.postprocessing import Postprocessing, common
from utils.checkpoints.read import PATH_FLAGS
from utils.data.data_list import unlisted
from utils.data.preprocessing import OnNetworkGrid, scan_remarks
from utils.data.regions import scored_structures
from utils.distributed.launch import choose_device
from utils.distributed.process import Process
from utils.evaluation.measurements import measure
from utils.inference.engines import ENGINES, place_networks
from utils.inference.scan_grid import class_on_scan_grid
from utils.inference.sliding_window import OVERLAP, Ensemble, Predictor
from utils.io.dicom_rtstruct import write_structure_set
from utils.io.dicom_seg import write_segmentation
from utils.io.find_scans import find_scans
from utils.io.geometry import LPS_TO_RAS
from utils.io.nifti import volume_from_nibabel
from utils.io.reader import content_faults, read_scan
from utils.io.scan import Volume, volume_from_array
from utils.segmentation.masks import label_rgb, mask_image
from utils.segmentation.volumes import make_mask, on_network_grid, predict_probabilities
from utils.system.errors import InputError, first_line, is_out_of_memory, no_memory, size_text

GIVEN = Path("the scan")  # what messages call one that is from no file
Progress = Callable[[int, int], object]  # windows that are done, and all


@dataclass(frozen=True)
class Segmented:
    """What became of a scan.

    Attributes:
        mask: labels on the scan's own grid: an array (X, Y, Z) for an array, an image of SimpleITK for one of these,
            and else an image of nibabel.
        array: the same as an array.
        labels: names by value, without the background.
        probabilities: (channels, X, Y, Z) in float32 on the scan's own grid, where asked for.
        measurements: by organ or region its ``volume_ml``, ``mean`` and ``std`` and so on, as ``test.py`` writes them,
            where asked for.
        remarks: what a person should know about the scan, a sentence each.
        dicom_headers: those of the series' files, as pydicom's datasets; empty for a scan of another format.
    """

    mask: Any
    array: np.ndarray
    labels: Mapping[int, str]
    probabilities: np.ndarray | None = None
    measurements: dict[str, dict[str, Any]] | None = None
    remarks: list[str] = field(default_factory=list)
    dicom_headers: Sequence[Any] = ()

    def write_dicom_seg(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as a DICOM SEG that refers to the scan's series.

        Raises:
            InputError: if the scan was no DICOM series, or its headers don't allow a SEG.
            WriteError: if the file can't be written.
        """
        write_segmentation(Path(path), self.array, self.labels, self._headers())

    def write_rtstruct(self, path: str | os.PathLike[str]) -> None:
        """Write the mask's contours as a DICOM RTSTRUCT that refers to the scan's series.

        Raises:
            InputError: if the scan was no DICOM series, or its headers don't allow contours.
            WriteError: if the file can't be written.
        """
        write_structure_set(Path(path), self.array, self.labels, label_rgb(self.labels), self._headers())

    def _headers(self) -> Sequence[Any]:
        if not self.dicom_headers:
            raise InputError("the scan was no DICOM series, so DICOM can't refer to it. Give a series' folder.")
        return self.dicom_headers


@dataclass(frozen=True)
class _Read:
    """A scan that was read and brought to the network's grid.

    Attributes:
        source: what messages call it.
        given: what the caller gave.
    """

    source: Path
    given: Any
    volume: Volume
    grid: OnNetworkGrid


class Segmenter:
    """Networks that are loaded once and segment scan after scan, as ``test.py`` does, with the same masks.

    ``Segmenter("runs/NAME/model.pt")("scan.nii.gz").mask`` is an image of nibabel. Calls from several threads are safe:
    they read and resample at once, and take turns with the network. Nothing is written or printed.

    Args:
        weights: a checkpoint, or several, whose probabilities are averaged.
        device: ``cpu``, ``cuda`` or ``cuda:1``; by default a GPU where there is one.
        tta: whether windows are also predicted mirrored, as crops were in training.
        postprocessing: whether what a cross-validation chose is done.
        overlap: the part of a window that its neighbour covers too.
        amp: whether formats shorter than float32 are allowed.
        engine: ``torch``, ``openvino``, or ``auto``, the faster one here.
        network_file: the Python file of a network of one's own. It is code, and is run.

    Attributes:
        labels: names by value, without the background.
        spacing: size of the network's voxels in mm.
        in_channels: channels that a scan must have.

    Raises:
        InputError: if a file can't be read, the networks don't agree, or there is no such device.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        device: str | None = None,
        tta: bool = False,
        postprocessing: bool = True,
        overlap: float = OVERLAP,
        amp: bool = True,
        engine: str = "auto",
        network_file: str | os.PathLike[str] | None = None,
    ) -> None:
        paths = [Path(weights)] if isinstance(weights, str | os.PathLike) else [Path(one) for one in weights]
        if not paths:
            raise InputError("`weights`: names no file. Give one or more.")
        if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
            raise InputError(f"`overlap` must be a number of at least 0 and below 1, not {overlap!r}.")
        if engine not in ENGINES:
            raise InputError(f"`engine` must be one of {', '.join(ENGINES)}, not {engine!r}.")
        given = {} if network_file is None else {"model_name": str(network_file)}
        with _spelled({"`model_name`": "`network_file`", PATH_FLAGS: ""}):
            members, _ = load_ensemble(LoadSettings(format="any", given=given, same_flips=tta), paths, unlisted(None))
        description = members[0][1]
        found = common([one.from_folds for _, one in members], [one.flips for _, one in members])
        chosen = found if postprocessing else Postprocessing()
        self._postprocessing = replace(chosen, mirrored=tta or chosen.mirrored)
        mirrorings = description.mirrorings(self._postprocessing.mirrored)
        self._output, self._settings = description.output, description.preprocessing
        self._process = Process(choose_device(device))
        networks, _ = place_networks(engine, members, amp, self._process, _silent)
        self._ensemble = Ensemble(networks, mirrorings)
        self._predictor = Predictor(
            self._settings.roi, self._settings.padding, overlap, 1, self._process.device, _silent, self._output
        )
        self._turn = Lock()
        self._names = description.labels
        self._structures = scored_structures(description.labels, description.regions)
        self.labels = dict(enumerate(description.labels[1:], 1))
        self.spacing = self._settings.spacing
        self.in_channels: int = description.config.in_channels

    def __call__(
        self,
        scan: Any,
        affine: np.ndarray | None = None,
        *,
        probabilities: bool = False,
        measurements: bool = False,
        progress: Progress | None = None,
        name: str | None = None,
    ) -> Segmented:
        """Segment a scan.

        Args:
            scan: a path (of a file, or of a folder with one DICOM series), an image of nibabel or SimpleITK, or an
                array (X, Y, Z), or (C, X, Y, Z) with several channels; a tuple is an array with its affine.
            affine: of an array: (4, 4), from voxel indices to mm; x runs to the Right, y to Anterior, z to Superior.
            probabilities: whether to give these too.
            measurements: whether to measure the organs.
            progress: called with the number of windows that are done, and of all. If a GPU has no memory for them, they
                are done again, and the number falls.
            name: what errors and remarks call the scan, in the place of its path.

        Raises:
            InputError: if the scan can't be used.
        """
        place = str(Path(scan)) if isinstance(scan, str | os.PathLike) else str(GIVEN)
        with _spelled({}, place, name):
            found = self._segmented(self._read(scan, affine), probabilities, measurements, progress)
        found.remarks[:] = [_renamed(remark, place, name) for remark in found.remarks]
        return found

    def batch(
        self, scans: Iterable[Any], *, probabilities: bool = False, measurements: bool = False
    ) -> Iterator[Segmented]:
        """Segment scan after scan; while one is predicted, the next is read.

        Args:
            scans: each as for a call.

        Raises:
            InputError: at the first scan that can't be used.
        """
        if isinstance(scans, str | os.PathLike | np.ndarray | nib.spatialimages.SpatialImage):
            raise InputError(f"`scans`: is one {type(scans).__name__}. Give a list of scans.")
        return self._batch(scans, probabilities, measurements)

    def _batch(self, scans: Iterable[Any], probabilities: bool, measurements: bool) -> Iterator[Segmented]:
        with ThreadPoolExecutor(1) as reader, _spelled({}):
            waiting = None
            for scan in scans:
                following = reader.submit(self._read, scan, None)
                if waiting is not None:
                    yield self._segmented(waiting.result(), probabilities, measurements, None)
                waiting = following
            if waiting is not None:
                yield self._segmented(waiting.result(), probabilities, measurements, None)

    def _read(self, scan: Any, affine: np.ndarray | None) -> _Read:
        if isinstance(scan, tuple) and len(scan) == 2 and affine is None:
            scan, affine = scan
        source = Path(scan) if isinstance(scan, str | os.PathLike) else GIVEN
        knows_its_own = isinstance(scan, str | os.PathLike | nib.spatialimages.SpatialImage)
        if affine is not None and (knows_its_own or hasattr(scan, "GetDirection")):
            raise InputError(f"`affine`: is for arrays, and {source} knows its own. Leave it out.")
        if isinstance(scan, np.ndarray):
            volume = _volume_of_array(scan, affine)
        elif isinstance(scan, str | os.PathLike):
            found = find_scans([str(scan)], self.in_channels)
            if found.faults or len(found.scans) != 1:
                fault = next(
                    iter(found.faults.values()), f"{source}: holds {len(found.scans)} scans. Give one of them."
                )
                raise InputError(fault)
            volume = read_scan(found.scans[0], self.in_channels)
            volume.remarks.extend(found.remarks)
        elif isinstance(scan, nib.spatialimages.SpatialImage):
            volume = volume_from_nibabel(scan, GIVEN)
        elif hasattr(scan, "GetDirection"):
            volume = _volume_of_itk(scan)
        else:
            raise InputError(
                f"the scan is a {type(scan).__name__}. Give a path, an array of NumPy with its affine, or an image of "
                "nibabel or SimpleITK."
            )
        if faults := content_faults(source, volume):
            raise InputError(faults[0])
        if len(volume.voxels) != self.in_channels:
            order = " An array with channels is (C, X, Y, Z)." if isinstance(scan, np.ndarray) else ""
            raise InputError(
                f"{source}: has {len(volume.voxels)} channels, and the network takes {self.in_channels}.{order}"
            )
        volumes = self._ensemble.volumes(self.in_channels, len(self._output.names(self._names)))
        grid = on_network_grid(source, volume, None, self._settings, volumes)
        volume.remarks.extend(scan_remarks(source, volume.voxels, volume.affine, self._settings))
        return _Read(source, scan, volume, grid)

    def _segmented(self, read: _Read, probabilities: bool, measurements: bool, progress: Progress | None) -> Segmented:
        volume, grid = read.volume, read.grid
        total = len(self._predictor.windows(grid.image.shape[1:])) * self._ensemble.passes
        done = 0

        def count(windows: int) -> None:
            nonlocal done
            done += windows
            if progress is not None:
                progress(done, total)

        with self._turn:
            found, _ = predict_probabilities(
                read.source, grid.image, self._ensemble, self._predictor, self._structures, count
            )
        on_scan = None
        try:
            mask = make_mask(found, grid, volume, self._output, self._postprocessing, ())
            if probabilities:
                on_scan = np.empty((len(found), *volume.shape), np.float32)
                for number, one in enumerate(found):
                    outside = self._output.outside(number)
                    on_scan[number] = class_on_scan_grid(one, grid.affine, volume.affine, volume.shape, outside)
            measured = measure(mask, volume, self._structures) if measurements else None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(no_memory(read.source)) from error
        image: Any = mask
        if hasattr(read.given, "GetDirection"):
            image = _itk_mask(mask, read.given)
        elif not isinstance(read.given, np.ndarray):
            image = mask_image(mask, volume, self.labels)
        return Segmented(image, mask, self.labels, on_scan, measured, list(volume.remarks), volume.datasets)


def _volume_of_array(voxels: np.ndarray, affine: np.ndarray | None) -> Volume:
    if affine is None:
        raise InputError("`affine`: an array needs one, (4, 4), from voxel indices to mm.")
    try:
        affine = np.array(affine, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"`affine`: isn't made of numbers ({first_line(error)}). Give (4, 4).") from error
    if np.shape(affine) != (4, 4):
        raise InputError(f"`affine`: must be (4, 4), not {size_text(np.shape(affine)) or 'a number'}.")
    if voxels.ndim not in (3, 4) or voxels.size == 0:
        shape = f"the shape {size_text(voxels.shape)}" if voxels.ndim else "no dimensions"
        raise InputError(f"the scan has {shape}. Give (X, Y, Z), or (C, X, Y, Z) with several channels.")
    channels_last = np.moveaxis(voxels, 0, -1) if voxels.ndim == 4 else voxels
    return volume_from_array(GIVEN, channels_last, affine)


def _volume_of_itk(image: Any) -> Volume:
    import SimpleITK  # the caller has it

    if image.GetDimension() != 3:
        raise InputError(f"the scan has {image.GetDimension()} dimensions. Give a volume.")
    if image.GetPixelIDTypeAsString().startswith("label of"):  # taking its voxels would end the process
        raise InputError("the scan is a label map, not an image. Give the image.")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = np.moveaxis(SimpleITK.GetArrayFromImage(image), (0, 2), (2, 0))  # (Z, Y, X[, C]) -> (X, Y, Z[, C])
    return volume_from_array(GIVEN, voxels, LPS_TO_RAS @ affine)


def _itk_mask(mask: np.ndarray, scan: Any) -> Any:
    """The mask (X, Y, Z) as an image of SimpleITK on the scan's grid."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(mask.transpose(2, 1, 0)))  # (X, Y, Z) -> (Z, Y, X)
    image.CopyInformation(scan)
    return image


@contextmanager
def _spelled(names: Mapping[str, str], place: str = "", called: str | None = None) -> Iterator[None]:
    """Put a caller's words into errors, in the place of those of the command line.

    Args:
        place: the path of a scan, which becomes ``called`` unless that is None.
    """
    try:
        yield
    except InputError as error:
        text = str(error).replace("`input` ", "").replace("`input`", "its path")
        text = text.replace("that the settings describe", "that was asked for")
        for word, name in {"`noamp`": "`amp` False", **names}.items():
            text = text.replace(word, name)
        raise InputError(_renamed(text, place, called)) from error


def _renamed(text: str, place: str, called: str | None) -> str:
    """A message in which a path is called otherwise, where it stands alone or before what lies in it."""
    if called is None:
        return text
    before = r"(?<![\w./-])" if os.sep in place else "^"  # further on, a name without folders may be a mere word
    return re.sub(rf"{before}{re.escape(place)}(?=[:,/ ]|$)", lambda _: called, text)


def _silent(_: str) -> None:
    """What predictor and engines say is for a shell."""

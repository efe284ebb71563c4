"""The HTML report over all segmented scans, with the scans to look at first on top."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from utils.evaluation.metrics import nan_mean
from utils.evaluation.pages import box_plot, data_uri, decimals, label_axis, render, scans_in_words, svg_uri
from utils.evaluation.tables import NOT_DRAWN, volume_text
from utils.evaluation.view import view_address, write_viewer
from utils.system.files import write_text

TEMPLATE = Path(__file__).with_suffix(".html.j2")

# each score's title above its column, and its decimals
SCORES = {
    "dice": ("Dice, scan's own grid", 3),
    "dice_network_grid": ("Dice, network's grid", 3),
    "hd95_mm": ("HD95 (mm), scan's own grid", 1),
    "nsd": ("NSD, scan's own grid", 3),
    "predicted_dice": ("Dice, predicted", 2),
}
# with fewer scans, an unusual one has too large a part in the median that it is compared with
FEWEST_SCANS = 4
# from this many spreads on, a volume is far from the median: Iglewicz and Hoaglin, How to detect and handle outliers
# (1993)
FAR = 3.5


def write_report(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Path],
    facts: Mapping[str, str],
    views: Mapping[str, Path] | None = None,
) -> None:
    """Write an HTML page that holds all it needs: it opens from the disk and loads nothing from the network.

    Beside it lies ``view.html``, with the scans slice by slice, to which it links.

    Args:
        records: one for each scan: ``scan`` (its name), ``source``, ``shape`` (voxels), ``spacing_mm``, ``remarks`` and
            ``organs``. The latter has, by organ, the values of :func:`utils.evaluation.measurements.measure`, and for
            a scan with a label ``dice``, ``hd95_mm``, ``nsd`` or ``dice_network_grid``. A score is None if the organ
            is in neither label nor prediction, or the distance is undefined; or nobody drew the organ, which
            ``annotated`` then denies. ``predicted_dice`` is there where a cross-validation tells.
        pictures: each scan's PNG file, by name.
        facts: lines for the top of the page, by name.
        views: scripts of :func:`utils.evaluation.view.write_view`, by scan; a scan without its file gets no link.

    Raises:
        FileNotFoundError: if a picture is missing.
        WriteError: if the page can't be written.
    """
    organs = list(records[0]["organs"])
    scores = [score for score in SCORES if any(_has_score(record, score) for record in records)]
    plots = {"Volume by organ": _volume_plot(records, organs)}
    if "dice" in scores:
        plots = {"Dice by organ, on the scan's own grid": _dice_plot(records, organs), **plots}
    ranked = worst_first(records)
    files = views or {}
    shown = {name: files[name] for record, _ in ranked if (name := record["scan"]) in files and files[name].is_file()}
    if shown:
        write_viewer(path.parent, shown)
    content = render(
        TEMPLATE,
        facts=facts,
        scan_count=scans_in_words(len(records)),
        labelled_count=scans_in_words(sum(map(_is_labelled, records))),
        summary_heads=[SCORES[score][0] for score in scores],
        summary=[_summary_row(records, organ, scores) for organ in organs],
        summary_means=[_mean_over_scans(records, score) for score in scores],
        plots={title: svg_uri(figure) for title, figure in plots.items()},
        order=_order_in_words(records),
        scans=[_scan_section(record, reasons, pictures, shown) for record, reasons in ranked],
    )
    write_text(path, content)


def worst_first(records: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """The scans in the order in which to look at them, each with the reasons for its position.

    Scans with a label come first, sorted by mean Dice. Others are sorted by the mean of their predicted Dice. Without
    predictions, those come first that lack organs which most scans have, then those with a volume far from the median
    over all scans; with fewer than four scans, volumes can't be compared, and scans keep their order.
    """
    labelled = [(record, _scan_mean(record, "dice")) for record in records if _is_labelled(record)]
    # a scan without any organ in label and prediction has no Dice, and comes last
    labelled.sort(key=lambda scored: math.inf if math.isnan(scored[1]) else scored[1])
    others = [record for record in records if not _is_labelled(record)]
    ranked = [(record, _dice_reasons(record, mean)) for record, mean in labelled]
    predicted = _are_predicted(others)
    if predicted:  # a scan in which nothing was found has no mean, and comes first
        others.sort(key=lambda record: (not math.isnan(mean := _scan_mean(record, "predicted_dice")), mean))
    if len(records) < FEWEST_SCANS:
        return ranked + [(record, _prediction_reasons(record)) for record in others]
    usual = {organ: _usual(records, organ) for organ in records[0]["organs"]}
    judged = [(record, _missing(record, usual), _distances(record, usual)) for record in others]
    if not predicted:
        judged.sort(key=lambda each: (len(each[1]), max(each[2].values(), default=0.0)), reverse=True)
    return ranked + [
        (record, _prediction_reasons(record) + _volume_reasons(record, missing, distances, usual))
        for record, missing, distances in judged
    ]


@dataclass(frozen=True)
class UsualVolume:
    """An organ's usual volume.

    Attributes:
        scans: number of scans.
        found: number of scans with the organ.
        median: in ml, over the scans with the organ.
        spread: in ml, a standard deviation over these scans that outliers hardly change. Median and spread are 0 if
            fewer than four scans have the organ.
    """

    scans: int
    found: int
    median: float
    spread: float


def _usual(records: Sequence[Mapping[str, Any]], organ: str) -> UsualVolume:
    volumes = _found_volumes(records, organ)
    if len(volumes) < FEWEST_SCANS:
        return UsualVolume(len(records), len(volumes), median=0.0, spread=0.0)
    median = statistics.median(volumes)
    deviations = [abs(volume - median) for volume in volumes]
    # if half of the volumes are equal, the median deviation is 0; Iglewicz and Hoaglin take the mean deviation then
    spread = 1.4826 * statistics.median(deviations) or 1.2533 * statistics.fmean(deviations)
    return UsualVolume(len(records), len(volumes), median, spread)


def _missing(record: Mapping[str, Any], usual: Mapping[str, UsualVolume]) -> list[str]:
    """The organs that this scan lacks, but most scans have."""
    volumes = {organ: values["volume_ml"] for organ, values in record["organs"].items()}
    return [
        organ for organ, all_scans in usual.items() if volumes[organ] == 0 and 2 * all_scans.found > all_scans.scans
    ]


def _distances(record: Mapping[str, Any], usual: Mapping[str, UsualVolume]) -> dict[str, float]:
    """How many spreads each organ's volume is from the median; organs that can't be compared are left out."""
    volumes = {organ: values["volume_ml"] for organ, values in record["organs"].items()}
    return {
        organ: abs(volumes[organ] - all_scans.median) / all_scans.spread
        for organ, all_scans in usual.items()
        if volumes[organ] > 0 and all_scans.spread > 0
    }


def _dice_reasons(record: Mapping[str, Any], mean: float) -> list[str]:
    dice = {organ: values["dice"] for organ, values in record["organs"].items() if values.get("dice") is not None}
    if math.isnan(mean):
        drawn = all(values.get("annotated", True) for values in record["organs"].values())
        return ["no organ is in the label or the prediction" if drawn else "nothing in it was drawn that can be scored"]
    lowest = min(dice, key=lambda organ: dice[organ])
    remark = "" if record["organs"][lowest]["volume_ml"] else " (not found)"
    return [f"mean Dice {mean:.2f}", f"lowest Dice: {lowest} {dice[lowest]:.2f}{remark}"]


def _are_predicted(records: Sequence[Mapping[str, Any]]) -> bool:
    return any(_has_score(record, "predicted_dice") for record in records)


def _prediction_reasons(record: Mapping[str, Any]) -> list[str]:
    predicted = {organ: values.get("predicted_dice") for organ, values in record["organs"].items()}
    dice = {organ: value for organ, value in predicted.items() if value is not None}
    if not dice:
        return []
    lowest = min(dice, key=lambda organ: dice[organ])
    mean = _scan_mean(record, "predicted_dice")
    return [f"mean predicted Dice {mean:.2f}", f"lowest predicted Dice: {lowest} {dice[lowest]:.2f}"]


def _volume_reasons(
    record: Mapping[str, Any], missing: Sequence[str], distances: Mapping[str, float], usual: Mapping[str, UsualVolume]
) -> list[str]:
    reasons = [
        f"{organ} not found, though {usual[organ].found} of {usual[organ].scans} scans have it" for organ in missing
    ]
    far = [organ for organ, distance in distances.items() if distance > FAR]
    for organ in sorted(far, key=lambda organ: distances[organ], reverse=True):
        values = record["organs"][organ]
        cut = ", and it touches the edge of the scan" if values["touches_edge"] else ""
        volume, median = _volume_in_words(values["volume_ml"]), _volume_in_words(usual[organ].median)
        reasons.append(f"{organ} volume {volume} is far from the median {median}{cut}")
    return reasons or ["no organ is missing, or far from its median volume"]


def _order_in_words(records: Sequence[Mapping[str, Any]]) -> str:
    labelled = sum(map(_is_labelled, records))
    words = []
    if labelled:
        words.append("Scans with a label come first, the lowest mean Dice (on the scan's own grid) on top.")
    if _are_predicted([record for record in records if not _is_labelled(record)]):
        words.append(
            "Scans without a label are sorted by their predicted Dice, the lowest mean on top. It follows from the "
            "networks' probabilities and agreement, by what the folds of a cross-validation showed."
        )
    elif labelled < len(records) < FEWEST_SCANS:
        words.append(f"Scans without a label are in the order given: fewer than {FEWEST_SCANS} are too few to compare.")
    elif labelled < len(records):
        words.append(
            "Scans without a label are sorted by how unusual their organs are: on top those that lack organs that most "
            "scans have, then those with the volume farthest from the median over scans."
        )
    return " ".join(words)


def _summary_row(records: Sequence[Mapping[str, Any]], organ: str, scores: Sequence[str]) -> dict[str, Any]:
    volumes = _found_volumes(records, organ)
    return {
        "organ": organ,
        "found": f"{len(volumes)} of {len(records)}",
        "volume": volume_text(statistics.fmean(volumes)) if volumes else "–",
        "scores": [decimals(_organ_mean(records, organ, score), SCORES[score][1]) for score in scores],
    }


def _mean_over_scans(records: Sequence[Mapping[str, Any]], score: str) -> str:
    return decimals(float(nan_mean([_scan_mean(record, score) for record in records])), SCORES[score][1])


def _scan_section(
    record: Mapping[str, Any], reasons: Sequence[str], pictures: Mapping[str, Path], views: Mapping[str, Path]
) -> dict[str, Any]:
    scores = [score for score in SCORES if _has_score(record, score)]
    return {
        "name": record["scan"],
        "source": record["source"],
        "shape": " × ".join(f"{size}" for size in record["shape"]),
        "spacing": " × ".join(f"{step:.3g}" for step in record["spacing_mm"]),
        "reasons": [*reasons, *record["remarks"]],
        "view": view_address(record["scan"]) if record["scan"] in views else None,
        "picture": data_uri("image/png", pictures[record["scan"]].read_bytes()),
        "heads": [SCORES[score][0] for score in scores],
        "organs": [_organ_row(organ, values, scores) for organ, values in record["organs"].items()],
    }


def _organ_row(organ: str, values: Mapping[str, Any], scores: Sequence[str]) -> dict[str, Any]:
    found = values["volume_ml"] > 0
    intensity, box = "–", ["–"] * 3
    if found and values["mean"] is not None:
        digits = 0 if values["std"] >= 10 else 2 if values["std"] >= 0.1 else 5
        intensity = f"{decimals(values['mean'], digits)} ± {decimals(values['std'], digits)}"
    if found:
        corners = zip(*values["bounding_box_mm"], strict=True)
        box = [f"{decimals(low, 0)}…{decimals(high, 0)}" for low, high in corners]
    return {
        "name": organ,
        "touches_edge": values["touches_edge"],
        "volume": volume_text(values["volume_ml"]) if found else "not found",
        "intensity": intensity,
        "box": box,
        "scores": [_score_cell(values, score) for score in scores],
    }


def _score_cell(values: Mapping[str, Any], score: str) -> str:
    if not values.get("annotated", True):
        return NOT_DRAWN
    if values.get(score) is None:
        if score == "predicted_dice" and values["volume_ml"] > 0:
            return "–"  # too few scans of the folds tell
        return "undefined" if score == "hd95_mm" and values.get("dice") is not None else "absent"
    return decimals(values[score], SCORES[score][1])


def _dice_plot(records: Sequence[Mapping[str, Any]], organs: Sequence[str]) -> Figure:
    values = [[record["organs"][organ].get("dice") for record in records] for organ in organs]
    figure, panel = box_plot(organs, [[value for value in row if value is not None] for row in values])
    panel.set(xlabel="Dice", xlim=(-0.03, 1.03))
    return figure


def _volume_plot(records: Sequence[Mapping[str, Any]], organs: Sequence[str]) -> Figure:
    values = [_found_volumes(records, organ) for organ in organs]
    figure, panel = box_plot(organs, values)
    label_axis(panel, "volume (ml)", values)
    return figure


def _has_score(record: Mapping[str, Any], score: str) -> bool:
    return any(score in values for values in record["organs"].values())


def _is_labelled(record: Mapping[str, Any]) -> bool:
    return _has_score(record, "dice")


def _scan_mean(record: Mapping[str, Any], score: str) -> float:
    """A score's mean over a scan's organs; NaN if it is defined for none."""
    return float(nan_mean([values.get(score) for values in record["organs"].values()]))


def _organ_mean(records: Sequence[Mapping[str, Any]], organ: str, score: str) -> float:
    """A score's mean over an organ's scans; NaN if it is defined for none."""
    return float(nan_mean([record["organs"][organ].get(score) for record in records]))


def _found_volumes(records: Iterable[Mapping[str, Any]], organ: str) -> list[float]:
    volumes = (record["organs"][organ]["volume_ml"] for record in records)
    return [volume for volume in volumes if volume > 0]


def _volume_in_words(volume: float) -> str:
    """A volume in ml, in litres from one litre on."""
    if volume >= 1000:
        return f"{volume / 1000:.1f} l"
    return f"{volume:.0f} ml" if volume >= 10 else f"{volume_text(volume) or 0} ml"

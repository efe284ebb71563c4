"""A report over all scans that a network segmented: one page that opens anywhere, the scans to look at first on top."""

import base64
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.system.files import write_text

TEMPLATE = Path(__file__).with_suffix(".html.j2")

# how a score is called above its column, and its decimals
SCORES = {
    "dice": ("Dice, scan's own grid", 3),
    "dice_network_grid": ("Dice, network's grid", 3),
    "hd95_mm": ("HD95 (mm), scan's own grid", 1),
    "nsd": ("NSD, scan's own grid", 3),
}
# with fewer, one odd scan is a large part of what it is compared with
FEWEST_SCANS = 4
# Iglewicz and Hoaglin, How to detect and handle outliers (1993)
FAR = 3.5
# volumes that differ by more than this share an axis only if it is logarithmic
WIDE = 20.0


def write_report(
    path: Path, records: Sequence[Mapping[str, Any]], pictures: Mapping[str, Path], facts: Mapping[str, str]
) -> None:
    """Write an HTML page with everything in it: it opens from the disk and asks the network for nothing.

    Args:
        records: one for each scan: ``scan`` (its name), ``source``, ``shape`` (voxels), ``spacing_mm`` and ``organs``.
            The latter has, by organ, ``volume_ml``, ``mean`` and ``std`` of the intensities, ``bounding_box_mm``
            (lowest and highest corner) and ``touches_edge``; an organ without a voxel has the volume 0 and None for
            mean, std and box. A scan with a label has ``dice``, ``hd95_mm``, ``nsd`` or ``dice_network_grid`` too;
            None where the organ is in neither label nor prediction, or the distance undefined.
        pictures: each scan's PNG.
        facts: what the head of the page says about the run, by name.

    Raises:
        FileNotFoundError: if a picture is not there.
        WriteError: if the page can't be written.
    """
    organs = list(records[0]["organs"])
    scores = [score for score in SCORES if any(_has(record, score) for record in records)]
    plots = {"Volume by organ": _volume_plot(records, organs)}
    if "dice" in scores:
        plots = {"Dice by organ, on the scan's own grid": _dice_plot(records, organs), **plots}
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    content = page.render(
        facts=facts,
        scan_count=_counted(len(records)),
        labelled_count=_counted(sum(map(_is_labelled, records))),
        summary_heads=[SCORES[score][0] for score in scores],
        summary=[_summary_row(records, organ, scores) for organ in organs],
        summary_means=[_mean_over_scans(records, score) for score in scores],
        plots={title: _data_uri("image/svg+xml", _svg(figure)) for title, figure in plots.items()},
        order=_order_in_words(records),
        scans=[_scan_section(record, reasons, pictures) for record, reasons in worst_first(records)],
    )
    write_text(path, content)


def worst_first(records: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """The scans in the order in which to look at them, each with the reasons for its place.

    Scans with a label come first, the lowest mean Dice on top; then the others, those on top that lack organs that
    most scans have, or whose volumes are farthest from the median over all scans. Fewer than four scans are too few
    to compare volumes: those without a label stay as they are.
    """
    labelled = [(record, _mean(_values(record, "dice"))) for record in records if _is_labelled(record)]
    # a label without any organ is scored by nothing, and can't be the worst
    labelled.sort(key=lambda scored: (scored[1] is None, scored[1] or 0.0))
    others = [record for record in records if not _is_labelled(record)]
    ranked = [(record, _dice_reasons(record, mean)) for record, mean in labelled]
    if len(records) < FEWEST_SCANS:
        return ranked + [(record, []) for record in others]
    usual = {organ: _usual(records, organ) for organ in records[0]["organs"]}
    judged = [(record, _missing(record, usual), _distances(record, usual)) for record in others]
    judged.sort(key=lambda each: (len(each[1]), max(each[2].values(), default=0.0)), reverse=True)
    return ranked + [
        (record, _volume_reasons(record, missing, distances, usual)) for record, missing, distances in judged
    ]


@dataclass(frozen=True)
class Usual:
    """An organ's volume as it usually is.

    Attributes:
        scans: how many there are.
        found: in how many of them the organ is.
        median: ml, over the scans with the organ.
        spread: ml, what the standard deviation over these scans would be without outliers. Both are 0 if the scans
            with the organ are too few to say.
    """

    scans: int
    found: int
    median: float
    spread: float


def _usual(records: Sequence[Mapping[str, Any]], organ: str) -> Usual:
    volumes = _found_volumes(records, organ)
    if len(volumes) < FEWEST_SCANS:
        return Usual(len(records), len(volumes), median=0.0, spread=0.0)
    median = statistics.median(volumes)
    deviations = [abs(volume - median) for volume in volumes]
    # where half of the volumes are equal, Iglewicz and Hoaglin take the mean deviation instead
    spread = 1.4826 * statistics.median(deviations) or 1.2533 * statistics.fmean(deviations)
    return Usual(len(records), len(volumes), median, spread)


def _missing(record: Mapping[str, Any], usual: Mapping[str, Usual]) -> list[str]:
    """The organs that are not in this scan, though in most."""
    volumes = {organ: values["volume_ml"] for organ, values in record["organs"].items()}
    return [
        organ for organ, all_scans in usual.items() if volumes[organ] == 0 and 2 * all_scans.found > all_scans.scans
    ]


def _distances(record: Mapping[str, Any], usual: Mapping[str, Usual]) -> dict[str, float]:
    """By organ that can be judged, how many spreads its volume is from the median."""
    volumes = {organ: values["volume_ml"] for organ, values in record["organs"].items()}
    return {
        organ: abs(volumes[organ] - all_scans.median) / all_scans.spread
        for organ, all_scans in usual.items()
        if volumes[organ] > 0 and all_scans.spread > 0
    }


def _dice_reasons(record: Mapping[str, Any], mean: float | None) -> list[str]:
    dice = {organ: values["dice"] for organ, values in record["organs"].items() if values.get("dice") is not None}
    if mean is None:
        return ["no organ is in the label or the prediction"]
    lowest = min(dice, key=lambda organ: dice[organ])
    remark = "" if record["organs"][lowest]["volume_ml"] else " (not found)"
    return [f"mean Dice {mean:.2f}", f"lowest Dice: {lowest} {dice[lowest]:.2f}{remark}"]


def _volume_reasons(
    record: Mapping[str, Any], missing: Sequence[str], distances: Mapping[str, float], usual: Mapping[str, Usual]
) -> list[str]:
    reasons = [
        f"{organ} not found, though {usual[organ].found} of {usual[organ].scans} scans have it" for organ in missing
    ]
    far = [organ for organ, distance in distances.items() if distance > FAR]
    for organ in sorted(far, key=lambda organ: distances[organ], reverse=True):
        values = record["organs"][organ]
        cut = ", and it touches the edge of the scan" if values["touches_edge"] else ""
        volume, median = _in_words(values["volume_ml"]), _in_words(usual[organ].median)
        reasons.append(f"{organ} volume {volume} is far from the median {median}{cut}")
    return reasons or ["no organ is missing, or far from its median volume"]


def _order_in_words(records: Sequence[Mapping[str, Any]]) -> str:
    labelled = sum(map(_is_labelled, records))
    words = []
    if labelled:
        words.append("Scans with a label come first, the lowest mean Dice (on the scan's own grid) on top.")
    if labelled < len(records) < FEWEST_SCANS:
        words.append(f"Scans without a label are in the order given: fewer than {FEWEST_SCANS} are too few to compare.")
    elif labelled < len(records):
        words.append(
            "Scans without a label are sorted by how unusual their organs are: on top those that lack organs that most "
            "scans have, then those with the volume farthest from the median over scans."
        )
    return " ".join(words)


def _summary_row(records: Sequence[Mapping[str, Any]], organ: str, scores: Sequence[str]) -> dict[str, Any]:
    volumes = _found_volumes(records, organ)
    means = [(_mean(record["organs"][organ].get(score) for record in records), SCORES[score][1]) for score in scores]
    return {
        "organ": organ,
        "found": f"{len(volumes)} of {len(records)}",
        "volume": _decimals(_mean(volumes), 1),
        "scores": [_decimals(mean, digits) for mean, digits in means],
    }


def _mean_over_scans(records: Sequence[Mapping[str, Any]], score: str) -> str:
    return _decimals(_mean(_mean(_values(record, score)) for record in records), SCORES[score][1])


def _scan_section(record: Mapping[str, Any], reasons: Sequence[str], pictures: Mapping[str, Path]) -> dict[str, Any]:
    scores = [score for score in SCORES if _has(record, score)]
    return {
        "name": record["scan"],
        "source": record["source"],
        "shape": " × ".join(f"{size}" for size in record["shape"]),
        "spacing": " × ".join(f"{step:.3g}" for step in record["spacing_mm"]),
        "reasons": [*reasons, *record["remarks"]],
        "picture": _data_uri("image/png", pictures[record["scan"]].read_bytes()),
        "heads": [SCORES[score][0] for score in scores],
        "organs": [_organ_row(organ, values, scores) for organ, values in record["organs"].items()],
    }


def _organ_row(organ: str, values: Mapping[str, Any], scores: Sequence[str]) -> dict[str, Any]:
    found = values["volume_ml"] > 0
    intensity, box = "–", ["–"] * 3
    if found:
        digits = 0 if values["std"] >= 10 else 2
        intensity = f"{_decimals(values['mean'], digits)} ± {_decimals(values['std'], digits)}"
        corners = zip(*values["bounding_box_mm"], strict=True)
        box = [f"{_decimals(low, 0)}…{_decimals(high, 0)}" for low, high in corners]
    return {
        "name": organ,
        "touches_edge": values["touches_edge"],
        "volume": _decimals(values["volume_ml"], 1) if found else "not found",
        "intensity": intensity,
        "box": box,
        "scores": [_score_cell(values, score) for score in scores],
    }


def _score_cell(values: Mapping[str, Any], score: str) -> str:
    if values.get(score) is None:
        return "undefined" if score == "hd95_mm" and values.get("dice") is not None else "absent"
    return _decimals(values[score], SCORES[score][1])


def _dice_plot(records: Sequence[Mapping[str, Any]], organs: Sequence[str]) -> Figure:
    values = [[record["organs"][organ].get("dice") for record in records] for organ in organs]
    figure, panel = _box_plot(organs, [[value for value in row if value is not None] for row in values])
    panel.set(xlabel="Dice", xlim=(-0.03, 1.03))
    return figure


def _volume_plot(records: Sequence[Mapping[str, Any]], organs: Sequence[str]) -> Figure:
    values = [_found_volumes(records, organ) for organ in organs]
    figure, panel = _box_plot(organs, values)
    panel.set(xlabel="volume (ml)")
    volumes = [volume for row in values for volume in row]
    if volumes and max(volumes) > WIDE * min(volumes):
        panel.set(xscale="log", xlabel="volume (ml), logarithmic axis")
        panel.xaxis.set_major_formatter("{x:g}")
    return figure


def _box_plot(names: Sequence[str], values: Sequence[Sequence[float]]) -> tuple[Figure, Axes]:
    """A line for each name, top to bottom: the box of its values and each value as a point."""
    figure = Figure(figsize=(5, 0.9 + 0.3 * len(names)), layout="constrained")
    panel = figure.subplots()
    lines = range(len(names))
    look: dict[str, Any] = {"showfliers": False, "medianprops": {"color": "black", "linewidth": 2}, "zorder": 1}
    panel.boxplot(values, orientation="horizontal", positions=lines, widths=0.6, **look)
    for line, row in zip(lines, values, strict=True):
        # a little up and down in turn, so that equal values are seen side by side
        heights = [line + 0.14 * (number % 3 - 1) for number in range(len(row))]
        panel.scatter(row, heights, s=12, color=colormaps["tab10"](0), alpha=0.8, linewidths=0, zorder=2)
    panel.set_yticks(lines, names, parse_math=False)
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def _svg(figure: Figure) -> bytes:
    """The figure without a background, its letters as outlines; one figure is always the same bytes."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "report", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _has(record: Mapping[str, Any], score: str) -> bool:
    return any(score in values for values in record["organs"].values())


def _is_labelled(record: Mapping[str, Any]) -> bool:
    return _has(record, "dice")


def _values(record: Mapping[str, Any], score: str) -> list[float | None]:
    return [values.get(score) for values in record["organs"].values()]


def _found_volumes(records: Iterable[Mapping[str, Any]], organ: str) -> list[float]:
    volumes = (record["organs"][organ]["volume_ml"] for record in records)
    return [volume for volume in volumes if volume > 0]


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of what isn't None; None where there is nothing."""
    counted = [value for value in values if value is not None]
    return statistics.fmean(counted) if counted else None


def _decimals(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:z.{digits}f}".replace("-", "−")


def _counted(scans: int) -> str:
    return "1 scan" if scans == 1 else f"{scans} scans"


def _in_words(volume: float) -> str:
    """A volume in ml, in litres from one litre on."""
    if volume >= 1000:
        return f"{volume / 1000:.1f} l"
    return f"{volume:.0f} ml" if volume >= 10 else f"{volume:.1f} ml"

"""The page that shows a plan: each setting with its reason, and the scans that it follows from."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from utils.evaluation.pages import box_plot, decimals, label_axis, photo_uri, render, scans_in_words, svg_uri
from utils.evaluation.pictures import Box, Row, caption, fullest_planes, grey_window, label_colours, pixels, slices
from utils.io.geometry import ras_spacing, to_ras
from utils.io.reader import read_label, read_scan
from utils.io.scan import Scan
from utils.planning.choices import Plan, Value
from utils.planning.fingerprint import Fingerprint, ScanFacts
from utils.system.files import write_text
from utils.system.text import one_line

TEMPLATE = Path(__file__).with_suffix(".html.j2")

SHOWN_SCANS = 4
SHOWN_CHANNELS = 4
AXES = {"x": "left to right", "y": "back to front", "z": "feet to head"}
BINS = 150
OUTERMOST = 0.5  # percent of the voxels at either end, which a histogram leaves out
BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.6"

Window = tuple[float, float]
Lengths = tuple[float, float, float]


def write_page(
    path: Path, fingerprint: Fingerprint, plan: Plan, scans: Sequence[Scan], facts: Mapping[str, str]
) -> None:
    """Write an HTML page that holds all it needs: it opens from the disk and loads nothing from the network.

    Args:
        plan: with at least window, spacing and intensities.
        scans: all that the fingerprint tells of, some of which are shown.
        facts: lines for the top of the page, by name.

    Raises:
        InputError: if a scan that is shown can't be read.
        WriteError: if the page can't be written.
    """
    settings, names = plan.settings, fingerprint.labels[1:]
    by_name = {scan.name: scan for scan in scans}
    colours = label_colours(fingerprint.labels)
    content = render(
        TEMPLATE,
        facts={**facts, **_counts(fingerprint)},
        scan_count=scans_in_words(len(fingerprint.scans)),
        questions=[with_code(text) for text in plan.questions],
        remarks=[with_code(text) for text in plan.remarks],
        sections=[
            {
                "title": section.title,
                "choices": [
                    {
                        "settings": {name: _value_text(value) for name, value in choice.settings.items()},
                        "reason": with_code(choice.reason),
                    }
                    for choice in section.choices
                ],
            }
            for section in plan.sections
        ],
        legend={name: to_hex(colour) for name, colour in zip(names, colours[1:], strict=True)},
        window=_window_in_words(settings),
        more_channels=max(0, fingerprint.channels - SHOWN_CHANNELS),
        grey="the ends of the planned CT window"
        if settings["intensity"] == "ct"
        else "each volume's 1st and 99th percentile",
        scans=[
            _scan_part(facts, size, by_name[facts.name], fingerprint, settings) for size, facts in shown(fingerprint)
        ],
        histograms=[
            _histogram_part(fingerprint, channel, settings)
            for channel in range(min(SHOWN_CHANNELS, fingerprint.channels))
        ],
        structures=[_structure_row(fingerprint, value, name) for value, name in enumerate(names, start=1)],
        volumes=svg_uri(_volume_plot(fingerprint)),
        grid=_grid_rows(fingerprint, settings),
        grid_plots={title: svg_uri(figure) for title, figure in _grid_plots(fingerprint, settings).items()},
    )
    write_text(path, content)


def with_code(text: str) -> Markup:
    """A sentence whose names in backquotes are code; all else is escaped."""
    parts = re.split("`([^`]+)`", one_line(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    )


def shown(fingerprint: Fingerprint) -> list[tuple[str, ScanFacts]]:
    """A few scans from the smallest to the largest, each with its rank; labelled ones if there are."""
    labelled = [facts for facts in fingerprint.scans if facts.structures]
    ranked = sorted(labelled or fingerprint.scans, key=lambda facts: (math.prod(_lengths(facts)), facts.name))
    last = len(ranked) - 1
    ranks = sorted({round(number * last / (SHOWN_SCANS - 1)) for number in range(SHOWN_SCANS)})
    words = (
        {last: f"the largest of {len(ranked)}", 0: f"the smallest of {len(ranked)}"} if last else {0: "the only one"}
    )
    return [(words.get(rank, f"number {rank + 1} of {len(ranked)} by size"), ranked[rank]) for rank in ranks]


def planned_window(mask: np.ndarray, spacing: Sequence[float], window_mm: Sequence[float]) -> Box:
    """Where the window lies over a scan, in the scan's voxels along each axis.

    It is centred on the labels, or, if it shows none there, on the labelled voxel nearest to their centre; and within
    the scan. Along an axis on which it is longer than the scan, the scan is in its middle.

    Args:
        mask: (X, Y, Z), where the scan has a label.
        spacing: mm along each axis.
        window_mm: the window's edges.
    """
    size = np.asarray(window_mm) / spacing

    def around(centre: np.ndarray) -> Box:
        room = mask.shape - size
        lows = np.where(room < 0, room / 2, np.clip(centre - size / 2, 0, np.maximum(room, 0)))
        return [(float(low), float(low + edge)) for low, edge in zip(lows, size, strict=True)]

    if not mask.any():
        return around(np.asarray(mask.shape) / 2)
    ends = [np.flatnonzero(mask.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))]
    centre = np.array([(first + last + 1) / 2 for first, last in ends])
    box = around(centre)
    if mask[_inside(box)].any():
        return box
    places = np.argwhere(mask) + 0.5
    return around(places[(((places - centre) * spacing) ** 2).sum(1).argmin()])


def _inside(box: Box) -> tuple[slice, ...]:
    """The voxels that a box touches."""
    return tuple(slice(max(0, math.floor(low)), math.ceil(high)) for low, high in box)


def scan_picture(
    volumes: Mapping[str, tuple[np.ndarray, Window]],
    label: np.ndarray,
    labels: Sequence[str],
    spacing: Sequence[float],
    window_mm: Sequence[float],
) -> Figure:
    """Each channel of a scan, and the first one with its labels and the planned window.

    The slices are those within the window with most labelled voxels.

    Args:
        volumes: by name, each channel (X, Y, Z) and the intensities that are drawn black and white.
        label: (X, Y, Z).
    """
    frame = planned_window(label > 0, spacing, window_mm)
    within = _inside(frame)
    planes = [part.start + plane for part, plane in zip(within, fullest_planes(label[within] > 0), strict=True)]
    rows = [Row(name, image, window) for name, (image, window) in volumes.items()]
    labelled = Row("labels", rows[0].image, rows[0].window, label)
    return slices([*rows, labelled], planes, label_colours(labels), spacing, frame)


def _scan_part(
    facts: ScanFacts, size: str, scan: Scan, fingerprint: Fingerprint, settings: Mapping[str, Value]
) -> dict[str, Any]:
    assert scan.label is not None
    volume = read_scan(scan)
    values = read_label(scan.label, scan.path, volume, ignore=scan.ignore, structures=scan.structures)
    label = to_ras(values, volume.affine)
    images = [to_ras(channel, volume.affine) for channel in volume.voxels]
    volumes = {
        caption(_channel_name(fingerprint, number)): (image, _ct_window(settings) or grey_window(image))
        for number, image in enumerate(images[:SHOWN_CHANNELS])
    }
    figure = scan_picture(volumes, label, fingerprint.labels, ras_spacing(volume.affine), _window_mm(settings))
    return {
        "name": facts.name,
        "size": size,
        "shape": _sizes(facts.shape),
        "spacing": _sizes(facts.spacing),
        "lengths": _sizes(_lengths(facts)),
        "remarks": facts.remarks,
        "picture": photo_uri(pixels(figure)),
    }


def cumulative(quantiles: Sequence[float] | np.ndarray, values: np.ndarray) -> np.ndarray:
    """The share of a volume's voxels that are at most each of ``values``, if they lie evenly between its quantiles."""
    steps = np.asarray(quantiles, float)
    above = np.searchsorted(steps, values, side="right")  # the first quantile above each value
    low, high = steps[np.clip(above - 1, 0, None)], steps[np.clip(above, None, len(steps) - 1)]
    part = np.divide(values - low, high - low, out=np.zeros(len(values)), where=high > low)
    return np.clip((above - 1 + part) / (len(steps) - 1), 0, 1)


def pooled_shares(volumes: Sequence[Sequence[float] | np.ndarray], edges: np.ndarray) -> np.ndarray:
    """The share of voxels from each edge to the next, the mean over volumes given by their quantiles."""
    closed = np.array([np.nextafter(edges[0], -np.inf), *edges[1:]])  # the lowest value belongs to the first bin
    return np.diff(np.mean([cumulative(quantiles, closed) for quantiles in volumes], axis=0))


def standardised(quantiles: Sequence[float], of: Sequence[float]) -> np.ndarray:
    """Quantiles less the mean of the voxels that have the quantiles ``of``, in their standard deviations.

    The lowest and the highest step are left out of both: few voxels far away make up most of them.
    """
    inner = np.asarray(of[1:-1], float)
    middles, widths = (inner[1:] + inner[:-1]) / 2, np.diff(inner)
    mean = middles.mean()
    std = math.sqrt(np.mean((middles - mean) ** 2 + widths**2 / 12))
    return (np.asarray(quantiles, float) - mean) / (std or 1.0)


def _histogram_part(fingerprint: Fingerprint, channel: int, settings: Mapping[str, Value]) -> dict[str, Any]:
    all_raw = [facts.quantiles[channel] for facts in fingerprint.scans]
    labelled = [facts for facts in fingerprint.scans if facts.labelled_quantiles]
    labelled_raw = [facts.labelled_quantiles[channel] for facts in labelled]
    low, high = min(map(min, all_raw)), max(map(max, all_raw))
    words = f"The values go from {_short(low)} to {_short(high)}."
    window = _ct_window(settings)
    if window is not None:
        if labelled_raw:
            (share,) = pooled_shares(labelled_raw, np.array(window))
            words += f" {share:.1%} of the labelled voxels lie from {_short(window[0])} to {_short(window[1])}."
        figure = histogram(all_raw, labelled_raw, window)
        figure.axes[0].set_xlabel("value")
    else:
        words += " Each scan is standardised, so the plot counts from its mean."
        pairs = [(facts.labelled_quantiles[channel], facts.quantiles[channel]) for facts in labelled]
        figure = histogram(
            [standardised(quantiles, quantiles) for quantiles in all_raw], [standardised(*pair) for pair in pairs]
        )
        figure.axes[0].set_xlabel("standard deviations from the scan's mean")
    title = _channel_name(fingerprint, channel) if fingerprint.channels > 1 else "all scans together"
    return {"title": f"Intensities, {title}", "picture": svg_uri(figure), "words": words}


def histogram(
    all_voxels: Sequence[Sequence[float] | np.ndarray],
    labelled: Sequence[Sequence[float] | np.ndarray],
    window: Window | None = None,
) -> Figure:
    """The shares of all and of labelled voxels by intensity, from their quantiles, each scan with the same weight."""
    ends = [
        np.percentile(np.concatenate(pool), (OUTERMOST, 100 - OUTERMOST)) for pool in (all_voxels, labelled) if pool
    ]
    seen = [*np.concatenate(ends), *(window or ())]
    low, high = min(seen), max(seen)
    margin = 0.02 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    figure = Figure(figsize=(5, 3), layout="constrained")
    panel = figure.subplots()
    pools = {"all voxels": (all_voxels, GREY, 0.55), "labelled voxels": (labelled, BLUE, 0.6)}
    peaks = []
    for name, (pool, colour, opacity) in pools.items():
        if pool:
            shares = 100 * pooled_shares(pool, edges)
            peaks.append(shares.max())
            panel.stairs(shares, edges, fill=True, color=colour, alpha=opacity, label=name, linewidth=0)
    if window is not None:
        panel.axvspan(*window, color=ORANGE, alpha=0.15, linewidth=0, label="CT window", zorder=0)
        for end in window:
            panel.axvline(end, color=ORANGE, linewidth=1.2, linestyle="--")
    # in most scans air is a bar that would leave nothing to be seen beside it
    panel.set(ylabel="% of the voxels", xlim=(edges[0], edges[-1]), ylim=(0, 1.1 * peaks[-1]))
    panel.legend(fontsize="small", frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def _structure_row(fingerprint: Fingerprint, value: int, name: str) -> dict[str, Any]:
    found = [facts.structures[value] for facts in fingerprint.scans if value in facts.structures]
    volumes = [structure.volume_ml for structure in found]
    return {
        "value": value,
        "name": name,
        "scans": f"{len(found)} of {len(fingerprint.scans)}",
        "volumes": _spread(volumes),
        "thickness": _spread([structure.thickness_mm for structure in found])[1],
    }


def _volume_plot(fingerprint: Fingerprint) -> Figure:
    values = [
        [facts.structures[value].volume_ml for facts in fingerprint.scans if value in facts.structures]
        for value in range(1, len(fingerprint.labels))
    ]
    figure, panel = box_plot(fingerprint.labels[1:], values)
    label_axis(panel, "volume (ml)", values)
    return figure


def _grid_rows(fingerprint: Fingerprint, settings: Mapping[str, Value]) -> dict[str, list[dict[str, Any]]]:
    """Spacing, voxels and length of the scans along each axis, beside those of the plan."""

    def rows(values: Sequence[Sequence[float]], planned: Sequence[float]) -> list[dict[str, Any]]:
        return [
            {"axis": f"{name}, {direction}", "spread": _spread(along), "planned": _short(float(there))}
            for (name, direction), along, there in zip(AXES.items(), zip(*values, strict=True), planned, strict=True)
        ]

    scans = fingerprint.scans
    return {
        "spacing (mm)": rows([facts.spacing for facts in scans], _spacing(settings)),
        "voxels": rows([facts.shape for facts in scans], _window_voxels(settings)),
        "length (mm)": rows([_lengths(facts) for facts in scans], _window_mm(settings)),
    }


def _grid_plots(fingerprint: Fingerprint, settings: Mapping[str, Value]) -> dict[str, Figure]:
    """Spacing and length of all scans along each axis, beside those of the plan."""
    spacings = [[facts.spacing[axis] for facts in fingerprint.scans] for axis in range(3)]
    lengths = [[_lengths(facts)[axis] for facts in fingerprint.scans] for axis in range(3)]
    plots = {
        "Spacing by axis": (spacings, _spacing(settings), "spacing (mm)", "planned spacing"),
        "Length of the scans by axis": (lengths, _window_mm(settings), "length (mm)", "planned window"),
    }
    figures = {}
    for title, (values, planned, text, mark) in plots.items():
        figure, panel = box_plot(tuple(AXES), values)
        look: dict[str, Any] = {"marker": "D", "s": 44, "color": ORANGE, "edgecolors": "black", "linewidths": 0.8}
        panel.scatter(planned, range(3), zorder=3, label=mark, **look)
        label_axis(panel, text, [*values, planned])
        figure.set_figheight(2.1)
        figure.legend(loc="outside upper right", fontsize="small", frameon=False)
        figures[title] = figure
    return figures


def _counts(fingerprint: Fingerprint) -> dict[str, str]:
    """What the scans are, in words for the top of the page."""
    labels, channels = fingerprint.labels, fingerprint.channels
    unnamed = "" if fingerprint.labels_are_named else " (nothing names them)"
    names = ", ".join(fingerprint.modalities or ())
    regions = {} if fingerprint.output.exclusive else {"regions": ", ".join(fingerprint.output.names(labels))}
    orientations = Counter(facts.orientation for facts in fingerprint.scans).most_common()
    return {
        "scans": f"{len(fingerprint.scans)} with a label; in the first fold {fingerprint.training} train and "
        f"{fingerprint.validation} validate",
        "classes": f"{len(labels)}: {', '.join(labels)}{unnamed}",
        **regions,
        "channels": f"{channels}{f': {names}' if names else ''}",
        "orientation": ", ".join(f"{codes} ({scans_in_words(count)})" for codes, count in orientations),
    }


def _channel_name(fingerprint: Fingerprint, channel: int) -> str:
    names = dict(enumerate(fingerprint.modalities or ()))
    if fingerprint.channels == 1:
        return names.get(channel, "image")
    return f"channel {channel}: {names[channel]}" if channel in names else f"channel {channel}"


def _ct_window(settings: Mapping[str, Value]) -> Window | None:
    """The planned CT window, or None if scans are standardised."""
    return (float(settings["a_min"]), float(settings["a_max"])) if settings["intensity"] == "ct" else None


def _spacing(settings: Mapping[str, Value]) -> Lengths:
    x, y, z = (float(settings[f"space_{axis}"]) for axis in AXES)
    return x, y, z


def _window_voxels(settings: Mapping[str, Value]) -> tuple[int, int, int]:
    x, y, z = (int(settings[f"roi_{axis}"]) for axis in AXES)
    return x, y, z


def _window_mm(settings: Mapping[str, Value]) -> Lengths:
    x, y, z = (size * step for size, step in zip(_window_voxels(settings), _spacing(settings), strict=True))
    return x, y, z


def _window_in_words(settings: Mapping[str, Value]) -> str:
    voxels, steps = _sizes(_window_voxels(settings)), _sizes(_spacing(settings))
    return f"{voxels} voxels of {steps} mm, that is {_sizes(_window_mm(settings))} mm"


def _lengths(facts: ScanFacts) -> Lengths:
    """The scan's edges in mm."""
    x, y, z = (size * step for size, step in zip(facts.shape, facts.spacing, strict=True))
    return x, y, z


def _spread(values: Sequence[float]) -> list[str]:
    """The smallest, the median and the largest of the values; dashes if there are none."""
    if not values:
        return ["–"] * 3
    return [_short(value) for value in (min(values), statistics.median(values), max(values))]


def _sizes(edges: Sequence[float]) -> str:
    return " × ".join(map(_short, edges))


def _short(value: float) -> str:
    """A number with three digits that count, or all of a larger one, without an exponent."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    text = decimals(value, min(max(digits, 0), 6))
    return text.rstrip("0").rstrip(".") if "." in text else text


def _value_text(value: Value) -> str:
    """A setting's value as a person types it; a switch is on or off."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.6g}" if isinstance(value, float) else str(value)

"""Regions: unions of labels, as a data list, nnU-Net's ``dataset.json`` or a checkpoint names them."""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.data.channels import CLASSES, Channels, Region, RegionChannels
from utils.system.text import few_names, one_line

REGIONS = "regions"
ORDER = "regions_class_order"  # nnU-Net's name
IGNORE = "ignore"  # nnU-Net's name for voxels that are not to be learned


def scored_structures(labels: Sequence[str], regions: Iterable[Region]) -> dict[str, tuple[int, ...]]:
    """What is scored, by name: each label but the background, then each region of several labels.

    Args:
        labels: names of the values 0, 1, …
    """
    single = {name: (value,) for value, name in enumerate(labels) if value > 0}
    return single | {region.name: region.labels for region in regions if len(region.labels) > 1}


def regions_as_json(regions: Sequence[Region], channels: Channels) -> dict[str, Any]:
    """Regions as :func:`read_regions` reads them; nothing if there are none."""
    if not regions:
        return {}
    order = {ORDER: list(channels.order)} if isinstance(channels, RegionChannels) else {}
    return {REGIONS: {region.name: list(region.labels) for region in regions}, **order}


def read_regions(content: Mapping[str, Any], labels: Sequence[str] | None) -> tuple[tuple[Region, ...], Channels]:
    """The regions that some JSON names, and what the channels of a network are.

    They are under ``"regions"``, as in ``{"whole tumour": [1, 2, 3]}``, or, as nnU-Net has them, among the
    ``"labels"``. If ``"regions_class_order"`` says which label each region writes into a mask, a network has a channel
    for each region.

    Args:
        labels: names of the values 0, 1, …; None if none are named.

    Raises:
        ValueError: if it names no regions of these labels, or an order by which no mask can have all labels.
    """
    order = content.get(ORDER)
    named = _named_regions(content, trained=order is not None)
    if named and labels is None:
        raise ValueError(f'"{REGIONS}" needs "labels" that name the values')
    regions = tuple(_read_region(name, values, labels or ()) for name, values in named.items())
    names = [region.name for region in regions]
    if len(set(names)) < len(names):
        raise ValueError(f'"{REGIONS}" has a name twice')
    if order is None:
        return regions, CLASSES
    channels = RegionChannels(regions, _read_order(order, regions))
    _require_all_labels(channels, labels or ())
    return regions, channels


def without_regions(labels: Mapping[str, Any]) -> Mapping[str, Any]:
    """nnU-Net's labels without its regions. A value that regions alone have is called "label 1", and so on."""
    if not all(_is_label(value) or _is_region(value) for value in labels.values()):
        return labels
    single = {name: _single(value) for name, value in labels.items() if not _is_union(value)}
    of_regions = {value for values in labels.values() if _is_union(values) for value in values}
    return single | {f"label {value}": value for value in sorted(of_regions - {0, *single.values()})}


def _named_regions(content: Mapping[str, Any], trained: bool) -> dict[str, Any]:
    """Values by name. Among nnU-Net's labels, single ones are regions too if regions are trained."""
    own, labels = content.get(REGIONS), content.get("labels")
    if own is not None and not isinstance(own, dict):
        raise ValueError(f'"{REGIONS}" must name label values, as in {{"whole tumour": [1, 2, 3]}}')
    found: dict[str, Any] = {}
    if isinstance(labels, dict) and any(map(_is_union, labels.values())):
        found = {
            name: value
            for name, value in labels.items()
            if _is_union(value) or (trained and one_line(name) != IGNORE and _single(value) != 0)
        }
    if own and found:
        raise ValueError(f'"labels" has regions, and so has "{REGIONS}". Name all in one place')
    return found or own or {}


def _read_region(name: str, values: Any, labels: Sequence[str]) -> Region:
    shown = one_line(name)
    if not shown:
        raise ValueError(f'"{REGIONS}" has an empty name')
    values = [values] if _is_label(values) else values
    if not _is_region(values):
        raise ValueError(f'the region "{shown}" must be a list of label values, not {reprlib.repr(values)}')
    if not values:
        raise ValueError(f'the region "{shown}" has no labels')
    unknown = sorted(set(values) - set(range(1, len(labels))))
    if unknown:
        raise ValueError(f'the region "{shown}" has {", ".join(map(str, unknown))}, and labels are {_range(labels)}')
    region = Region(shown, tuple(sorted(set(values))))
    if shown == IGNORE or (shown in labels and region.labels != (labels.index(shown),)):
        raise ValueError(f'the region "{shown}" has the name of another label. Give it one of its own')
    return region


def _read_order(order: Any, regions: Sequence[Region]) -> tuple[int, ...]:
    if not isinstance(order, list) or not all(map(_is_label, order)):
        raise ValueError(f'"{ORDER}" must be a list of label values, not {reprlib.repr(order)}')
    if not regions:
        raise ValueError(f'"{ORDER}" needs regions, and none are named')
    if len(order) != len(regions):
        names = few_names([region.name for region in regions])
        raise ValueError(f'"{ORDER}" has {len(order)} values, and there are {len(regions)} regions ({names})')
    for value, region in zip(order, regions, strict=True):
        if value not in region.labels:
            has = ", ".join(map(str, region.labels))
            raise ValueError(f'"{ORDER}" lets the region "{region.name}" write {value}, and its labels are {has}')
    return tuple(order)


def _require_all_labels(channels: RegionChannels, labels: Sequence[str]) -> None:
    """Check that perfect regions give back each label, which nnU-Net leaves to its user.

    Raises:
        ValueError: naming the first that they don't.
    """
    for value in range(1, len(labels)):
        inside = [value in region.labels for region in channels.regions]
        if not any(inside):
            raise ValueError(f'"{ORDER}": the label {value} ({labels[value]}) is in no region. Add one that has it')
        written = [one for one, is_inside in zip(channels.order, inside, strict=True) if is_inside][-1]
        if written != value:
            raise ValueError(
                f'"{ORDER}": where the label is {value} ({labels[value]}), a mask would have {written}. Name large '
                "regions before those inside them, and for each label a region that writes it"
            )


def _range(labels: Sequence[str]) -> str:
    return f"1 … {len(labels) - 1}" if len(labels) > 2 else "1 alone"


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_region(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_label, value))


def _is_union(value: Any) -> bool:
    return _is_region(value) and len(value) != 1


def _single(value: Any) -> Any:
    return value[0] if _is_region(value) and len(value) == 1 else value

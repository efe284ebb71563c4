"""How intensities are scaled: a CT window, or a standardisation of each scan."""

import re
from dataclasses import dataclass

import numpy as np

from utils.planning.choices import Choice
from utils.planning.fingerprint import AIR, Fingerprint, pooled_percentile, pooled_values
from utils.planning.grid import significant
from utils.system.text import few_names

LOWEST_CT, HIGHEST_CT = -11000.0, 33000.0  # what scanners write outside of their circle, and 16-bit metal
MOST = 0.9  # of the scans, from which on what they show holds for all
PERCENTILES = (0.5, 99.5)  # of the labelled voxels: nnU-Net's CTNormalization
CT, OTHER = "CT", "MR or another kind without Hounsfield units"
# how lists call it: CT, ct, "CT, portal venous", CTA, NCCT, CBCT, "computed tomography"
NAME_OF_CT = re.compile(r"(?<![a-z])(nc|ce|ld|hr|cb|md|de|4d)?cta?(?![a-z])|computed tomography", re.IGNORECASE)


@dataclass(frozen=True)
class Intensities:
    """The choice, and what a person should know of it.

    Attributes:
        is_ct: whether the scans are in Hounsfield units.
    """

    is_ct: bool
    choice: Choice
    remarks: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


def plan_intensities(fingerprint: Fingerprint) -> Intensities:
    """Whether the scans are CT, which their values say, and the scaling that follows."""
    looks = [all(looks_like_ct(channel) for channel in scan.quantiles) for scan in fingerprint.scans]
    share = float(np.mean(looks))
    is_ct = share >= MOST
    said = fingerprint.modalities
    remarks = []
    if said is not None and all(NAME_OF_CT.search(name) for name in said) != is_ct:
        seen = "have no voxels of air (-1000) as Hounsfield units do" if not is_ct else "look like Hounsfield units"
        called = ", ".join(dict.fromkeys(said))
        remarks.append(
            f"The data list calls the scans {called}, but their values {seen}. They are treated as "
            f"{CT if is_ct else OTHER}."
        )
    unlike = [scan.name for scan, look in zip(fingerprint.scans, looks, strict=True) if look != is_ct]
    questions = []
    if 1 - MOST < share < MOST:
        names = [scan.name for scan, one in zip(fingerprint.scans, looks, strict=True) if one == (share < 0.5)]
        questions.append(
            f"{len(names)} of {len(looks)} scans ({few_names(names)}) "
            + ("look like CT, and the others do not" if share < 0.5 else "do not look like CT, and the others do")
            + ". Do the scans belong together?"
        )
    elif unlike:
        look, others, scaling = (
            ("do not look", "do", "One CT window scales all.")
            if is_ct
            else ("look", "do not", "Each scan is standardised by itself.")
        )
        remarks.append(
            f"{few_names(unlike)}: the values {look} like Hounsfield units, and those of the other scans {others}. "
            f"{scaling} Do the scans belong together?"
        )
    if not is_ct:
        reason = "The values have no common scale, so each channel of each scan gets mean 0 and standard deviation 1."
        return Intensities(False, Choice({"intensity": "zscore"}, reason), tuple(remarks), tuple(questions))
    return Intensities(True, _ct_window(fingerprint), tuple(remarks), tuple(questions))


def looks_like_ct(quantiles: tuple[float, ...]) -> bool:
    """Whether a channel's values, from the lowest to the highest, look like Hounsfield units."""
    return LOWEST_CT <= quantiles[0] <= AIR and quantiles[-1] <= HIGHEST_CT and quantiles[-1] > 0


def _ct_window(fingerprint: Fingerprint) -> Choice:
    """The window as nnU-Net has it: what it maps to has mean 0 and standard deviation 1 over the labelled voxels."""
    quantiles = [channel for scan in fingerprint.scans for channel in scan.labelled_quantiles]
    low, high = (float(round(pooled_percentile(quantiles, percent))) for percent in PERCENTILES)
    high = max(high, low + 1)
    clipped = np.clip(pooled_values(quantiles), low, high)
    mean, std = float(clipped.mean()), max(float(clipped.std()), 1.0)
    bottom, top = significant((low - mean) / std), significant((high - mean) / std)
    return Choice(
        {"intensity": "ct", "a_min": low, "a_max": high, "b_min": bottom, "b_max": top},
        f"The values are Hounsfield units. The window holds the labelled voxels from the {PERCENTILES[0]} to the "
        f"{PERCENTILES[1]} percentile; their mean, {mean:.0f}, becomes 0, and their standard deviation, {std:.0f}, "
        "becomes 1 (as nnU-Net does).",
    )

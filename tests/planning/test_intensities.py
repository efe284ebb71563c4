"""Whether scans are CT, and the scaling of their intensities."""

import pytest

from tests.planning.made_up import CT, MR, make_fingerprint, make_scan
from utils.planning.fingerprint import ScanFacts
from utils.planning.intensities import PERCENTILES, Intensities, looks_like_ct, plan_intensities


def ct(**more: object) -> ScanFacts:
    return make_scan(values=CT, **more)  # type: ignore[arg-type]


def mr(**more: object) -> ScanFacts:
    return make_scan(values=MR, **more)  # type: ignore[arg-type]


def plan(scans: list[ScanFacts], modalities: tuple[str, ...] | None = None) -> Intensities:
    return plan_intensities(make_fingerprint(scans, modalities=modalities))


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [
        (-1024, 3071, True),
        (-2048, 400, True),  # what lies outside of the scanner's circle
        (-8192, 30_000, True),  # metal in 16 bits
        (-1000, -300, False),  # nothing but air
        (0, 4095, False),  # Hounsfield units to which 1024 was added, and MR
        (-200, 300, False),  # clipped to soft tissue
        (-32_768, 32_767, False),
        (-1000, 1e6, False),
    ],
)
def test_what_hounsfield_units_look_like(lowest: float, highest: float, expected: bool) -> None:
    assert looks_like_ct((lowest, 0.0, highest)) is expected


def test_a_ct_has_a_window_around_what_is_labelled() -> None:
    found = plan([ct(labelled=(-100.0, 300.0))] * 4, ("CT",))
    settings = found.choice.settings
    assert found.is_ct
    assert (found.remarks, found.questions) == ((), ())
    # labelled values are spread evenly from -100 to 300: the middles of their half percentiles are -99, -97, …, 299,
    # their mean is 100 and their standard deviation 400 / √12 = 115
    assert (settings["intensity"], settings["a_min"], settings["a_max"]) == ("ct", -97.0, 297.0)
    assert settings["b_min"] == pytest.approx(-197 / 115.5, abs=0.02)
    assert settings["b_max"] == pytest.approx(197 / 115.5, abs=0.02)


def test_each_scan_counts_the_same_in_the_window() -> None:
    settings = plan([ct(labelled=(0.0, 1.0)), ct(labelled=(1000.0, 1001.0))]).choice.settings
    assert (settings["a_min"], settings["a_max"]) == (0.0, 1001.0)
    assert (settings["b_min"], settings["b_max"]) == (-1.0, 1.0)


def test_the_window_is_that_of_the_fingerprint() -> None:
    # 200 middles between quantiles, 1.5, 4.5, 7.5 …: the 0.5 percentile is 0.995 steps above the first
    fingerprint = make_fingerprint([ct(labelled=(0.0, 600.0))])
    settings = plan_intensities(fingerprint).choice.settings
    low, high = (fingerprint.percentile(0, percent) for percent in PERCENTILES)
    assert (low, high) == (pytest.approx(1.5 + 0.995 * 3), pytest.approx(598.5 - 0.995 * 3))
    assert (settings["a_min"], settings["a_max"]) == (round(low), round(high)) == (4, 596)


def test_labels_of_a_single_value_leave_a_window() -> None:
    settings = plan([ct(labelled=(50.0, 50.0))] * 2).choice.settings
    assert (settings["a_min"], settings["a_max"]) == (50.0, 51.0)
    assert float(settings["b_min"]) < float(settings["b_max"])


def test_scans_without_labels_count_for_nothing() -> None:
    settings = plan([ct(labelled=(0.0, 200.0)), ct(structures={})]).choice.settings
    assert (settings["a_min"], settings["a_max"]) == (1.0, 199.0)


def test_an_mr_of_two_channels_is_standardised() -> None:
    found = plan([mr(channels=2)] * 3, ("T1", "FLAIR"))
    assert not found.is_ct
    assert found.choice.settings == {"intensity": "zscore"}
    assert (found.remarks, found.questions) == ((), ())


@pytest.mark.parametrize(
    "names",
    [
        ("CT",),
        ("ct",),
        ("NCCT",),
        ("CTA",),
        ("CBCT",),
        ("4DCT",),
        ("DECT",),
        ("MDCT",),
        ("CT, portal venous",),
        ("Computed Tomography",),
    ],
)
def test_names_of_ct(names: tuple[str, ...]) -> None:
    assert plan([ct()] * 2, names).remarks == ()
    assert len(plan([mr()] * 2, names).remarks) == 1


@pytest.mark.parametrize("names", [("MRI",), ("T2",), ("PET",), ("directional",), ("SPECT",)])
def test_names_of_other_kinds(names: tuple[str, ...]) -> None:
    assert plan([mr()] * 2, names).remarks == ()
    assert len(plan([ct()] * 2, names).remarks) == 1


def test_what_contradicts_the_list_is_said_and_the_values_decide() -> None:
    found = plan([mr(channels=2)] * 3, ("CT", "CT"))
    assert found.choice.settings["intensity"] == "zscore"
    assert found.remarks == (
        "The data list calls the scans CT, but their values have no voxels of air (-1000) as Hounsfield units do. "
        "They are treated as MR or another kind without Hounsfield units.",
    )
    found = plan([ct()] * 3, ("MRI",))
    assert found.choice.settings["intensity"] == "ct"
    assert "calls the scans MRI, but their values look like Hounsfield units" in found.remarks[0]


def test_one_unlike_scan_in_ten_changes_nothing_and_is_named() -> None:
    found = plan([*[ct()] * 9, mr(name="odd")])
    assert found.choice.settings["intensity"] == "ct"
    assert found.questions == ()
    assert found.remarks == (
        "odd: the values do not look like Hounsfield units, and those of the other scans do. One CT window scales all. "
        "Do the scans belong together?",
    )
    found = plan([*[mr()] * 19, ct(name="odd")])
    assert found.choice.settings["intensity"] == "zscore"
    assert found.questions == ()
    assert found.remarks == (
        "odd: the values look like Hounsfield units, and those of the other scans do not. Each scan is standardised by "
        "itself. Do the scans belong together?",
    )


def test_of_many_unlike_scans_a_few_are_named() -> None:
    (remark,) = plan([ct()] * 93 + [mr(name=f"mr{number}") for number in range(7)]).remarks
    assert remark.startswith("mr0, mr1, mr2, mr3, mr4 and 2 more: ")


def test_a_mixture_is_asked_about() -> None:
    found = plan([ct(name=f"ct{n}") for n in range(7)] + [mr(name=f"mr{n}") for n in range(3)])
    assert found.choice.settings["intensity"] == "zscore"
    assert found.questions == (
        "3 of 10 scans (mr0, mr1 and mr2) do not look like CT, and the others do. Do the scans belong together?",
    )


def test_a_pet_beside_the_ct_has_no_common_scale() -> None:
    pair = make_scan(values=CT, channels=2)
    scans = [
        pair.__class__(**{**vars(pair), "quantiles": (pair.quantiles[0], make_scan(values=(0.0, 30.0)).quantiles[0])})
    ]
    found = plan(scans * 2, ("CT", "PET"))
    assert found.choice.settings == {"intensity": "zscore"}
    assert found.remarks == ()

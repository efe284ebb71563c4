"""Whole plans of made-up data sets, whose right plan a person can say."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from networks import NETWORKS
from networks.registry import Architecture, find_architecture
from tests.planning.made_up import MR, Machine, ball, make_fingerprint, make_scan
from tests.test_own_network import FILE as OWN_NETWORK
from utils.checkpoints.description import config_from, preprocessing_from
from utils.config.flags import parse_crossval, parse_train
from utils.config.recipe import write_recipe
from utils.planning.choices import Plan, Value
from utils.planning.costs import PROGRAM_BYTES, step_bytes
from utils.planning.fingerprint import Fingerprint
from utils.planning.grid import SMALLEST_SHARE, VOXELS_ACROSS
from utils.planning.planner import CROPS_FROM_DISK, ENOUGH, FEWEST_STEPS, Budget, Planner
from utils.planning.schedule import START_SECONDS, reading_seconds, windows_of_a_scan
from utils.system.errors import InputError

GB = 1e9
ROOMY = 16 * GB


def plan(
    fingerprint: Fingerprint,
    hours: float | None = 0.5,
    memory: float = ROOMY,
    network: str = "unetr",
    machine: Machine | None = None,
    scans_memory: float | None = None,
) -> Plan:
    budget = Budget(hours, memory, scans_memory)
    return Planner(fingerprint, find_architecture(network), budget, machine or Machine()).plan()


def spacing(settings: dict[str, Value]) -> tuple[float, float, float]:
    return float(settings["space_x"]), float(settings["space_y"]), float(settings["space_z"])


def window(settings: dict[str, Value]) -> tuple[int, int, int]:
    return int(settings["roi_x"]), int(settings["roi_y"]), int(settings["roi_z"])


def words(plan: Plan) -> str:
    return " ".join(choice.reason for section in plan.sections for choice in section.choices)


def ct_of_thick_slices() -> Fingerprint:
    thick = [(60, 5.0)] * 18 + [(100, 3.0)] * 3
    return make_fingerprint([make_scan((512, 512, z), (0.8, 0.8, mm), {1: ball(100.0)}) for z, mm in thick])


def mr_of_two_channels() -> Fingerprint:
    scans = [make_scan((120, 120, 100), (1.0, 1.0, 1.2), values=MR, channels=2)] * 10
    return make_fingerprint(scans, ("background", "tumour"), modalities=("T1", "FLAIR"))


def tiny_structures() -> Fingerprint:
    return make_fingerprint([make_scan((512, 512, 300), (0.5, 0.5, 0.5), {1: ball(4.0)})] * 10)


def large_structures() -> Fingerprint:
    return make_fingerprint([make_scan((512, 512, 200), (0.7, 0.7, 2.0), {1: ball(150.0)})] * 10)


def tiny_scans() -> Fingerprint:
    return make_fingerprint([make_scan((6, 5, 4), (1.0, 1.0, 1.0), {1: ball(3.0)}, values=MR)] * 10)


def single_slices() -> Fingerprint:
    return make_fingerprint([make_scan((128, 128, 1), (1.0, 1.0, 8.0), {1: ball(20.0)}, values=MR)] * 10)


DATA_SETS: dict[str, Callable[[], Fingerprint]] = {
    "thick slices": ct_of_thick_slices,
    "two channels": mr_of_two_channels,
    "tiny structures": tiny_structures,
    "large structures": large_structures,
    "tiny scans": tiny_scans,
    "single slices": single_slices,
}


@pytest.mark.parametrize("hours", [None, 24.0])
def test_a_ct_of_thick_slices_keeps_them(hours: float | None) -> None:
    settings = plan(ct_of_thick_slices(), hours).settings
    x, y, z = spacing(settings)
    assert z == 3.0  # the tenth percentile: three of 21 scans have it
    assert x == y < z
    edges = [edge * mm for edge, mm in zip(window(settings), (x, y, z), strict=True)]
    assert max(edges) < 1.3 * min(edges)  # in mm it is a cube, so that it has fewer voxels along z
    assert settings["intensity"] == "ct"


def test_ten_thick_slices_are_not_padded_to_sixteen() -> None:
    """Hearts: voxels of 1.5 × 1.5 × 10 mm are halved twice in the plane, so that a patch has 4 slices."""
    settings = plan(make_fingerprint([make_scan((200, 200, 10), (1.5, 1.5, 10.0), values=MR)] * 10)).settings
    assert settings["halve_by_spacing"]
    assert window(settings)[2] == 8


def test_an_mr_of_two_channels() -> None:
    found = plan(mr_of_two_channels())
    settings = found.settings
    assert (settings["in_channels"], settings["out_channels"]) == (2, 2)
    assert settings["intensity"] == "zscore"
    assert "a_min" not in settings
    assert (found.remarks, found.questions) == ((), ())


def test_tiny_structures_keep_fine_voxels_though_the_window_holds_little() -> None:
    found = plan(tiny_structures())
    assert spacing(found.settings) == (0.5, 0.5, 0.5)
    held = math.prod(window(found.settings)) / (512 * 512 * 300)
    assert held < SMALLEST_SHARE
    assert f"the thinnest structure has to stay {VOXELS_ACROSS} voxels thick" in words(found)


def test_large_structures_get_coarser_voxels_under_a_small_budget() -> None:
    rich, poor = (plan(large_structures(), hours).settings for hours in (200.0, 0.5))
    x, y, z = spacing(poor)
    assert x == y
    assert 0.7 < spacing(rich)[0] < x
    assert spacing(rich)[2] == 2.0  # the finest axes become coarser first
    assert max(x, y, z) <= 150 / VOXELS_ACROSS
    held = math.prod(edge * mm for edge, mm in zip(window(poor), (x, y, z), strict=True)) / (358.4 * 358.4 * 400)
    assert held > 0.5  # the voxels of the window would hold all of it, but its edges are multiples of 16


def test_one_class() -> None:
    settings = plan(make_fingerprint([make_scan()] * 4, ("background", "liver"))).settings
    assert settings["out_channels"] == 2


def test_labels_with_sides() -> None:
    structures = {1: ball(40.0, (0.3, 0.5, 0.5)), 2: ball(40.0, (0.7, 0.5, 0.5))}
    scans = [make_scan(structures=structures)] * 4
    assert (
        plan(make_fingerprint(scans, ("background", "left kidney", "right kidney"))).settings["flips"] == "left_right"
    )
    found = plan(make_fingerprint(scans, ("background", "left kidney", "liver")))
    assert "flips" not in found.settings
    assert found.settings["RandFlipd_prob"] == 0


def test_labels_without_names_are_asked_for() -> None:
    found = plan(make_fingerprint([make_scan()] * 4, ("background", "label 1"), named=False))
    assert found.settings["RandFlipd_prob"] == 0
    assert len(found.questions) == 1
    assert found.questions[0].startswith("What are the labels called?")


def test_a_structure_that_some_scans_lack_is_asked_about() -> None:
    scans = [make_scan()] * 3 + [make_scan(structures={1: ball(40.0), 2: ball(40.0)})]
    found = plan(make_fingerprint(scans, ("background", "liver", "tumour")))
    assert found.questions == (
        "3 of 4 scans have no tumour. Is it absent there, or was it not drawn? Training takes it to be absent, unless "
        'the entry\'s "not_annotated" names it.',
    )


def test_a_structure_that_was_not_drawn_is_not_asked_about() -> None:
    named = [replace(make_scan(), name="a"), replace(make_scan(structures={1: ball(40.0), 2: ball(40.0)}), name="b")]
    fingerprint = replace(make_fingerprint(named, ("background", "liver", "tumour")), not_annotated={"a": (2,)})
    assert plan(fingerprint).questions == ()


def test_scans_smaller_than_any_window_are_padded_to_one_patch() -> None:
    settings = plan(tiny_scans()).settings
    assert window(settings) == (16, 16, 16)
    assert spacing(settings) == (1.0, 1.0, 1.0)
    assert settings["patch_size"] == 16


def test_mixed_spacings() -> None:
    scans = [make_scan((100, 100, 100), (mm, mm, 2 * mm)) for mm in (0.8, 0.9, 1.0, 1.1, 3.0)]
    assert spacing(plan(make_fingerprint(scans), 24.0).settings) == (1.0, 1.0, 2.0)


def config_bytes(settings: dict[str, Value], network: str) -> float:
    """The memory of a step with these settings."""
    architecture = find_architecture(network)
    fields = {name: value for name, value in settings.items() if name in architecture.flags}
    config = architecture.make_config({**fields, "img_size": window(settings), "spacing": spacing(settings)})
    return step_bytes(architecture, config, int(settings["batch_size"]) * int(settings["crops_per_scan"]))


def scan_bytes(fingerprint: Fingerprint, settings: dict[str, Value]) -> float:
    """All prepared scans, in float32 with labels in 16 bits."""
    voxels = math.prod(length / mm for length, mm in zip(fingerprint.scans[0].body_mm, spacing(settings), strict=True))
    return len(fingerprint.scans) * voxels * (4 * fingerprint.channels + 2)


@pytest.mark.parametrize("hours", [None, 100.0])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_and_the_scans_fit_into_4_gb(network: str, hours: float | None) -> None:
    fingerprint = make_fingerprint([make_scan((160, 160, 160), (1.0, 1.0, 1.0), {1: ball(24.0)}, values=MR)] * 50)
    settings = plan(fingerprint, hours, 4 * GB, network).settings
    kept = 0.0 if "use_normal_dataset" in settings else scan_bytes(fingerprint, settings)
    assert config_bytes(settings, network) + kept <= 4 * GB


def test_more_memory_gives_a_larger_window() -> None:
    little, more = (plan(tiny_structures(), None, memory * GB).settings for memory in (2, 4))
    assert math.prod(window(little)) < math.prod(window(more))


def many_large_scans() -> Fingerprint:
    # at 0.5 mm a scan has 78.6 million voxels, 0.47 GB
    return make_fingerprint([make_scan((512, 512, 300), (0.5, 0.5, 0.5), {1: ball(5.0)})] * 100)


@pytest.mark.parametrize("hours", [None, 24.0])
def test_scans_that_do_not_fit_are_read_again(hours: float | None) -> None:
    settings = plan(many_large_scans(), hours, 8 * GB).settings
    assert settings["use_normal_dataset"] is True
    assert settings["crops_per_scan"] == CROPS_FROM_DISK
    assert config_bytes(settings, "unetr") <= 8 * GB
    roomy = plan(many_large_scans(), hours, 8 * GB, scans_memory=100 * GB).settings  # beside a GPU
    assert "use_normal_dataset" not in roomy
    assert roomy["crops_per_scan"] == 1


def test_scans_beside_a_gpu_take_none_of_its_memory() -> None:
    fingerprint = make_fingerprint([make_scan((160, 160, 160), (1.0, 1.0, 1.0), {1: ball(12.0)}, values=MR)] * 200)
    settings = plan(fingerprint, 100.0, 4 * GB, scans_memory=16 * GB).settings
    assert "use_normal_dataset" not in settings
    assert config_bytes(settings, "unetr") <= 4 * GB < scan_bytes(fingerprint, settings)


@pytest.mark.parametrize("network", NETWORKS)
def test_too_little_memory_for_a_step(network: str) -> None:
    with pytest.raises(InputError, match=rf"^`memory` 0.5: too little for {network}") as raised:
        plan(mr_of_two_channels(), memory=0.5 * GB, network=network)
    advised = float(str(raised.value).split()[-3])
    assert advised > PROGRAM_BYTES / GB
    plan(mr_of_two_channels(), memory=1.2 * advised * GB, network=network)


def seconds_of(fingerprint: Fingerprint, settings: dict[str, Value], machine: Machine) -> float:
    """What the training takes from its start to its end, worked out from the settings alone."""
    crops = int(settings["batch_size"]) * int(settings["crops_per_scan"])
    voxels = math.prod(window(settings))
    steps = int(settings["max_epochs"]) * math.ceil(fingerprint.training / int(settings["batch_size"]))
    reading = sum(reading_seconds(scan.shape, scan.channels + 1) for scan in fingerprint.scans)
    one = reading / len(fingerprint.scans)
    reads = int(settings["batch_size"]) * one if "use_normal_dataset" in settings else 0.0
    shape = [length / mm for length, mm in zip(fingerprint.scans[0].body_mm, spacing(settings), strict=True)]
    windows = windows_of_a_scan((shape[0], shape[1], shape[2]), window(settings)) * fingerprint.validation
    validations = math.ceil(int(settings["max_epochs"]) / int(settings["val_every"]))
    return (
        START_SECONDS
        + reading
        + steps * (machine.seconds * crops * voxels + reads)
        + validations * windows * machine.seconds * voxels / 3
    )


@pytest.mark.parametrize("network", ["unetr", "dynunet"])
@pytest.mark.parametrize("name", DATA_SETS)
def test_half_an_hour_is_used_and_not_exceeded(name: str, network: str) -> None:
    fingerprint, machine = DATA_SETS[name](), Machine(1e-6)
    settings = plan(fingerprint, 0.5, network=network, machine=machine).settings
    assert 0.75 * 1800 < seconds_of(fingerprint, settings, machine) <= 1800
    epochs, warm_up, every = (int(settings[key]) for key in ("max_epochs", "warmup_epochs", "val_every"))
    assert 1 <= warm_up <= 0.1 * epochs + 1
    assert 1 <= every <= epochs
    assert settings["save_checkpoint"] is True


def test_a_slower_machine_gets_a_smaller_window_and_fewest_steps() -> None:
    fast, slow = (plan(mr_of_two_channels(), machine=Machine(seconds)).settings for seconds in (3e-6, 6e-6))
    assert math.prod(window(slow)) < 0.7 * math.prod(window(fast))
    for settings in (fast, slow):
        steps = int(settings["max_epochs"]) * math.ceil(8 / int(settings["batch_size"]))
        assert steps >= 0.98 * ENOUGH * FEWEST_STEPS  # an epoch is never cut


def test_at_the_smallest_window_a_slower_machine_gets_fewer_epochs() -> None:
    fast, slow = (plan(mr_of_two_channels(), machine=Machine(seconds)) for seconds in (5e-4, 1e-3))
    assert window(fast.settings) == window(slow.settings)
    assert int(slow.settings["max_epochs"]) == pytest.approx(int(fast.settings["max_epochs"]) / 2, rel=0.15)
    assert "the smallest, and still the time leaves fewer than" in words(slow)


def test_more_hours_never_make_a_smaller_network_or_window() -> None:
    found = [plan(mr_of_two_channels(), hours, machine=Machine(1e-6)).settings for hours in (0.1, 1.0, 10.0, 200.0)]
    sizes = [(int(one["hidden_size"]), math.prod(window(one))) for one in found]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_more_scans_than_fewest_steps_are_all_seen_once() -> None:
    fingerprint = make_fingerprint([make_scan((64, 64, 64), values=MR)] * 5 + [make_scan((64, 64, 64), values=MR)])
    many = Fingerprint(fingerprint.scans, fingerprint.labels, True, None, training=3 * FEWEST_STEPS, validation=1)
    assert int(plan(many).settings["max_epochs"]) >= 1


def test_hours_too_short_for_an_epoch() -> None:
    with pytest.raises(InputError, match=r"^`hours` 0\.0001: to read all scans .* Give `hours` [\d.]+ or more\.$"):
        plan(mr_of_two_channels(), 0.0001)
    few = mr_of_two_channels()
    many = Fingerprint(few.scans, few.labels, True, None, training=10_000, validation=1)
    with pytest.raises(
        InputError, match=r"^`hours` 0\.5: too short for one pass over the scans, 10000 steps of"
    ) as one:
        plan(many, 0.5, machine=Machine(1e-4))
    plan(many, float(str(one.value).split()[-3]), machine=Machine(1e-4))


def test_a_long_validation_is_remarked_on() -> None:
    structures = {1: ball(8 * 3.3)}  # so that voxels stay below 3.3 mm
    fingerprint = make_fingerprint([make_scan((200, 200, 200), structures=structures, values=MR)] * 2)
    found = plan(fingerprint, 0.05, machine=Machine(1e-4))
    assert (window(found.settings), spacing(found.settings)) == ((16, 16, 16), (3.26, 3.26, 3.26))
    # the scan has 61.3 voxels along each axis, and windows begin at 0, 8, …, 48: 7³ of 16³ · 1e-4 / 3 = 0.137 s, on the
    # grid of times 0.135 s; a step takes 0.416 s
    assert found.settings["max_epochs"] == 228
    assert found.remarks == (
        "A single validation takes about 46 s, and all steps together 95 s. Give more `hours`, or let fewer scans "
        "validate.",
    )
    assert plan(fingerprint, 2.0, machine=Machine(1e-4)).remarks == ()
    assert plan(fingerprint, None).remarks == ()  # nothing was timed


def test_float32_that_was_faster_is_asked_for() -> None:
    assert "noamp" not in plan(mr_of_two_channels()).settings
    found = plan(mr_of_two_channels(), machine=Machine(amp=False))
    assert found.settings["noamp"] is True
    assert "Mixed precision was slower on this machine." in words(found)


def test_nothing_is_timed_without_hours() -> None:
    machine = Machine()
    settings = plan(mr_of_two_channels(), None, machine=machine).settings
    assert machine.calls == 0
    assert int(settings["max_epochs"]) > 100


def train_flags(path: Path, plan: Plan) -> Any:
    """The recipe as ``main.py`` reads it."""
    write_recipe(path, plan, ["Made up"], {"data_dir": "my data", "logdir": "made_up"})
    parse_crossval([f"@{path}"])
    return parse_train([f"@{path}"])


@pytest.mark.parametrize("hours", [None, 0.5])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["two channels", "tiny scans"])
def test_every_network_gets_a_recipe_that_trains(name: str, network: str, hours: float | None, tmp_path: Path) -> None:
    found = plan(DATA_SETS[name](), hours, network=network)
    args = train_flags(tmp_path / "plan.args", found)
    for setting, value in found.settings.items():
        assert getattr(args, setting) == value
    architecture = find_architecture(network)
    config = config_from(architecture, vars(args), preprocessing_from(vars(args)))
    assert config.img_size == window(found.settings)
    assert sum(weights.numel() for weights in built(architecture, config)) > 0


def built(architecture: Architecture, config: Any) -> list[torch.Tensor]:
    with torch.device("meta"):
        return list(architecture.build(config).parameters())


def test_a_network_of_ones_own_needs_no_sizes(tmp_path: Path) -> None:
    file = tmp_path / "mynet.py"
    file.write_text(OWN_NETWORK)
    found = plan(mr_of_two_channels(), network=str(file))
    args = train_flags(tmp_path / "plan.args", found)
    assert args.model_name == str(file)
    assert args.width == 4  # as it is by default
    assert all(edge % 8 == 0 for edge in window(found.settings))


def test_the_same_scans_and_times_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first.args", "second.args"):
        train_flags(tmp_path / name, plan(ct_of_thick_slices()))
    assert (tmp_path / "first.args").read_bytes() == (tmp_path / "second.args").read_bytes()


def test_noise_of_a_measurement_rarely_changes_a_plan() -> None:
    plans = [plan(mr_of_two_channels(), machine=Machine(3e-6 * (1 + n / 10_000))).settings for n in range(5)]
    assert plans[1:] == plans[:-1]


def test_every_setting_has_a_reason() -> None:
    found = plan(ct_of_thick_slices())
    assert all(len(choice.reason) > 10 for section in found.sections for choice in section.choices)


@pytest.mark.parametrize(("scans", "rate"), [(20, 1e-3), (200, 4e-3)])
def test_few_scans_get_a_lower_learning_rate(scans: int, rate: float) -> None:
    found = plan(make_fingerprint([make_scan((60, 60, 60), values=MR)] * scans), 0.5, machine=Machine(1e-6))
    assert found.settings["optim_lr"] == rate
    assert ("Higher ones make the network learn 16 scans" in words(found)) == (rate == 1e-3)

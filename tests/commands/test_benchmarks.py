"""The benchmarks: their peer, their modules, the page that they write, and the ablation."""

import argparse
import ast
import dataclasses
import importlib
import json
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import __main__ as bench
from benchmarks import ablation, confidence, markdown, whole_scan
from benchmarks.emulation import EmulatedBfloat16
from benchmarks.peer import peers_network
from networks.unetr import UNETR, UNETRConfig
from tests.conftest import REPOSITORY
from utils.config.flags import parse_train
from utils.system.errors import InputError, TrainingError

SMALL = UNETRConfig(img_size=(16, 16, 16), hidden_size=12, mlp_dim=12, num_heads=2, feature_size=2)


def test_no_benchmark_modules_import_each_other() -> None:
    imports: dict[str, set[str]] = {}
    for path in (REPOSITORY / "benchmarks").glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))  # imports within functions too
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        names = [f"{node.module}.{alias.name}" for node in froms for alias in node.names]
        imports[path.stem] = {name.split(".")[1] for name in names if name.startswith("benchmarks.")}
    assert "peer" in imports["whole_scan"]
    list(TopologicalSorter(imports).static_order())  # raises CycleError where there is no order


def test_whole_scan_imports_nothing_large() -> None:
    """Its processes begin with its peak memory."""
    code = "import sys, benchmarks.whole_scan; print({'torch', 'monai', 'numpy', 'nibabel'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_whole_scan_times_functions_that_exist() -> None:
    for module, names in whole_scan.PIECES.items():
        for name in names:
            assert callable(getattr(importlib.import_module(module), name))


def test_make_bench_replaces_only_what_it_wrote_on_such_a_machine(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (begin, end), (begin_other, end_other) = bench.marks("AMX"), bench.marks("AVX2")
    others = f"{begin_other}\n\n| 2 |\n\n{end_other}\n{bench.NEXT}\nafter\n"
    page.write_text(f"before\n{begin}\n\nold\n\n{end}\n{others}", encoding="utf-8")
    bench.write_tables(page, "AMX", ["| new |", "\\1"])
    assert page.read_text(encoding="utf-8") == f"before\n{begin}\n\n| new |\n\\1\n\n{end}\n{others}"


def test_make_bench_adds_the_tables_of_another_kind_of_machine(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bench.NEXT}\nafter\n", encoding="utf-8")
    bench.write_tables(page, "AMX", ["| new |"])
    bench.write_tables(page, "AVX2", ["| 2 |"])
    (begin, end), (begin_other, end_other) = bench.marks("AMX"), bench.marks("AVX2")
    assert page.read_text(encoding="utf-8") == (
        f"before\n#### AMX\n\n{begin}\n\n| new |\n\n{end}\n\n"
        f"#### AVX2\n\n{begin_other}\n\n| 2 |\n\n{end_other}\n\n{bench.NEXT}\nafter\n"
    )


@pytest.mark.parametrize("text", ["", bench.NEXT * 2, f"{bench.marks('AMX')[0]}{bench.NEXT}"])
def test_make_bench_writes_to_no_page_without_its_marks(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="must have"):
        bench.write_tables(page, "AMX", ["new"])
    assert page.read_text(encoding="utf-8") == text


def test_the_page_of_make_bench_has_its_mark_once() -> None:
    assert bench.PAGE.read_text(encoding="utf-8").count(bench.NEXT) == 1


def test_the_peer_of_the_reference_network_has_the_size_of_the_paper() -> None:
    """92.58 million parameters in the paper; MONAI's blocks own some more, which no forward pass reads."""
    with torch.device("meta"):
        network = peers_network()
    read = [tensor for name, tensor in network.named_parameters() if "cross_attn" not in name]
    assert sum(tensor.numel() for tensor in read) == pytest.approx(92.58e6, rel=0.01)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_with_our_weights_the_peer_gives_our_logits(deep_supervision: bool) -> None:
    config = dataclasses.replace(SMALL, deep_supervision=deep_supervision, drop_path_rate=0.2)
    torch.manual_seed(0)
    ours = UNETR(config).eval()
    window = torch.randn(1, 1, 16, 16, 16)
    peer = peers_network(dataclasses.asdict(config), ours.state_dict()).eval()
    with torch.inference_mode():
        torch.testing.assert_close(peer(window), ours(window), atol=1e-5, rtol=1e-4)


def test_a_network_that_monai_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="patches of 16 voxels only"):
        peers_network({**dataclasses.asdict(SMALL), "patch_size": 8})


class _Products(TorchDispatchMode):
    """Records the formats of the tensors that convolutions and matrix products get."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind in func.name() for kind in ("conv", "mm", "linear", "matmul")):
            self.formats |= {value.dtype for value in args if isinstance(value, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("inference", [False, True])
def test_emulated_bfloat16_equals_torch_in_bfloat16_and_multiplies_in_float32(inference: bool) -> None:
    """Equal to within the last bits of the format, since the order of sums differs."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv3d(4, 8, 3), nn.ConvTranspose3d(8, 4, 2, 2), nn.Flatten(2), nn.Linear(4**3, 32))
    volume = torch.randn(1, 4, 4, 4, 4)

    def computed() -> list[Tensor]:
        with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
            result = layers(volume)
        if inference:
            return [result]
        return [result.detach(), *torch.autograd.grad(result.square().sum(), list(layers.parameters()))]

    expected = computed()
    with _Products() as products, EmulatedBfloat16():
        found = computed()
    assert products.formats == {torch.float32}
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= 2**-7 * other.abs().max()


def test_emulated_bfloat16_rounds_only_products_of_bfloat16() -> None:
    """1 + 2^-9 is 1 in bfloat16."""
    number, one = torch.tensor([[1 + 2**-9]]), torch.ones(1, 1)
    with EmulatedBfloat16():
        assert (number @ one).item() == 1 + 2**-9
        rounded = one.bfloat16() @ number.bfloat16()
        assert rounded.dtype == torch.bfloat16
        assert rounded.item() == 1


def test_a_markdown_table() -> None:
    assert markdown.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def _run(folder: Path, epochs: int, **flags: object) -> None:
    """Write the files of a run that has trained for ``epochs`` epochs of 3."""
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(
        json.dumps({**vars(parse_train(["--data_dir=scans", "--max_epochs=3"])), **flags})
    )
    (folder / "metrics.jsonl").write_text("{}\n" * epochs)


def test_the_ablation_skips_finished_runs_and_replaces_no_other_run(in_tmp: Path) -> None:
    flags = [f"--data_dir={in_tmp}/scans/", "--max_epochs=3"]
    _run(Path("runs/whole"), 3)
    _run(Path("runs/part"), 2)
    _run(Path("runs/other"), 3, optim_lr=0.5)
    assert ablation.finished("whole", flags)
    _run(Path("runs/as_recorded"), 3, in_channels=1, out_channels=14)
    assert ablation.finished("as_recorded", flags)
    with pytest.raises(InputError, match=r"with other flags \(--out_channels\)"):
        ablation.finished("as_recorded", [*flags, "--out_channels=3"])
    assert not ablation.finished("part", flags)
    assert not ablation.finished("none", flags)
    with pytest.raises(InputError, match=r"runs/other: holds a run with other flags \(--optim_lr\)"):
        ablation.finished("other", flags)


def test_after_a_failure_the_ablation_starts_no_more_runs(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        launched.append(command)
        time.sleep(0.1)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fails)
    monkeypatch.setattr(ablation, "RECIPE", "--data_dir=scans")
    args = argparse.Namespace(options=None, seeds=[0, 1, 2], epochs=6, jobs=2, logdir="ablation", data_dir="scans")
    with pytest.raises(TrainingError, match=r"ablation/\w+_seed0: main.py ended with status 1"):
        ablation.main(args)
    assert len(launched) <= 4


def test_predicted_and_true_dice_are_compared_where_both_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(*pairs: tuple[float | None, float | None]) -> dict[str, Any]:
        organs = zip(("liver", "spleen"), pairs, strict=True)
        return {"labelled": True, "organs": {name: {"predicted_dice": one, "dice": two} for name, (one, two) in organs}}

    scans = [record((0.9, 0.8), (0.5, 0.7)), record((0.8, 0.9), (None, 0.4)), record((0.7, 0.5), (0.6, None))]
    (tmp_path / "measurements.json").write_text(json.dumps({"scans": scans}))
    confidence.main(argparse.Namespace(results=str(tmp_path), plot=str(tmp_path / "plot.png")))
    lines = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()[2:]}
    assert lines["liver"] == "| liver | 3 | 0.800 | 0.733 | 0.50 | 0.133 |"  # off by 0.1, 0.1 and 0.2; ranks 321, 231
    assert lines["all organs"] == "| all organs | 4 | 0.725 | 0.725 | 0.60 | 0.150 |"  # ranks 4321, 3412
    # means of 0.9 and 0.5 with 0.8 and 0.7; then of the liver alone
    assert lines["mean of each scan"] == "| mean of each scan | 3 | 0.733 | 0.717 | 0.87 | 0.117 |"
    assert (tmp_path / "plot.png").stat().st_size > 0
    with pytest.raises(InputError, match="can't be read"):
        confidence.main(argparse.Namespace(results=str(tmp_path / "none"), plot=None))

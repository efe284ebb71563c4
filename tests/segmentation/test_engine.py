"""``test.py --engine``: the masks are those of torch, and processes share the cache."""

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Run
from tests.processes import start_group
from tests.segmentation.conftest import voxels


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of compiled networks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unetr"


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: voxels(path) for path in sorted(folder.glob("*.nii.gz"))}


def test_openvino_gives_torchs_masks(
    run_test: Run, trained: Path, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [f"--data_dir={phantoms}", f"--pretrained_dir={trained}", "--pretrained_model_name=model.pt"]
    run_test([*common, "--output_dir=torch"])
    assert "engine:" not in capsys.readouterr().out
    run_test([*common, "--output_dir=openvino", "--engine=openvino", "--sw_batch_size=3"])
    assert "\nengine: OpenVINO 20" in capsys.readouterr().out
    assert "OpenVINO 20" in Path("openvino/report.html").read_text()
    expected, found = masks(Path("torch")), masks(Path("openvino"))
    assert expected.keys() == found.keys() == {"img0005.nii.gz", "img0006.nii.gz"}
    for name, mask in expected.items():
        assert mask.max() > 0
        assert (mask == found[name]).mean() >= 0.9999
    # a scan that one engine finished is done again by the other alone
    run_test([*common, "--output_dir=openvino", "--engine=openvino"])
    assert "2 of 2 scans were finished before" in capsys.readouterr().out
    run_test([*common, "--output_dir=openvino"])
    assert "finished before" not in capsys.readouterr().out


def test_processes_share_the_cache(run_test: Run, trained: Path, phantoms: Path, in_tmp: Path, cache: Path) -> None:
    common = [f"--data_dir={phantoms}", f"--pretrained_dir={trained}", "--pretrained_model_name=model.pt"]
    environment = {"XDG_CACHE_HOME": str(cache.parent)}
    group = start_group(2, [*common, "--output_dir=two", "--engine=openvino"], program="test", environment=environment)
    assert group.wait() == [0, 0], group.texts
    assert "\nengine: OpenVINO 20" in group.texts[0]
    assert len(list(cache.glob("*.openvino"))) == 1
    run_test([*common, "--output_dir=one"])
    expected, found = masks(Path("one")), masks(Path("two"))
    assert expected.keys() == found.keys()
    for name, mask in expected.items():
        assert (mask == found[name]).mean() >= 0.9999

"""Registered networks: the checks of their configs, and files that define a network of one's own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from networks import NETWORKS, build_network
from networks.registry import (
    ARCHITECTURES,
    NetworkConfig,
    architecture_of,
    file_given,
    find_architecture,
    flag,
    lies_in,
    register,
    value_fault,
)
from networks.unetr import UNETR, UNETRConfig
from utils.system.errors import InputError

HEAD = """
from dataclasses import dataclass, field
from torch import nn
from networks.registry import NetworkConfig, flag, register
from networks.unetr import UNETR, UNETRConfig
"""
NETWORK = """
@dataclass(frozen=True)
class Config{suffix}(NetworkConfig):
    width: int = flag(8, "channels at full resolution", at_least=1)
    rate: float = 0.5
    wide: bool = False

@register("{name}", config=Config{suffix}, window_divisor=lambda config: (4, 2, 1))
class Network{suffix}(nn.Module):
    output_layers = ("head",)
    def __init__(self, config):
        super().__init__()
        self.head = nn.Conv3d(config.in_channels, config.out_channels, config.width)
"""


def defined(name: str = "mine", suffix: str = "") -> str:
    return NETWORK.format(name=name, suffix=suffix)


def written(folder: Path, body: str, name: str = "network.py") -> str:
    (folder / name).write_text(HEAD + body)
    return str(folder / name)


@pytest.mark.parametrize(
    ("settings", "faults"),
    [
        (
            {"in_channels": 0, "num_heads": -2, "norm_name": "layer", "dropout_rate": 1.0, "feature_size": 16},
            [
                "`in_channels` must be at least 1, not 0",
                "`num_heads` must be at least 1, not -2",
                "`dropout_rate` must be at least 0 and below 1, not 1.0",
                "`norm_name` must be one of instance, batch, not 'layer'",
            ],
        ),
        # what needs sound numbers is checked after them
        ({"hidden_size": 10, "num_heads": 4, "img_size": 20}, ["`num_heads` 4 must divide `hidden_size` 10"]),
        ({"img_size": (16, 20, 30)}, ["`img_size` must be multiples of 16 for unetr, not 16 × 20 × 30"]),
        ({"dropout_rate": float("nan")}, ["`dropout_rate` must be at least 0 and below 1, not nan"]),
    ],
)
def test_a_config_names_every_faulty_field(settings: dict[str, object], faults: list[str]) -> None:
    with pytest.raises(ValueError, match="must") as error:
        UNETRConfig(**settings)  # type: ignore[arg-type]
    assert sorted(str(error.value).split("; ")) == sorted(faults)


def test_settings_of_another_network_are_named() -> None:
    with pytest.raises(ValueError, match="not for") as error:
        build_network("segresnet", mlp_dim=8, feature_size=8, depth=3)
    assert str(error.value).split("; ")[::2] == ["`mlp_dim` is not for segresnet", "`depth` is not for segresnet"]


def test_a_config_takes_an_edge_and_lists() -> None:
    """As one types them, and as JSON has them."""
    assert UNETRConfig(img_size=32).img_size == (32, 32, 32)  # type: ignore[arg-type]
    config = NETWORKS["unetr"].make_config({"img_size": [16, 32, 48], "spacing": [1, 1, 2.5]})
    assert config == UNETRConfig(img_size=(16, 32, 48), spacing=(1, 1, 2.5))


@pytest.mark.parametrize(
    ("value", "rules", "fault"),
    [
        (8, {"at_least": 1, "multiple_of": 8}, None),
        (12, {"at_least": 1, "multiple_of": 8}, "must be a multiple of 8, not 12"),
        (0, {"at_least": 1, "multiple_of": 8}, "must be at least 1, not 0"),
        (320, {"at_least": 1, "below": 321}, None),
        (321, {"at_least": 1, "below": 321}, "must be at least 1 and below 321, not 321"),
        (float("inf"), {}, "must be finite, not inf"),
        (-7, {}, None),
        ("batch", {"choices": ("instance", "batch")}, None),
        (True, {"at_least": 5}, None),  # a switch has no bounds
    ],
)
def test_a_value_keeps_the_rules_of_its_flag(value: object, rules: dict[str, object], fault: str | None) -> None:
    assert value_fault(value, rules) == fault


@pytest.mark.parametrize("name", ["unetr", "swin_unetr", "segresnet", "dynunet"])
def test_a_network_knows_what_it_was_built_from(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, out_channels=3)
    assert architecture_of(network) is NETWORKS[name]
    assert type(network.config) is NETWORKS[name].config
    assert network.config.out_channels == 3  # type: ignore[union-attr]
    assert network.config.img_size == (96, 96, 96)  # type: ignore[union-attr]


def test_only_flags_are_flags() -> None:
    assert list(NETWORKS["segresnet"].flags) == ["in_channels", "out_channels", "feature_size"]
    assert "deep_supervision" in NETWORKS["unetr"].flags
    assert NETWORKS["unetr"].types["dropout_rate"] is float


def test_what_a_class_does_not_declare_is_an_error_that_names_both() -> None:
    assert NETWORKS["unetr"].require("parameter_groups", "vit_lr", "given a rate") == {"vit": ("vit",)}
    with pytest.raises(InputError) as error:
        NETWORKS["segresnet"].require("vit_encoder", "vit_weights", "started from a ViT")
    assert str(error.value).startswith(
        "`vit_weights`: segresnet can't be started from a ViT, since its class declares no “vit_encoder”."
    )


def test_a_config_that_does_not_inherit_gets_the_fields_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("networks.registry.NETWORKS", {})

    @dataclass(frozen=True)
    class Alone:
        width: int = flag(8, "channels", at_least=1)

    @register("alone", config=Alone, window_divisor=lambda config: (config.width, 1, 1))
    class Network(nn.Module):
        def __init__(self, config: Alone) -> None:
            super().__init__()

    architecture = next(one for one in ARCHITECTURES.values() if one.name == "alone")
    assert set(architecture.flags) == {"in_channels", "out_channels", "width"}
    config = architecture.make_config({"width": 4, "out_channels": 3, "img_size": (8, 5, 5)})
    assert isinstance(config, Alone)
    assert isinstance(config, NetworkConfig)
    assert (config.width, config.out_channels, config.spacing) == (4, 3, (1.5, 1.5, 2.0))
    assert architecture_of(architecture.build(config)) is architecture
    with pytest.raises(ValueError, match=r"^`in_channels` must be .* not 0; `width` must be at least 1, not 0$"):
        architecture.make_config({"width": 0, "in_channels": 0})
    with pytest.raises(ValueError, match=r"^`img_size` must be multiples of 4 × 1 × 1 for alone, not 6 × 5 × 5$"):
        architecture.make_config({"width": 4, "img_size": (6, 5, 5)})


def test_a_config_must_be_a_dataclass() -> None:
    class Plain:
        width: int = 8

    class Inherits(NetworkConfig):
        width: int = 8

    for config in (Plain, Inherits):
        with pytest.raises(TypeError, match=rf"^{config.__name__}, the config of plain, must be a dataclass$"):
            register("plain", config=config, window_divisor=lambda config: (1, 1, 1))
    assert "plain" not in NETWORKS


def test_a_file_defines_a_network(tmp_path: Path) -> None:
    # a comment of its own, since a program runs a file of the same content once
    path = written(tmp_path, f"{defined()}\n# {tmp_path}\n")
    architecture = find_architecture(path)
    assert architecture.name == "mine"
    assert architecture.file == Path(path)
    assert architecture.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert architecture.declared("output_layers") == ("head",)
    assert list(architecture.flags) == ["in_channels", "out_channels", "width", "rate", "wide"]
    assert "mine" not in NETWORKS
    network = build_network(path, width=3, img_size=(8, 8, 8))
    assert architecture_of(network) is architecture
    assert network.head.weight.shape == (14, 1, 3, 3, 3)  # type: ignore[union-attr]
    assert find_architecture(path) is architecture  # and isn't run twice
    copied = tmp_path / "copy.py"
    copied.write_bytes(Path(path).read_bytes())
    same = find_architecture(str(copied))
    assert same.config is architecture.config  # isn't run again either
    assert same.file == copied


def test_a_file_may_use_the_config_of_another_network(tmp_path: Path) -> None:
    body = (
        '@register("variant", config=UNETRConfig, window_divisor=lambda c: (16,) * 3)\nclass Variant(UNETR):\n    pass'
    )
    architecture = find_architecture(written(tmp_path, body))
    sizes = {"img_size": 16, "feature_size": 2, "hidden_size": 8, "mlp_dim": 8, "num_heads": 2}
    assert architecture_of(architecture.build(architecture.make_config(sizes))).name == "variant"
    assert architecture_of(UNETRConfig()) is NETWORKS["unetr"]
    assert type(build_network("unetr", **sizes)) is UNETR


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "registers 0 networks, and has to register one"),
        (defined("one", "1") + defined("two", "2"), "registers 2 networks, and has to register one"),
        (defined("unetr"), "calls its network unetr, as ours is called. Rename it"),
        ("import no_such_package", "can't be run (ModuleNotFoundError: No module named 'no_such_package')"),
        ("raise ValueError('first\\nsecond')", "can't be run (ValueError: first)"),
        ("def forward(self:", "can't be run (SyntaxError: "),
        (
            defined().replace('flag(8, "channels at full resolution", at_least=1)', "field(default_factory=int)"),
            "its field width must be an int, float, str or bool with a default, to be a flag",
        ),
        (
            defined().replace("rate: float = 0.5", "rate: tuple[int, ...] = (1, 2)\n    mode: int | None = None"),
            "its field rate must be an int, float, str or bool with a default; its field mode must be an int, float,",
        ),
        (
            defined()
            .replace("(frozen=True)", "(frozen=True, kw_only=True)")
            .replace("rate: float = 0.5", "rate: float"),
            "its field rate must be an int, float, str or bool with a default, to be a flag",
        ),
        (
            defined().replace("rate: float = 0.5", "rate: float"),
            "can't be run (TypeError: non-default argument 'rate' follows default argument)",
        ),
        (
            defined().replace("@dataclass(frozen=True)", ""),
            "can't be run (TypeError: Config, the config of mine, must be a dataclass)",
        ),
        (None, "can't be read (No such file or directory)"),
    ],
)
def test_a_file_that_can_not_be_used_is_one_line(tmp_path: Path, body: str | None, words: str) -> None:
    path = str(tmp_path / "network.py") if body is None else written(tmp_path, body)
    before = dict(NETWORKS)
    for _ in range(2):  # a notebook may try again
        with pytest.raises(InputError) as error:
            find_architecture(path)
        assert str(error.value).startswith(f"`model_name` {path}: ")
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    assert before == NETWORKS


def test_the_code_of_a_checkpoint_has_to_be_given_and_be_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, defined("given"))
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    with pytest.raises(InputError) as error:
        file_given("given", "network.py", sha256)
    assert sha256 in str(error.value)
    assert "Give it as `model_name` PATH/network.py" in str(error.value)
    architecture = find_architecture(path)
    assert file_given("given", "network.py", sha256) is architecture
    with pytest.raises(InputError) as error:
        file_given("given", "network.py", "0" * 64)
    assert "0" * 64 in str(error.value)
    assert f"but {path} has SHA-256 {sha256}. Give the file as it was in training." in str(error.value)


def test_a_tensor_lies_in_its_layer_alone() -> None:
    assert lies_in("out.conv.weight", ("vit", "out"))
    assert lies_in("out", ("out",))
    assert not lies_in("outer.weight", ("out",))
    assert not lies_in("decoder.out.weight", ("out",))

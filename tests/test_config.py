"""Settings: presets, overrides, and messages that name the nearest valid key."""

import re

import pytest
import yaml

from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.workflow import cli


@pytest.mark.parametrize("preset", ["quick", "smoke", "isic", "paper"])
def test_every_preset_is_valid_and_complete(preset):
    settings = config.load(preset)
    assert settings["run"] == f"runs/{preset}"
    assert set(settings) - {"preset", "run"} == set(config.read(config.FOLDER / "quick.yaml"))


def test_schema_and_default_preset_list_the_same_keys_each_with_a_comment():
    lines = (config.FOLDER / "quick.yaml").read_text().splitlines()
    keys = [line for line in lines if re.match(r"\w+:", line)]
    assert all("#" in line for line in keys)
    schema = config.read(config.FOLDER / "schema.yaml")
    assert [line.split(":")[0] for line in keys] == list(schema["properties"])


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("imagesize", 64, "did you mean 'image_size'"),
        ("epoch", 3, "did you mean 'epochs'"),
        ("image_size", "large", "must be integer"),
        ("epochs", 0, "must be bigger than or equal to 1"),
        ("mask_mode", "circle", "must be one of"),
        ("networks", ["unet", "unett"], "must be one of"),
    ],
)
def test_wrong_settings_are_named(key, value, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        config.load("quick", {key: value})
    assert key in str(caught.value)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'smoke'"):
        config.load("smok")


def test_overrides_win_and_own_images_choose_the_source():
    settings = config.load("smoke", {"epochs": 7, "images": "there"}, "mine")
    assert (settings["epochs"], settings["source"], settings["run"]) == (7, "folders", "runs/mine")


def test_broken_yaml_is_one_clear_error(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match="not valid YAML"):
        config.read(tmp_path / "bad.yaml")


def test_lists_of_words_from_the_command_line_are_numbers_again():
    settings = config.load("quick", {"seeds": ["3", "4"], "networks": ["unet"]})
    assert settings["seeds"] == [3, 4] and settings["networks"] == ["unet"]


@pytest.mark.parametrize(
    "value",
    [
        "accelerate launch " + "--num_machines 1 " * 9 + "no",
        list(range(99)),
        "no",
        1e-5,
        "",
        True,
        {name: f"/a folder/of {name}" * 9 for name in ("gan", "clinic")},
        {},
        "a: b #c",
    ],
)
def test_a_setting_is_one_line_however_long(value):
    assert "\n" not in cli.one_line(value) and yaml.safe_load(cli.one_line(value)) == value

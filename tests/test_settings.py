"""Settings: one definition, presets, overrides, and messages that name the nearest valid key."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.workflow import cli

FIELDS = {
    group.prefix + name: field
    for group in config.GROUPS.values()
    for name, field in group.model_fields.items()
}
NEUTRAL = set(
    "save_every launch gradient_checkpointing threads job_gpus cells_per_job sample_batch "
    "validate_every validation_samples controlnet_model".split()
)


@pytest.mark.parametrize("preset", config.presets())
def test_every_preset_is_valid_and_states_only_what_it_changes(preset):
    settings = config.load(preset)
    assert settings.run == f"runs/{preset}" and settings.preset == preset
    own = config.read(config.FOLDER / f"{preset}.yaml")
    assert settings.changed() == set(own) and not settings.overrides()
    assert {key: settings.flat()[key] for key in own} == own


def test_every_setting_occurs_once():
    number = sum(len(group.model_fields) for group in config.GROUPS.values())
    assert number == len(FIELDS) == len(config.KEYS)
    own = {*config.GROUPS, "preset", "run"}
    assert own == set(config.Settings.model_fields)
    assert config.read(config.FOLDER / "quick.yaml") == {}  # quick is the fields' defaults


def test_every_setting_has_a_sentence_and_a_valid_default():
    for key, field in FIELDS.items():
        meaning = field.description
        assert meaning[0].isupper() and meaning.endswith(".") and ".." not in meaning, key
        assert not {"judge", "looks", "recogniser"} & set(meaning.lower().split()), key
    for group in config.GROUPS.values():
        assert group.__doc__.endswith(".") and "\n" not in group.__doc__
        assert group(**group().model_dump()) == group()


def test_settings_of_a_group_that_determine_results_leave_out_the_neutral_ones():
    left_out = set()
    for group in config.GROUPS.values():
        values = group().determining()
        assert json.loads(json.dumps(values)) == values
        left_out |= {group.prefix + name for name in set(group.model_fields) - set(values)}
    assert left_out == NEUTRAL
    assert config.load("quick", {"threads": 7}).jobs.determining() == {}
    one, two = config.load().controlnet, config.load("quick", {"controlnet_steps": 3}).controlnet
    assert one.determining() | {"steps": 3} == two.determining() != one.determining()


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("imagesize", 64, "did you mean 'image_size'"),
        ("epoch", 3, "did you mean 'epochs'"),
        ("external", {}, "did you mean 'external_tests'"),
        ("image_size", "large", "it must be an integer, at least 1"),
        (
            "epochs",
            -1,
            "setting 'epochs': -1 is not allowed. Remedy: it must be an integer, at least 0",
        ),
        ("epochs", 2.5, "an integer"),
        ("epochs", True, "an integer"),
        ("lr", 0, "a number, more than 0"),
        ("lr", float("nan"), "a number, more than 0"),
        ("lr", "fast", "a number, more than 0"),
        ("generator_share", 1, "a number, more than 0, less than 1"),
        ("base_reach", 3, "an integer, at least 0, at most 2"),
        ("controlnet_locked", 1, "true or false"),
        ("launch", 3, "text"),
        ("base_patch", 3, "one of 1, 2, 4, 8"),
        ("mask_mode", "circle", "one of paper, real, fitted"),
        ("networks", ["unet", "unett"], "each entry one of unet, unet_imagenet, dcsaunet"),
        ("networks", [], "a list, not empty"),
        ("seeds", [1, 1], "a list, not empty, without repetition"),
        ("seeds", 3, "a list"),
        ("data_shares", [101], "each entry an integer, at least 1, at most 100"),
        ("external_generators", {"real": "x"}, "not real, real_pairs, classical or base"),
        ("external_generators", {"pix2pixhd_mine": "x"}, "not beginning with controlnet or pix2"),
        ("external_generators", {"gan_best": "x"}, "not ending in _best"),
        ("external_generators", {"gan_mixed": "x"}, "_first, _mixed or"),
        ("external_generators", {"gan_seed2": "x"}, "or _seed and a number"),
        ("external_generators", {"Gan": "x"}, "lower-case letters"),
        ("external_generators", ["gan"], "NAME: text"),
        ("external_tests", {"S-test": "x"}, "a letter, then letters"),
    ],
)
def test_wrong_settings_are_named(key, value, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        config.load("quick", {key: value})
    assert key in str(caught.value) and str(caught.value).startswith("command line")


@pytest.mark.parametrize(
    "overrides, key, said",
    [
        (
            {"image_size": 66, "methods": ["controlnet"], "base_model": ""},
            "image_size",
            "multiple of 4 for base_patch",
        ),
        (
            {"base_model": "", "base_attention": [True]},
            "base_attention",
            "3 long, as base_channels",
        ),
        ({"base_model": "", "base_channels": [48, 64, 90]}, "base_channels", "multiples of 8"),
        ({"base_model": "", "base_text_width": 66}, "base_text_width", "a multiple of 4"),
        (
            {"base_model": "", "base_text_pooled": True, "base_text_width": 96},
            "base_text_width",
            "a multiple of 64 where base_text_pooled is set",
        ),
        ({"base_model": "", "base_latent_channels": 49}, "base_latent_channels", "at most 48"),
        ({"image_size": 72}, "image_size", "multiple of 16 for the base small"),
        (
            {"image_size": 68, "base_model": ""},
            "image_size",
            "16, 24, ... for pix2pixhd_downsample",
        ),
        ({"pix2pixhd_downsample": 6}, "image_size", "128, 192, ..."),  # one pixel is too few
        ({"pix2pixhd_downsample": 5, "pix2pixhd_enhancers": 1}, "image_size", "128, 192, ..."),
        ({"pix2pixhd_channels": 9, "pix2pixhd_enhancers": 1}, "pix2pixhd_channels", "of 2"),
        ({"segmentation_size": 40}, "segmentation_size", "16 for the levels of unet_decoder"),
        ({"unet_decoder": [64] * 6}, "segmentation_size", "64 for the levels of unet_decoder"),
        (
            {"networks": ["dcsaunet"], "segmentation_size": 40},
            "segmentation_size",
            "16 for dcsaunet",
        ),
        ({"reference_size": 40}, "reference_size", "16 for the levels of reference_decoder"),
    ],
)
def test_settings_that_do_not_suit_one_another_are_named(overrides, key, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        config.load("quick", overrides)
    assert f"setting '{key}'" in str(caught.value) and "does not fit" in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {"image_size": 68, "methods": ["controlnet"], "base_model": ""},  # no Pix2PixHD halves it
        {"base_model": "a/b", "base_attention": [True]},  # of a small base only
        {"networks": ["unet"], "segmentation_size": 40, "unet_decoder": [64, 32, 16]},
        {"networks": ["dcsaunet"], "segmentation_size": 48, "unet_decoder": [64] * 6},
        {"guidance": 3, "external_generators": {"gan": "/x"}, "external_tests": {"ham.2": "/y"}},
    ],
)
def test_what_suits_is_accepted(overrides):
    flat = config.load("quick", overrides).flat()
    assert {key: flat[key] for key in overrides} == overrides


def test_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'smoke'"):
        config.load("smok")


def test_overrides_win_and_own_images_choose_the_source():
    settings = config.load("smoke", {"epochs": 7, "images": "there"}, "mine")
    assert (settings.segmentation.epochs, settings.data.source) == (7, "folders")
    assert settings.run == "runs/mine"
    assert config.load("smoke", {"images": "x", "source": "ph2"}).data.source == "ph2"


def test_flat_settings_and_overrides_make_the_same_settings_again():
    settings = config.load("smoke", {"epochs": 7, "seeds": [0], "guidance": 3}, "mine")
    assert settings.overrides() == {"epochs": 7, "guidance": 3}  # smoke has one seed anyway
    assert config.load("smoke", settings.overrides(), "mine") == settings
    flat = settings.flat()
    assert list(flat) == [*FIELDS, "preset", "run"]
    assert (flat["epochs"], flat["preset"], flat["run"]) == (7, "smoke", "runs/mine")
    assert yaml.safe_load(yaml.safe_dump(flat)) == flat == json.loads(json.dumps(flat))
    given = {key: value for key, value in flat.items() if key in FIELDS}
    assert config.load("quick", given).flat() | {"preset": "smoke", "run": "runs/mine"} == flat
    assert settings.changed() >= {"epochs", "guidance", "seeds"}


def test_settings_cannot_be_changed():
    settings = config.load()
    with pytest.raises(ValidationError):
        settings.base.steps = 3
    with pytest.raises(ValidationError):
        settings.base = config.Base(steps=3)


def test_a_table_of_groups_marks_what_is_changed():
    rows = config.table(["controlnet", "classifier"], config.load("quick", {"controlnet_lr": 0.1}))
    assert {row[0] for row in rows if row[3]} == {"controlnet_lr"}
    number = len(config.ControlNet.model_fields) + len(config.Classifier.model_fields)
    assert len(rows) == number
    meaning = config.ControlNet.model_fields["lr"].description
    assert ("controlnet_lr", 0.1, meaning, True) in rows


def test_help_lists_every_setting(capsys):
    assert cli.main(["--help-settings"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) | {"preset": "quick", "run": "runs/quick"} == config.load().flat()
    words = " ".join(text.replace("#", " ").split())
    assert all(" ".join(field.description.split()) in words for field in FIELDS.values())
    assert "pixels; an integer, at least 1 image_size: 64" in words
    assert max(map(len, text.splitlines())) <= 100


def test_printed_settings_are_yaml_and_errors_one_line():
    command = [sys.executable, "-m", "lesionlib.engine.settings"]
    text = subprocess.check_output([*command, "smoke"], text=True)
    assert yaml.safe_load(text) == config.load("smoke").flat()
    failed = subprocess.run([*command, "smok"], capture_output=True, text=True)
    assert failed.returncode == 1 and "did you mean 'smoke'" in failed.stderr
    heavy = "import sys, lesionlib.engine.settings; print({'torch', 'pandas'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", heavy], text=True) == "set()\n"


def test_broken_yaml_is_one_clear_error(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match="not valid YAML"):
        config.read(tmp_path / "bad.yaml")


def test_a_wrong_preset_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "FOLDER", tmp_path)
    (tmp_path / "own.yaml").write_text("epochs: many\n")
    with pytest.raises(InputError, match=r"own\.yaml: setting 'epochs': 'many'"):
        config.load("own")


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("split", "2024_01_05", "2024_01_05"),
        ("table", "001", "001"),
        ("images", "/ümlaut #1/{b}", "/ümlaut #1/{b}"),
        ("precision", "no", "no"),
        ("launch", "a: b", "a: b"),
        ("lr", "1e-3", 0.001),
        ("epochs", "20", 20),
        ("seeds", "[0, 1]", [0, 1]),
        ("augment_scale", "[5e-1, 2]", [0.5, 2]),
        ("base_finetune", "yes", True),
        ("external_tests", "{a: /b}", {"a": "/b"}),
    ],
)
def test_a_value_on_the_command_line_survives(key, text, value):
    assert cli.overrides(cli.parser().parse_args(["--config", f"{key}={text}"]))[key] == value


def test_a_list_that_is_broken_off_is_one_clear_error():
    with pytest.raises(InputError, match="it must be a list, not empty"):
        config.from_text("seeds", "[0,1")


@pytest.mark.parametrize(
    "given", [{"images": "x", "source": "phantom"}, {"isic_root": "x"}, {"invert_masks": True}]
)
def test_folders_that_the_source_would_ignore_are_an_error(given):
    with pytest.raises(InputError, match="setting 'source': phantom does not fit"):
        config.load("smoke", given)


def test_an_official_split_needs_a_source_that_has_one():
    with pytest.raises(InputError, match="grouped for a source without official parts"):
        config.load("smoke", {"split": "official"})
    assert config.load("smoke", {"split": "official", "source": "isic"}).data.split == "official"


def test_own_images_do_not_get_the_masks_of_the_preset():
    data = config.load("isic", {"images": "x"}).data
    assert (data.images, data.masks, data.table) == ("x", "", "")


def test_the_command_line_gives_flat_overrides():
    options, rest = cli.parser().parse_known_args(
        "--synthetic gan=/g --external ham=/i:/m --config epochs=3 precision=no --images /x "
        "--config lr=0.1 -n".split()
    )
    given = cli.overrides(options)
    assert given == {
        "epochs": 3,
        "precision": "no",
        "lr": 0.1,
        "external_generators": {"gan": "/g"},
        "external_tests": {"ham": "/i:/m"},
        "images": "/x",
        "source": "folders",
    }
    assert rest == ["-n"] and options.name == "" and set(given) <= set(config.KEYS)


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
    assert "\n" not in config.one_line(value) and yaml.safe_load(config.one_line(value)) == value


def test_the_pages_in_the_docs_are_those_of_the_settings():
    folder = config.ROOT / "docs" / "settings"
    assert {path.name: path.read_text() for path in folder.iterdir()} == config.docs()
    every = "".join(config.docs().values())
    assert all(f"\n{name}: " in every for name in config.KEYS)

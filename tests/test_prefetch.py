"""What is fetched beforehand, and what is said where it cannot be had."""

import diffusers
import pytest

from lesionlib.data import download
from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.workflow import cli, prefetch


def test_what_is_due_follows_the_settings(tmp_path):
    assert prefetch.due(config.load("quick")) == []
    paper = [function.__name__ for function, _ in prefetch.due(config.load("paper"))]
    assert paper == ["isic", "base_model", "torchvision_weights"]
    own = config.load("quick", {"features": "inception"})
    assert [arguments[0] for _, arguments in prefetch.due(own)] == ["Inception_V3_Weights"]


def test_all_of_it_is_asked_for(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(download, "main", lambda arguments: asked.append(arguments) or 0)
    monkeypatch.setattr(
        diffusers.StableDiffusionPipeline,
        "download",
        lambda name, **options: asked.append(name) or "/cache",
    )
    arguments = ["--preset", "paper", "--prefetch", "--config", "pix2pixhd_vgg=off"]
    assert cli.main(arguments) == 0
    assert asked[0][0].endswith("data/isic") and asked[1] == config.load("paper").base.model
    assert "2 fetched; the run needs no network now" in capsys.readouterr().out


def test_a_directory_needs_no_network_and_a_missing_model_is_named(tmp_path, monkeypatch):
    assert prefetch.base_model(str(tmp_path)).endswith("a directory")

    def fails(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "download", fails)
    with pytest.raises(InputError, match=r"base_model: a/b: the hub did not give it \(no network"):
        prefetch.base_model("a/b")
    monkeypatch.setattr(download, "main", lambda arguments: 2)
    with pytest.raises(InputError, match="ISIC is not complete"):
        prefetch.isic(tmp_path)

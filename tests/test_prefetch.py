"""The prefetch: what it downloads, and its errors without a network."""

import diffusers
import pytest

from lesionlib.data import download
from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.workflow import cli, prefetch


def test_downloads_follow_the_settings(tmp_path):
    assert prefetch.downloads(config.load("quick")) == []
    paper = [function.__name__ for function, _ in prefetch.downloads(config.load("paper"))]
    assert paper == ["fetch_isic", "fetch_base_model", "fetch_torchvision_weights"]
    own = config.load("quick", {"features": "inception"})
    assert [arguments[0] for _, arguments in prefetch.downloads(own)] == ["Inception_V3_Weights"]


def test_everything_is_requested(monkeypatch, capsys):
    requested = []
    monkeypatch.setattr(download, "main", lambda arguments: requested.append(arguments) or 0)
    monkeypatch.setattr(
        diffusers.StableDiffusionPipeline,
        "download",
        lambda name, **options: requested.append(name) or "/cache",
    )
    arguments = ["--preset", "paper", "--prefetch", "--config", "pix2pixhd_vgg=off"]
    assert cli.main(arguments) == 0
    assert requested[0][0].endswith("data/isic") and requested[1] == config.load("paper").base.model
    assert "2 fetched; the run needs no network now" in capsys.readouterr().out


def test_a_directory_needs_no_network_and_a_missing_model_is_named(tmp_path, monkeypatch):
    assert prefetch.fetch_base_model(str(tmp_path)).endswith("a directory")

    def fails(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "download", fails)
    with pytest.raises(
        InputError, match=r"base_model: a/b: it could not be downloaded from the hub \(no network"
    ):
        prefetch.fetch_base_model("a/b")
    monkeypatch.setattr(download, "main", lambda arguments: 2)
    with pytest.raises(InputError, match="ISIC is not complete"):
        prefetch.fetch_isic(tmp_path)

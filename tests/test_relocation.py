"""Which stages of a run that comes from elsewhere are executed again."""

import shutil

import pytest

from lesionlib.data import catalogue
from lesionlib.engine import settings as config
from lesionlib.engine.artefacts import stage_key
from lesionlib.engine.files import write_json
from lesionlib.workflow import relocation


def load(run, **given):
    return config.load("smoke", given).model_copy(update={"run": str(run)})


@pytest.fixture
def run(tmp_path):
    """A run with records of some stages and shares of the grid, 99 of them too many."""
    settings = load(tmp_path / "one")
    for name in ("01_data", "03_controlnet", "06_segmentation-02", "06_segmentation-99"):
        stage = name.partition("-")[0]
        facts = {"key": stage_key(stage, settings), "files": catalogue.files_read(stage, settings)}
        write_json(tmp_path / "one" / "logs" / f"{name}.json", facts)
    (tmp_path / "one" / "logs" / "05_image_quality.json").touch()  # it was killed
    return tmp_path / "one"


def test_what_reads_a_changed_setting_is_outdated_and_nothing_else(run):
    assert relocation.outdated_rules(load(run)) == []
    assert relocation.outdated_rules(load(run, ddim_steps=9)) == ["controlnet"]
    assert relocation.outdated_rules(load(run, most_steps=9)) == ["segmentation_02"]
    every = ["data", "controlnet", "segmentation_02"]
    assert relocation.outdated_rules(load(run, image_size=64)) == every


def test_a_changed_image_outdates_what_reads_it_and_copying_the_images_does_not(tmp_path):
    images = tmp_path / "given" / "images"
    images.mkdir(parents=True)
    (images / "a.png").write_bytes(b"image")
    given = {"source": "folders", "images": str(images), "masks": str(images)}
    settings = load(tmp_path / "run", **given)
    record = {"key": stage_key("01_data", settings)}
    record["files"] = catalogue.files_read("01_data", settings)
    write_json(tmp_path / "run" / "logs" / "01_data.json", record)
    shutil.copytree(images, tmp_path / "copy")
    shutil.rmtree(images)
    shutil.copytree(tmp_path / "copy", images)
    assert relocation.outdated_rules(settings) == []
    (images / "a.png").write_bytes(b"other")
    assert relocation.outdated_rules(settings) == ["data"]


def test_a_run_is_known_where_it_was_up_to_date(run, monkeypatch, tmp_path):
    monkeypatch.setattr(relocation, "ROOT", tmp_path)
    (tmp_path / ".snakemake").mkdir()
    relocation.settle(load(run, ddim_steps=9))
    assert not relocation.is_known(run)
    relocation.settle(load(run))
    assert relocation.is_known(run)
    moved = run.rename(tmp_path / "two")
    assert not relocation.is_known(moved)
    moved.rename(run)
    (tmp_path / ".snakemake").rmdir()
    assert not relocation.is_known(run)


def test_rules_are_executed_beside_those_that_were_named():
    forcing = relocation.forcing
    assert forcing(["s", "-n"], []) == ["s", "-n"]
    assert forcing(["s", "-n"], ["data"]) == ["s", "-n", "--forcerun", "data"]
    assert forcing(["s", "-R", "masks", "-n"], ["data"]) == ["s", "-R", "data", "masks", "-n"]
    assert forcing(["s", "--forcerun=a"], ["data"]) == ["s", "--forcerun", "a", "data"]

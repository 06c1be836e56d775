"""What a start says if it is not the same command as the one before."""

import pytest

from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.workflow import cli, continuation


def load(run, preset="smoke", **given):
    return config.load(preset, given).model_copy(update={"run": str(run)})


def test_the_same_command_is_silent_and_another_setting_is_said(tmp_path):
    assert continuation.changes(load(tmp_path)) == ""  # there was no start before
    continuation.keep(load(tmp_path, seeds=[0, 1], images=str(tmp_path / "ü")))
    assert continuation.changes(load(tmp_path, seeds=[0, 1], images=str(tmp_path / "ü"))) == ""
    said = continuation.changes(load(tmp_path, ddim_steps=5))
    assert said.startswith(f"settings differ from the last start of {tmp_path}: ")
    assert "seeds is [0], was [0, 1]" in said and 'source is "phantom", was "folders"' in said
    assert "ddim_steps is 5, was 4" in said and "most_steps" not in said


def test_a_renamed_run_and_a_setting_that_is_new_are_no_change(tmp_path):
    continuation.keep(load(tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "two")
    assert continuation.changes(load(tmp_path / "two")) == ""
    path = tmp_path / "two" / ".settings.json"
    path.write_text(path.read_text().replace('"ddim_steps"', '"of_an_older_version"'))
    assert continuation.changes(load(tmp_path / "two")) == ""


def test_another_preset_in_the_folder_of_a_run_is_refused(tmp_path, monkeypatch, capsys):
    continuation.keep(load(tmp_path, "quick"))
    wanted = load(tmp_path, "smoke")
    with pytest.raises(InputError, match="it is a run of the preset quick, not of smoke"):
        continuation.changes(wanted)
    monkeypatch.setattr(cli.processes, "run", None)  # would fail if it were called
    monkeypatch.setattr(cli.config, "load", lambda *_: wanted)
    assert cli.main(["--preset", "smoke"]) == 2
    assert "give --preset quick, or with --name another folder" in capsys.readouterr().err

"""The settings of a run: a preset, then what the user overrides, checked against a schema.

`python -m lesionlib.engine.settings PRESET` prints a preset's settings as YAML, for `papermill -f`.
"""

import difflib
import sys

import fastjsonschema
import yaml

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT

FOLDER = ROOT / "config"


def read(path) -> dict:
    """One YAML file of settings; raises InputError if it is not a mapping."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(path, f"not valid YAML ({error})", "correct the file") from error
    if not isinstance(values, dict):
        raise InputError(path, "not a list of `key: value` lines", "correct the file")
    return values


def presets() -> list[str]:
    """Names of the presets in config/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "schema")


def nearest(word: str, valid) -> str:
    """The valid word that is spelt most like `word`."""
    found = difflib.get_close_matches(str(word), list(valid), n=1, cutoff=0.0)
    return found[0] if found else "nothing"


def check(values: dict, where) -> dict:
    """Return `values` if every key and type is right; raises InputError that names the key."""
    schema = read(FOLDER / "schema.yaml")
    for key in values:
        if key not in schema["properties"]:
            raise InputError(
                where,
                f"unknown setting '{key}'",
                f"did you mean '{nearest(key, schema['properties'])}'? "
                "All settings stand in config/quick.yaml",
            )
    for key, value in values.items():
        try:
            fastjsonschema.validate(schema["properties"][key], value)
        except fastjsonschema.JsonSchemaValueException as error:
            raise InputError(
                where,
                f"setting '{key}': {error.message.replace('data', repr(value), 1)}",
                "config/quick.yaml says what is allowed",
            ) from error
    return values


def typed(value):
    """Lists arrive from Snakemake's command line as lists of words: 1 and true are no words."""
    if isinstance(value, list):
        return [yaml.safe_load(item) if isinstance(item, str) else item for item in value]
    return value


def load(preset: str = "quick", overrides: dict | None = None, name: str = "") -> dict:
    """All settings of a run, with `preset` and `run` (its folder, runs/NAME) added.

    Raises InputError for an unknown preset, key or value, naming the nearest valid one.
    """
    if preset not in presets():
        raise InputError(
            f"preset '{preset}'",
            "there is no such preset",
            f"did you mean '{nearest(preset, presets())}'? There are: {', '.join(presets())}",
        )
    values = check(read(FOLDER / "quick.yaml"), FOLDER / "quick.yaml")
    if preset != "quick":
        own = FOLDER / f"{preset}.yaml"
        values |= check(read(own), own)
    values |= check({k: typed(v) for k, v in (overrides or {}).items()}, "command line")
    if overrides and "images" in overrides and "source" not in overrides:
        values["source"] = "folders"
    return values | {"preset": preset, "run": f"runs/{name or preset}"}


if __name__ == "__main__":
    try:
        yaml.safe_dump(load(*sys.argv[1:2]), sys.stdout, sort_keys=False)
    except InputError as problem:
        sys.exit(f"config: {problem}")

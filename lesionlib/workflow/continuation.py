"""What a start of a run changes against the start before it.

The same command continues a run. Another preset in its folder, or an option that was left out,
would make anew what took hours: the first is refused, the second is said.
"""

import json
from functools import partial
from pathlib import Path

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json, resolve, write_json
from lesionlib.engine.settings import Settings


def _file(settings: Settings) -> Path:
    return resolve(settings.run) / ".settings.json"


def _flat(settings: Settings) -> dict:
    return json.loads(json.dumps(settings.flat(), default=str))  # as it is read back


def keep(settings: Settings):
    """Keep the settings of a start."""
    write_json(_file(settings), _flat(settings))


def changes(settings: Settings) -> str:
    """A sentence on the settings that differ from those of the start before, or ''.

    Raises InputError if that had another preset.
    """
    before, now = read_json(_file(settings), {}), _flat(settings)
    if before.get("preset", now["preset"]) != now["preset"]:
        raise InputError(
            settings.run,
            f"it is a run of the preset {before['preset']}, not of {now['preset']}",
            f"give --preset {before['preset']}, or with --name another folder",
        )
    differing = [key for key in now if key in before and before[key] != now[key] and key != "run"]
    if not differing:
        return ""
    values = (f"{key} is {_text(now[key])}, was {_text(before[key])}" for key in differing)
    return f"settings differ from the last start of {settings.run}: {'; '.join(values)}"


_text = partial(json.dumps, ensure_ascii=False)

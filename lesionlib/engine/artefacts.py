"""When a result is remade: when, and only when, something that determines its bytes has changed.

One rule for arrays, weights, image sets, cells and tables. An `Artefact` names the functions that
make it, the settings that it reads and the digests of its inputs; the three are its key, which is
kept in the record beside the file. It is current while the record holds this key and the file is
intact.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lesionlib.engine.code import code_digests, notebook_digest
from lesionlib.engine.files import ROOT
from lesionlib.engine.provenance import digest, record, recorded
from lesionlib.engine.stages import STAGES


@dataclass(frozen=True)
class Artefact:
    """A file of a run and what determines it.

    `code`: the functions that make it, or their names (`code.code_name`); `settings`: what they
    read, JSON-able; `inputs`: digests of the bytes that go in, by the path in the run or by another
    descriptive name.
    """

    path: Path
    code: tuple
    settings: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)

    @cached_property
    def key(self) -> dict:
        """All that determines the bytes, as it is written to the record."""
        found = {"code": code_digests(*self.code), "settings": self.settings, "inputs": self.inputs}
        return json.loads(json.dumps(found, default=str))  # as it will be read back

    @property
    def digest(self) -> str:
        """The key as one short digest, for file names."""
        return digest(self.key)

    def is_current(self) -> bool:
        """Whether the file is there, intact, and made by this code from these inputs."""
        return Path(self.path).exists() and recorded(self.path).get("key") == self.key

    def record(self, **facts):
        """Write the record once the file is complete; `facts` are added, but are not in the key."""
        record(self.path, key=self.key, **facts)


def stage_key(stage: str, settings) -> dict:
    """What determines the results of a stage besides its inputs: its notebook's code, and the
    settings of the groups that it reads (`settings` has them as attributes)."""
    name = f"notebooks/{stage}.ipynb"
    groups = {group: getattr(settings, group).model_dump(mode="json") for group in STAGES[stage]}
    return {"code": {name: notebook_digest(ROOT / name)}, "settings": groups}


def changed(key: dict) -> list[str]:
    """Names of the code in a key (functions, notebooks) that has changed since."""
    outdated = []
    for name, known in key.get("code", {}).items():
        try:
            notebook = name.endswith(".ipynb")
            now = notebook_digest(ROOT / name) if notebook else code_digests(name)[name]
        except (ImportError, OSError):
            now = None
        outdated += [name] if now != known else []
    return outdated

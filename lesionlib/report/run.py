"""The interface of notebooks to a run: settings and data, tables, figures and the answer.

run = Run("05_image_quality", run, preset, overrides)
run.show_settings()
test = run.study.part("S-test")
run.table("image_quality", frame)
run.figure(fig, "image_quality", "Boxes: quartiles")
run.say("SSIM is 0.51.")
run.answer("...")
"""

from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from lesionlib import evaluation, generators, masks, segmentation
from lesionlib.data import dataset, external_tests
from lesionlib.engine import settings
from lesionlib.engine.artefacts import Artefact, stage_key
from lesionlib.engine.errors import InputError, require
from lesionlib.engine.files import resolve, unescaped, write_csv
from lesionlib.engine.provenance import digest, header, record
from lesionlib.engine.stages import STAGES
from lesionlib.report import notebooks, plots


class Run:
    """A run from the point of view of one stage.

    `stage` is the notebook's name; `run` the folder of the run, relative to the repository or
    absolute; `overrides` flat settings ({"epochs": 20}) that differ from the preset's. With `whole`
    False (a share of the grid) tables and figures are shown, but not written. InputError for an
    unknown preset, setting or value.
    """

    def __init__(self, stage, run="runs/quick", preset="quick", overrides=None, whole=True):
        self.stage, self.whole = stage, whole
        self.name = run.name if isinstance(run, Run) else str(run)  # a cell may be run again
        self.folder: Path = resolve(self.name)
        self.preset, self._all = preset, settings.load(preset, overrides, groups=STAGES[stage])
        self.settings = _Groups({name: getattr(self._all, name) for name in STAGES[stage]}, stage)
        print(f"preset {preset} · {header(self.name)}")

    def show_settings(self):
        """Display this stage's settings: value, meaning, and what differs from `quick`."""
        rows = settings.table(STAGES[self.stage], self._all)
        frame = pd.DataFrame(rows, columns=["setting", "value", "meaning", "changed"])
        different = frame["setting"][frame["changed"]]
        frame["changed"] = frame["changed"].map({True: "differs from quick", False: ""})
        plots.table(frame)
        said = f"None of these {len(frame)} settings differs from `quick`."
        if len(different):
            names = ", ".join(f"`{name}`" for name in different)
            said = f"Of these {len(frame)} settings, {len(different)} differ from `quick`: {names}."
        self.say(said)

    def path(self, *parts) -> Path:
        """A path in the run's folder."""
        return self.folder.joinpath(*parts)

    @cached_property
    def study(self) -> dataset.Study:
        """Images, masks and labels; InputError if notebook 01 has not been run."""
        return dataset.load(self.folder)

    def conditions(self):
        """Masks (n, S, S), prompts and fingerprint of the synthetic pairs; needs notebook 02."""
        return masks.conditions.load(self.folder)

    def images(self, name: str):
        """Images (n, S, S, 3), masks (n, S, S), fingerprint of a set, such as "generated/base"."""
        path = self.path(name)
        return generators.sets.load(path, generators.sets.source_notebook(path.name))

    def repeats(self, method: str) -> dict:
        """Images (n, S, S, 3) of S-test's masks by generator seed; an external generator's is 0."""
        seeds, own = self.settings.training.generator_seeds, self.settings.design.methods
        names = segmentation.grid.repeats(method, seeds) if method in own else {0: method}
        return {seed: self.images(f"generated/{name}")[0] for seed, name in names.items()}

    def further_seeds(self) -> list[str]:
        """Names of the sets that further generator seeds have generated."""
        seeds, own = self.settings.training.generator_seeds, self.settings.design.methods
        every = (segmentation.grid.repeats(method, seeds) for method in own)
        return [name for names in every for name in list(names.values())[1:]]

    def pairs(self, name: str) -> generators.sets.Pairs:
        """The synthetic pairs `name`; InputError if they leak held-out data (`leakage`)."""
        pairs = generators.sets.load_pairs(self.folder, name)
        evaluation.leakage.check_synthetic(name, pairs.masks, pairs.facts, self.study)
        return pairs

    def remark(self, method: str) -> str:
        """The remark on a method in tables, or ''."""
        return generators.sets.remark(self.folder, method)

    def test_sets(self) -> dict:
        """Images, masks at their own resolution and ids of S-test and the further test sets."""
        test, path = self.study.part("S-test"), self.path("data", "originals.npz")
        found = {
            "S-test": (test.images, dataset.originals(path, test.table["id"]), test.table["id"])
        }
        names = self.settings.data.external_tests
        return found | {name: external_tests.load(self.folder, name) for name in names}

    @cached_property
    def segmenter(self):
        """The reference segmenter; InputError if notebook 02 has not trained it."""
        return segmentation.reference.load(self.folder)

    @cached_property
    def facts(self) -> dict:
        """Additions to the records of this run's artefacts."""
        return {"preset": self.preset, "data": self.study.fingerprint}

    def table(self, name: str, frame: pd.DataFrame, show=None, precision: int = 3, **facts):
        """Write tables/NAME.csv with its record; with `show` (True, or columns) display it too."""
        if self.whole:
            path = self.path("tables", f"{name}.csv")
            write_csv(path, frame)
            record(path, key=self._key, preset=self.preset, **facts)
        if show is not None:
            self.show(frame if show is True else frame[[c for c in show if c in frame]], precision)

    @cached_property
    def _key(self) -> dict:
        return stage_key(self.stage, self._all)

    def show(self, frame: pd.DataFrame, precision: int = 3):
        """Display a table; cells are shown as text, never as markup."""
        plots.table(frame, precision)

    def read(self, name: str, stage: str) -> pd.DataFrame:
        """A table that an earlier stage has written; InputError names the notebook to run."""
        path = require(self.path("tables", f"{name}.csv"), stage)
        return unescaped(pd.read_csv(path, dtype={"id": str}))

    def figure(self, fig, name: str, note: str = ""):
        """Display a figure with its note and write figures/NAME.png (see `plots.show`)."""
        plots.show(fig, self.folder if self.whole else None, name, note)

    def say(self, *sentences: str):
        """Display sentences that read a result (Markdown): several as a list, empty ones not."""
        notebooks.say([one for one in sentences if one])

    def answer(self, text: str):
        """Display the answer to the notebook's question (Markdown)."""
        notebooks.answer(text)

    @staticmethod
    def digest(*values) -> str:
        """A short SHA-256 of what goes into an artefact: arrays, bytes, or JSON-able values."""
        return digest(*values)

    def artefact(self, path, *code, settings=None, inputs=None) -> Artefact:
        """An artefact of this run (`engine.artefacts`): `path` relative to its folder."""
        return Artefact(self.path(path), code, settings or {}, inputs or {})


class _Groups(SimpleNamespace):
    """The groups of settings that a stage reads; any other one is an error."""

    def __init__(self, groups: dict, stage: str):
        super().__init__(**groups)
        self.stage = stage

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        raise InputError(
            f"notebooks/{self.__dict__.get('stage')}.ipynb",
            f"it reads the settings '{name}', which are not among those of its stage",
            "name the group in lesionlib/engine/stages.py, so that a change of it reruns the stage",
        )

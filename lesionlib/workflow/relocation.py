"""A run that was copied, moved or renamed: which of its stages have to be executed again.

Snakemake remembers with what code and settings it executed a stage, but in the clone and by the
names of files. Of a run that comes from another clone, or had another name, it knows nothing: it
would leave every stage as it is, whatever has changed since. The stages' own records, which lie in
the run, tell.
"""

from pathlib import Path

from lesionlib.data import catalogue
from lesionlib.engine.artefacts import stage_key
from lesionlib.engine.files import ROOT, atomic_write, read_json, resolve
from lesionlib.engine.settings import Settings
from lesionlib.engine.stages import STAGES
from lesionlib.segmentation.grid import jobs, planned_cells

FORCE = ("-R", "--forcerun")  # Snakemake's option for rules that are executed in any case
GRID = "06_segmentation"  # whose shares are executed by rules of their own


def _place(run: Path) -> Path:
    """The file that says where a run was when its stages were last found up to date."""
    return run / "logs" / "place.txt"


def is_known(run: Path) -> bool:
    """Whether Snakemake can know the stages of a run: they were up to date in this place."""
    path = _place(run)
    return (ROOT / ".snakemake").exists() and path.exists() and path.read_text() == f"{run}\n"


def outdated_rules(settings: Settings) -> list[str]:
    """Rules of the Snakefile whose code, settings or files of the user differ from what their
    stage's record says.

    A stage without a record is left to Snakemake: it was not executed to its end.
    """
    number = len(jobs(planned_cells(settings), settings.jobs.cells_per_job))
    shares = {f"{GRID}-{n:02d}": f"segmentation_{n:02d}" for n in range(1, number + 1)}
    rules = {stage: stage.partition("_")[2] for stage in STAGES} | shares
    keys, found = {}, []
    for name, rule in rules.items():
        path, stage = resolve(settings.run) / "logs" / f"{name}.json", name.partition("-")[0]
        if path.exists() and path.stat().st_size:  # Snakemake empties it before the stage begins
            if stage not in keys:
                keys[stage] = stage_key(stage, settings), catalogue.files_read(stage, settings)
            record = read_json(path)
            found += [rule] * ((record.get("key"), record.get("files")) != keys[stage])
    return found


def settle(settings: Settings):
    """After a start without errors: trust Snakemake's memory from now on if all is up to date."""
    run = resolve(settings.run)
    if not is_known(run) and not outdated_rules(settings):
        with atomic_write(_place(run)) as temporary:
            temporary.write_text(f"{run}\n")


def forcing(command: list[str], rules: list[str]) -> list[str]:
    """A command of Snakemake that executes `rules` in any case, beside those that it names."""
    if not rules:
        return command
    for position, word in enumerate(command):
        name, _, first = word.partition("=")
        if name in FORCE:  # given once more, it would replace what is named here
            named = [first] if first else []
            return [*command[:position], name, *named, *rules, *command[position + 1 :]]
    return [*command, FORCE[1], *rules]

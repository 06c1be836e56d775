"""Provenance of a run's files: what a file was made from, and whether files were modified since.

`./run_all.sh --why runs/NAME/tables/segmentation.csv` and `./run_all.sh --verify runs/NAME`.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from lesionlib.engine.artefacts import changed
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, read_json, resolve
from lesionlib.engine.provenance import file_digest, recorded

SHOWN = 12  # most inputs of one folder that are listed; of a longer list only the first three
SITTINGS = "sittings"  # folder in logs/, where `workflow.stage` notes the time of every execution


def stages(run) -> dict:
    """The record of each executed notebook of a run with its costs, in the order of their starts.

    Wall and CPU time (seconds) are summed over all executions of the notebook in this run's folder,
    stopped ones included (`sittings` counts them). Memory (MB) is from Snakemake's benchmark of the
    last one. A stage that failed or was killed has no record; Snakemake then leaves an empty file.
    Paths of a run that was copied, moved or renamed are those of the place where it lies now.
    """
    found = {}
    for path in sorted((resolve(run) / "logs").glob("*.json")):
        if path.stat().st_size:
            facts = read_json(path)
            times = pd.DataFrame(read_json(path.parent / SITTINGS / path.name) or [])
            for name in ("seconds", "cpu_seconds"):
                facts[name] = round(float(times[name].sum()), 1) if len(times) else 0
            facts |= {"sittings": len(times), "memory_mb": _memory(path.with_suffix(".tsv"))}
            _place(facts, relative(run))
            found[facts["stage"]] = facts
    return dict(sorted(found.items(), key=lambda item: item[1]["started"]))


def _place(facts: dict, now: str):
    """Replace the folder of a run in the paths of a stage's record: it lies in `now`."""
    was = facts.get("parameters", {}).get("run", now) + "/"
    for name in ("inputs", "outputs"):
        facts[name] = {
            f"{now}/{path.removeprefix(was)}" if path.startswith(was) else path: digest
            for path, digest in facts.get(name, {}).items()
        }


def _memory(path) -> int:
    if not path.exists() or not path.stat().st_size:
        return 0
    value = pd.to_numeric(pd.read_csv(path, sep="\t")["max_rss"].iloc[-1], errors="coerce")
    return 0 if pd.isna(value) else round(value)  # "NA", "-": unknown


def outdated(run) -> dict[str, list[str]]:
    """Stages and artefacts (paths in the run) whose code has changed since they were made, each
    with the changed functions or notebooks. The next start of the run rebuilds them."""
    keys = {name: facts.get("key", {}) for name, facts in stages(run).items()}
    for path, facts in records(run).items():
        keys[str(path.relative_to(resolve(run)).with_suffix(""))] = facts.get("key", {})
    found = {name: changed(key) for name, key in keys.items() if isinstance(key, dict)}
    return {name: code for name, code in found.items() if code}


def run_folder(path) -> Path:
    """The folder of the run that a file belongs to; InputError if it is in no run's folder."""
    path = resolve(path)
    for folder in path.parents:
        if (folder / "logs").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise InputError(path, "it is in no run's folder", "name a file in runs/NAME")


def relative(path) -> str:
    """A path as `stage` records it: relative to the repository if it lies inside."""
    path = resolve(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _draws(executed, figure: str) -> bool:
    return any(
        output.get("metadata", {}).get("image/png", {}).get("figure") == figure
        for cell in json.loads(executed.read_text())["cells"]
        for output in cell.get("outputs", [])
    )


def maker(run, path) -> str:
    """The stage that made a file of a run, or ''; found by its outputs, figures, or folders."""
    by_stage = stages(run)
    for name, facts in by_stage.items():
        if relative(path) in facts["outputs"]:
            return name
    if path.parent in (run / "figures", run / "figures" / "public"):
        drawn = [n for n in by_stage if _draws(run / "notebooks" / f"{n}.ipynb", path.stem)]
        return drawn[-1] if drawn else ""
    folders = {  # an image belongs to the manifest of its set, a weight file to its model
        name: {resolve(output).parent for output in facts["outputs"]}
        for name, facts in by_stage.items()
    }
    for folder in path.relative_to(run).parents[:-1]:
        makers = [name for name in by_stage if run / folder in folders[name]]
        if len(makers) == 1:
            return makers[0]
    return ""


def _cost(facts: dict) -> str:
    gpu = f", GPU {facts['gpu_memory_mb']} MiB" if facts["gpu_memory_mb"] else ""
    gpu += f", {facts['gpu_energy_wh']} Wh" if facts.get("gpu_energy_wh") else ""
    return (
        f"{facts['started']}, {facts['seconds'] / 60:.1f} min, CPU "
        f"{facts['cpu_seconds'] / 60:.1f} min, {facts['memory_mb']} MB at most{gpu}"
    )


def why(path) -> list[str]:
    """Lines on the origin of a file: stage, code, packages, machine, settings, seeds, inputs.

    InputError if there is no such file, if it is in no run's folder, or if it has no record.
    """
    path = resolve(path)
    run = run_folder(path)
    if not path.exists():
        raise InputError(path, "there is no such file", "name one that the run has written")
    by_stage, name, lines = stages(run), maker(run, path), [relative(path)]
    record = recorded(path)
    if not name:
        if not record:
            raise InputError(path, "it has no record", "it was not written by a notebook")
        return lines + [f"  {key}: {value}" for key, value in record.items()]
    facts = by_stage[name]
    written, now, environment = (
        facts["outputs"].get(relative(path)),
        file_digest(path),
        facts["environment"],
    )
    state = {None: "", now: " (as it was written)"}.get(written, " (CHANGED since)")
    packages = ", ".join(f"{k} {v}" for k, v in environment["packages"].items())
    keyed = record if "key" in record else facts
    lines += [
        f"  sha256 {now}{state}",
        f"  made by {name} (notebooks/{name.partition('-')[0]}.ipynb): {_cost(facts)}",
        f"  code {facts['code']}",
        *(f"  CHANGED since: {code}" for code in changed(keyed["key"])),
        f"  Python {environment['python']}, {packages}",
        f"  {environment['hardware']}, {environment['system']}",
        "  parameters",
        *(f"    {key}: {value}" for key, value in facts["parameters"].items()),
        *_settings(keyed),
        "  inputs",
        *_inputs(facts["inputs"]),
    ]
    earlier = [f"    {stage}: {_cost(by_stage[stage])}" for stage in _sources(by_stage, name)]
    return lines + (["  which are results of", *earlier] if earlier else [])


def _settings(record: dict) -> list[str]:
    """Lines with the settings in the key of an artefact's record, which may be in groups."""
    lines = ["  settings"]
    for name, value in record.get("key", {}).get("settings", {}).items():
        group = (
            {f"{name}.{key}": one for key, one in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        lines += [f"    {key}: {one}" for key, one in group.items()]
    return lines if len(lines) > 1 else []


def _inputs(digests: dict) -> list[str]:
    """Lines with the inputs of a stage by folder; of a folder with many files only the first."""
    folders, lines = {}, []
    for path in digests:
        folders.setdefault(str(Path(path).parent), []).append(path)
    for folder, paths in folders.items():
        listed = paths if len(paths) <= SHOWN else paths[:3]
        lines += [f"    {path} {digests[path]}" for path in listed]
        if len(paths) > len(listed):
            lines.append(f"    and {len(paths) - len(listed)} more of {folder}")
    return lines


def _sources(by_stage: dict, name: str) -> list[str]:
    """Stages whose outputs a stage needed, directly or indirectly."""
    makers = {output: one for one, facts in by_stage.items() for output in facts["outputs"]}
    found, waiting = set(), [name]
    while waiting:
        needed = {makers[i] for i in by_stage[waiting.pop()]["inputs"] if i in makers}
        waiting += needed - found - {name}
        found |= needed - {name}
    return [one for one in by_stage if one in found]


def records(run) -> dict:
    """The records that `provenance.record` wrote beside the artefacts of a run, by their paths."""
    found = {
        path: read_json(path)
        for path in sorted(resolve(run).rglob("*.json"))
        if path.stat().st_size and not path.name.startswith(".")  # not those being written
    }
    return {path: v for path, v in found.items() if isinstance(v, dict) and "artefact" in v}


def recorded_digests(run) -> dict:
    """Every file of a run with a recorded digest, and that digest."""
    run, found = resolve(run), {}
    for facts in stages(run).values():
        found |= {resolve(path): digest for path, digest in facts["outputs"].items()}
    for path, facts in records(run).items():
        if "sha256" in facts:
            found[path.with_suffix("")] = facts["sha256"]
            found |= {path.parent / name: one for name, one in facts.get("files", {}).items()}
    for path in run.glob("*/*/manifest.csv"):
        table = pd.read_csv(path)
        for folder, digest in (("images", "sha256"), ("masks", "mask_sha256")):
            files = [path.parent / folder / name for name in table[folder.removesuffix("s")]]
            found |= dict(zip(files, table[digest], strict=True))
    facts = read_json(run / "provenance.json", {})
    return found | {run / name: digest for name, digest in facts.get("sha256", {}).items()}


def verify(run) -> tuple[int, list[str]]:
    """The number of checked files, and a line for each that is missing or was modified."""
    found, lines = recorded_digests(run), []
    if not found:
        raise InputError(resolve(run), "it holds no records", "name the folder of a run")
    for path, digest in found.items():
        if not path.exists():
            lines.append(f"missing: {relative(path)}")
        elif file_digest(path) != digest:
            lines.append(f"changed: {relative(path)}")
    return len(found), sorted(lines)


def main(verb: str, path: str) -> int:
    """Print the lines of `why` or `verify`; exit status 1 if a file was modified, 2 on errors."""
    try:
        if verb == "why":
            print("\n".join(why(path)))
            return 0
        number, lines = verify(path)
    except InputError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        return 2
    print("\n".join([*lines, f"{number} files checked, {len(lines)} missing or changed"]))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))

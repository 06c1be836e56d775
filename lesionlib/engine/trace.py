"""Where a file of a run comes from, and whether every file is still what was written.

`./run_all.sh --why runs/NAME/tables/segmentation.csv` and `./run_all.sh --verify runs/NAME`.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, read_json, resolve
from lesionlib.engine.provenance import file_digest, recorded

SHOWN = 12  # inputs of a kind that are listed; the others are counted


def stages(run) -> dict:
    """What `stage` wrote down for each notebook of a run, in the order of their starts.

    One that failed or was killed wrote nothing; Snakemake then leaves an empty file.
    """
    paths = sorted((resolve(run) / "logs").glob("*.json"))
    facts = [read_json(path) for path in paths if path.stat().st_size]
    return {one["stage"]: one for one in sorted(facts, key=lambda one: one["started"])}


def run_of(path) -> Path:
    """The folder of the run that a file belongs to; InputError if it belongs to none."""
    path = resolve(path)
    for folder in path.parents:
        if (folder / "logs").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise InputError(path, "it is in no run's folder", "name a file in runs/NAME")


def relative(path) -> str:
    """A path as `stage` writes it: relative to the repository if it lies there."""
    path = resolve(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _draws(executed, figure: str) -> bool:
    outputs = [
        o for cell in json.loads(executed.read_text())["cells"] for o in cell.get("outputs", [])
    ]
    pictures = [output.get("metadata", {}).get("image/png", {}) for output in outputs]
    return any(picture.get("figure") == figure for picture in pictures)


def maker(run, path) -> str:
    """The stage that made a file of a run: by its outputs, its figures, or its folder; or ''."""
    wanted, done = relative(path), stages(run)
    for name, facts in done.items():
        if wanted in facts["outputs"]:
            return name
    if path.parent == run / "figures" or path.parent == run / "figures" / "public":
        drawn = [n for n in done if _draws(run / "notebooks" / f"{n}.ipynb", path.stem)]
        return drawn[-1] if drawn else ""
    for folder in path.parents:  # an image of a set belongs to its manifest, a weight to its model
        inside = [
            n
            for n, facts in done.items()
            if any(resolve(output).parent == folder for output in facts["outputs"])
        ]
        if folder != run and len(inside) == 1:
            return inside[0]
        if folder == run:
            break
    return ""


def _took(facts: dict) -> str:
    gpu = f", GPU {facts['gpu_memory_mb']} MiB" if facts["gpu_memory_mb"] else ""
    gpu += f", {facts['gpu_energy_wh']} Wh" if facts.get("gpu_energy_wh") else ""
    return (
        f"{facts['started']}, {facts['seconds'] / 60:.1f} min, CPU "
        f"{facts['cpu_seconds'] / 60:.1f} min, {facts['memory_mb']} MB at most{gpu}"
    )


def why(path) -> list[str]:
    """Lines that say what is behind a file: inputs, parameters, seeds, code, packages, machine."""
    path = resolve(path)
    run = run_of(path)
    if not path.exists():
        raise InputError(path, "there is no such file", "name one that the run has written")
    done, name, lines = stages(run), maker(run, path), [relative(path)]
    own = recorded(path)
    if not name:
        if not own:
            raise InputError(path, "nothing was recorded of it", "it was not written by a notebook")
        return lines + [f"  {key}: {value}" for key, value in own.items()]
    facts = done[name]
    wanted = facts["outputs"].get(relative(path))
    state = {None: "", file_digest(path): " (as it was written)"}.get(wanted, " (CHANGED since)")
    lines.append(f"  sha256 {file_digest(path)}{state}")
    lines.append(f"  made by {name} (notebooks/{name.partition('-')[0]}.ipynb): {_took(facts)}")
    environment = facts["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in environment["packages"].items())
    lines += [
        f"  code {facts['code']}",
        f"  Python {environment['python']}, {packages}",
        f"  {environment['hardware']}, {environment['system']}",
        "  parameters",
    ]
    lines += [f"    {key}: {value}" for key, value in facts["parameters"].items()]
    lines.append("  inputs")
    for folder, some in _by_folder(facts["inputs"]).items():
        listed = some if len(some) <= SHOWN else some[:3]
        lines += [f"    {one} {facts['inputs'][one]}" for one in listed]
        if len(some) > len(listed):
            lines.append(f"    and {len(some) - len(listed)} more of {folder}")
    before = _before(done, name)
    lines += ["  and behind them", *(f"    {one}: {_took(done[one])}" for one in before)]
    return lines if before else lines[:-1]


def _by_folder(paths) -> dict:
    found = {}
    for path in paths:
        found.setdefault(str(Path(path).parent), []).append(path)
    return found


def _before(done: dict, name: str) -> list[str]:
    """Stages whose outputs a stage needed, directly or not."""
    makers = {output: one for one, facts in done.items() for output in facts["outputs"]}
    found, waiting = set(), [name]
    while waiting:
        needed = {makers[i] for i in done[waiting.pop()]["inputs"] if i in makers}
        waiting += needed - found - {name}
        found |= needed - {name}
    return [one for one in done if one in found]


def records(run) -> dict:
    """What `provenance.record` wrote beside the artefacts of a run, by the path of the record."""
    paths = [
        path
        for path in sorted(resolve(run).rglob("*.json"))
        if path.stat().st_size and not path.name.startswith(".")
    ]  # no half-written ones
    found = {path: read_json(path) for path in paths}
    return {k: v for k, v in found.items() if isinstance(v, dict) and "artefact" in v}


def wanted(run) -> dict:
    """Every file of a run whose digest is on record, and that digest."""
    run, found = resolve(run), {}
    for facts in stages(run).values():
        found |= {resolve(path): digest for path, digest in facts["outputs"].items()}
    for path, facts in records(run).items():
        if "sha256" in facts:
            found[path.with_suffix("")] = facts["sha256"]
            weights = facts.get("files", {})
            found |= {path.parent / name: digest for name, digest in weights.items()}
    for path in run.glob("*/*/manifest.csv"):
        table = pd.read_csv(path)
        for folder, digest in (("images", "sha256"), ("masks", "mask_sha256")):
            names = table[folder.removesuffix("s")]
            found |= dict(
                zip((path.parent / folder / name for name in names), table[digest], strict=True)
            )
    facts = read_json(run / "provenance.json", {})
    return found | {run / name: digest for name, digest in facts.get("sha256", {}).items()}


def verify(run) -> tuple[int, list[str]]:
    """How many files were checked, and a line for each that is missing or was changed."""
    found, lines = wanted(run), []
    if not found:
        raise InputError(resolve(run), "nothing is on record here", "name the folder of a run")
    for path, digest in found.items():
        if not path.exists():
            lines.append(f"missing: {relative(path)}")
        elif file_digest(path) != digest:
            lines.append(f"changed: {relative(path)}")
    return len(found), sorted(lines)


def main(verb: str, path: str) -> int:
    """Print what `why` or `verify` says; 1 if a file is not what was written."""
    try:
        if verb == "why":
            print("\n".join(why(path)))
            return 0
        number, lines = verify(path)
    except InputError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        return 2
    print("\n".join([*lines, f"{number} files checked, {len(lines)} not as they were written"]))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))

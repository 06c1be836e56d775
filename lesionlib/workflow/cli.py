"""What `./run_all.sh` hands over to: Snakemake with the study's options, then the result."""

import argparse
import os
import shutil
import subprocess
import sys

import yaml

from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, resolve, run_lock

QUIET = {
    "-n",
    "--dry-run",
    "--dryrun",
    "--unlock",
    "--lint",
    "--dag",
    "--rulegraph",
    "--summary",
    "-l",
    "--list",
    "--list-rules",
    "-h",
    "--help",
    "--version",
    "-v",
}


def parser() -> argparse.ArgumentParser:
    """The options of the study's own; everything else goes to Snakemake."""
    options = argparse.ArgumentParser(
        prog="run_all.sh",
        allow_abbrev=False,
        add_help=False,
        description="Runs the whole study. Arguments that are not listed go to Snakemake.",
    )
    options.add_argument("-h", "--help", action="help", help="this text")
    options.add_argument("--preset", default="quick", help=f"one of {', '.join(config.presets())}")
    options.add_argument("--name", default="", help="the run's folder runs/NAME (default: preset)")
    options.add_argument("--images", metavar="DIR", help="your images")
    options.add_argument("--masks", metavar="DIR", help="their masks, of the same stem")
    options.add_argument("--table", metavar="FILE", help="CSV of their labels")
    options.add_argument(
        "--synthetic",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="synthetic pairs of another generator, as one more arm (DIR/images, DIR/masks)",
    )
    options.add_argument(
        "--external",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a further test set (DIR/images and DIR/masks, or IMAGES:MASKS)",
    )
    options.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings that override the preset (see config/quick.yaml)",
    )
    options.add_argument("--test", action="store_true", help="run the tests (more: for pytest)")
    options.add_argument(
        "--fetch", action="store_true", help="download ISIC (more: for lesionlib.data.download)"
    )
    options.add_argument(
        "--prefetch", action="store_true", help="fetch all that a run would (ISIC, base, weights)"
    )
    options.add_argument("--bench", action="store_true", help="measure speed against references")
    options.add_argument(
        "--publish", metavar="RUN", help="copy what may be shown of a finished run to figures/"
    )
    options.add_argument(
        "--show-images", action="store_true", help="publish real images too (if you may)"
    )
    options.add_argument(
        "--cluster", metavar="NAME", help="send the jobs to a cluster, by profiles/NAME (slurm)"
    )
    options.add_argument("--why", metavar="FILE", help="what is behind a table or figure of a run")
    options.add_argument("--verify", metavar="RUN", help="is all of a run as it was written?")
    options.add_argument("--lab", action="store_true", help="open JupyterLab")
    return options


def overrides(options) -> dict:
    """Settings given on the command line; raises InputError for one that is not KEY=VALUE."""
    given = {}
    for item in options.config:
        key, separator, value = item.partition("=")
        if not separator:
            raise InputError("--config", f"'{item}' is not KEY=VALUE", "write --config epochs=20")
        words = value in ("on", "off", "yes", "no")  # which YAML takes for true and false
        given[key] = value if words else yaml.safe_load(value)
    for key, option in (("others", "synthetic"), ("external", "external")):
        named = [item.partition("=") for item in getattr(options, option)]
        for name, _, where in named:
            if not where:
                raise InputError(f"--{option}", f"'{name}' is not NAME=DIR", f"--{option} a=DIR")
        if named:
            absolute = {n: ":".join(map(os.path.abspath, w.split(":"))) for n, _, w in named}
            given[key] = given.get(key, {}) | absolute
    for key in ("images", "masks", "table"):
        if (path := getattr(options, key)) is not None:
            given[key] = os.path.abspath(path)
            given.setdefault("source", "folders")
    return given


def check_sources(settings):
    """Raise InputError at once if the folders that the settings name are not there."""
    for key, option in (("others", "synthetic"), ("external", "external")):
        for where in settings[key].values():
            from lesionlib.data.catalogue import pair_folders  # pandas: only where it is needed

            for folder in pair_folders(where):
                if not folder.is_dir():
                    raise InputError(folder, "this folder does not exist", f"correct --{option}")
    named = {"folders": ["images", "masks", "table"], "isic": ["isic_root"], "phantom": []}
    for key in named[settings["source"]]:
        value = settings[key]
        if not value and key != "table":
            raise InputError(
                "command line",
                f"images of your own without --{key}",
                "give --images DIR --masks DIR --table FILE",
            )
        if value and not resolve(value).exists():
            remedy = f"correct --{key}"
            if key == "isic_root":
                remedy = "./run_all.sh --fetch gets it, or set isic_root to where it is"
            raise InputError(resolve(value), "this does not exist", remedy)


def check_cluster(name: str | None):
    """Raise InputError if there is no such profile, or no Slurm where it is asked for."""
    known = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/config.yaml"))
    if name and name not in known:
        raise InputError(
            f"--cluster {name}", f"there is no profiles/{name}", f"one of {', '.join(known)}"
        )
    if name == "slurm" and not shutil.which("sbatch"):
        raise InputError(
            "--cluster slurm", "sbatch was not found", "start it on a login node of the cluster"
        )


def one_line(value) -> str:
    """A setting as one line of YAML, however long it is."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).splitlines()[0]


def snakemake(options, rest) -> int:
    """Run the DAG and, if it ran through, print the two tables and the path of the report."""
    given = overrides(options)
    check_cluster(options.cluster)
    settings = config.load(options.preset, given, options.name)
    check_sources(settings)
    values = [f"{key}={one_line(value)}" for key, value in given.items()]
    own = ["--workflow-profile", f"profiles/{options.cluster or 'local'}"]
    if {"--profile", "--workflow-profile"} & set(rest):
        own = []
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--nolock",  # its locks outlive a killed run; ours do not, and are one for each run
        *own,
        *rest,
        "--config",
        f"preset={options.preset}",
        f"name={options.name}",
        *values,
    ]
    if QUIET & set(rest):
        return subprocess.run(command, cwd=ROOT).returncode
    with run_lock(resolve(settings["run"])) as hold:
        code = subprocess.run(command, cwd=ROOT, pass_fds=[hold]).returncode
    report = resolve(settings["run"]) / "report" / "index.html"
    if code == 0 and report.exists():
        from lesionlib.report.summary import summary_lines  # pandas: loaded only where it is needed

        print(summary_lines(settings["run"]))
    return code


def main(arguments=None) -> int:
    """Entry point; returns the exit status."""
    options, rest = parser().parse_known_args(arguments)
    if options.test:
        return subprocess.run([sys.executable, "-m", "pytest", *rest], cwd=ROOT).returncode
    if options.publish:
        command = [sys.executable, "-m", "lesionlib.report.publish", options.publish]
        command += ["--show-images"] if options.show_images else []
        return subprocess.run(command, cwd=ROOT).returncode
    for verb in ("why", "verify"):
        if path := getattr(options, verb):
            from lesionlib.engine import trace  # pandas: loaded only where it is needed

            return trace.main(verb, path)
    for name, module in (
        ("lab", "jupyterlab"),
        ("fetch", "lesionlib.data.download"),
        ("bench", "benchmarks"),
    ):
        if getattr(options, name):
            return subprocess.run([sys.executable, "-m", module, *rest], cwd=ROOT).returncode
    try:
        if options.prefetch:
            from lesionlib.workflow.prefetch import prefetch

            prefetch(config.load(options.preset, overrides(options)))
            return 0
        return snakemake(options, rest)
    except InputError as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

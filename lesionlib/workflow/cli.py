"""The command behind `./run_all.sh`: Snakemake with the study's options, then the result.

Modules that import pandas are imported where they are used, so that a second start is quick.
"""

import argparse
import os
import shutil
import subprocess
import sys

import yaml

from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, resolve, run_lock
from lesionlib.workflow import status

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


# The study's own options: name, metavar ('' for a switch), what it does.
OPTIONS = (
    ("--name", "NAME", "the run's folder runs/NAME (default: preset)"),
    ("--images", "DIR", "your images"),
    ("--masks", "DIR", "their masks, of the same stem"),
    ("--table", "FILE", "CSV of their labels"),
    ("--help-settings", "", "list all settings with their meaning"),
    ("--test", "", "run the tests (more: for pytest)"),
    ("--fetch", "", "download ISIC (more: for lesionlib.data.download)"),
    ("--prefetch", "", "download all that a run needs (ISIC, base, weights)"),
    ("--bench", "", "measure speed against references"),
    ("--publish", "RUN", "copy the publishable part of a finished run to figures/"),
    ("--show-images", "", "publish real images too (if you may)"),
    ("--cluster", "NAME", "send the jobs to a cluster, by profiles/NAME (slurm)"),
    (
        "--status",
        "RUN",
        "what of a run's grid is done, running, failed and left; also while it runs",
    ),
    ("--why", "FILE", "show what a table or figure of a run was made from"),
    ("--verify", "RUN", "check that no file of a run is missing or modified"),
    ("--lab", "", "open JupyterLab"),
)
REPEATED = (  # may be given several times
    (
        "--synthetic",
        "NAME=DIR",
        "synthetic pairs of another generator, as one more arm (DIR/images, DIR/masks)",
    ),
    ("--external", "NAME=DIR", "a further test set (DIR/images and DIR/masks, or IMAGES:MASKS)"),
)
PAIRS = (  # option NAME=DIR, group and name of its setting
    ("synthetic", "design", "external_generators"),
    ("external", "data", "external_tests"),
)


def parser() -> argparse.ArgumentParser:
    """The study's own options; all others go to Snakemake."""
    options = argparse.ArgumentParser(
        prog="run_all.sh",
        allow_abbrev=False,
        add_help=False,
        description="Runs the whole study. Arguments that are not listed go to Snakemake.",
    )
    options.add_argument("-h", "--help", action="help", help="this text")
    options.add_argument("--preset", default="quick", help=f"one of {', '.join(config.presets())}")
    for name, metavar, text in OPTIONS:
        value = {"metavar": metavar} if metavar else {"action": "store_true"}
        options.add_argument(name, help=text, **value)
    for name, metavar, text in REPEATED:
        options.add_argument(name, action="append", default=[], metavar=metavar, help=text)
    options.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings that override the preset (see --help-settings)",
    )
    options.set_defaults(name="")
    return options


def overrides(options) -> dict:
    """Settings given on the command line; raises InputError for one that is not KEY=VALUE."""
    given = {}
    for item in options.config:
        key, separator, value = item.partition("=")
        if not separator:
            raise InputError("--config", f"'{item}' is not KEY=VALUE", "write --config epochs=20")
        words = value in ("on", "off", "yes", "no")  # YAML would read these as booleans
        given[key] = value if words else yaml.safe_load(value)
    for option, _, key in PAIRS:
        named = [item.partition("=") for item in getattr(options, option)]
        for name, _, folders in named:
            if not folders:
                raise InputError(f"--{option}", f"'{name}' is not NAME=DIR", f"--{option} a=DIR")
        if named:
            absolute = {n: ":".join(map(os.path.abspath, w.split(":"))) for n, _, w in named}
            given[key] = given.get(key, {}) | absolute
    for key in ("images", "masks", "table"):
        if (path := getattr(options, key)) is not None:
            given[key] = os.path.abspath(path)
            given.setdefault("source", "folders")
    return given


def check_sources(settings: config.Settings):
    """Raise InputError at once if folders that the settings name do not exist."""
    for option, group, key in PAIRS:
        for folders in getattr(getattr(settings, group), key).values():
            from lesionlib.data.catalogue import pair_folders  # imports pandas: slow

            for folder in pair_folders(folders):
                if not folder.is_dir():
                    raise InputError(folder, "this folder does not exist", f"correct --{option}")
    named = {"folders": ["images", "masks", "table"], "isic": ["isic_root"], "phantom": []}
    for key in named[settings.data.source]:
        value = getattr(settings.data, key)
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
    """Raise InputError if there is no such profile, or if Slurm is requested but not installed."""
    known = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/config.yaml"))
    if name and name not in known:
        raise InputError(
            f"--cluster {name}", f"there is no profiles/{name}", f"one of {', '.join(known)}"
        )
    if name == "slurm" and not shutil.which("sbatch"):
        raise InputError(
            "--cluster slurm", "sbatch was not found", "start it on a login node of the cluster"
        )


def run_snakemake(options, rest) -> int:
    """Run the DAG and, if it succeeds, print the two tables and the path of the report."""
    given = overrides(options)
    check_cluster(options.cluster)
    settings = config.load(options.preset, given, options.name)
    check_sources(settings)
    values = [f"{key}={config.one_line(value)}" for key, value in given.items()]
    profile = ["--workflow-profile", f"profiles/{options.cluster or 'local'}"]
    if {"--profile", "--workflow-profile"} & set(rest):
        profile = []
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--nolock",  # its locks outlive a killed run; our run lock does not
        *profile,
        *rest,
        "--config",
        f"preset={options.preset}",
        f"name={options.name}",
        *values,
    ]
    if QUIET & set(rest):
        return subprocess.run(command, cwd=ROOT).returncode
    with run_lock(resolve(settings.run)) as lock:
        status.plan(settings)
        with status.reported(settings.run):
            code = subprocess.run(command, cwd=ROOT, pass_fds=[lock]).returncode
    report = resolve(settings.run) / "report" / "index.html"
    if code == 0 and report.exists():
        from lesionlib.report.summary import summary_lines  # imports pandas: slow

        print(summary_lines(settings.run))
    return code


def main(arguments=None) -> int:
    """Entry point; returns the exit status."""
    options, rest = parser().parse_known_args(arguments)
    if options.help_settings:
        print(config.explain(), end="")
        return 0
    if options.test:
        return subprocess.run([sys.executable, "-m", "pytest", *rest], cwd=ROOT).returncode
    if options.publish:
        command = [sys.executable, "-m", "lesionlib.report.publish", options.publish]
        command += ["--show-images"] if options.show_images else []
        return subprocess.run(command, cwd=ROOT).returncode
    for verb in ("why", "verify"):
        if path := getattr(options, verb):
            from lesionlib.engine import trace  # imports pandas: slow

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
        if options.status:
            print(status.report(options.status))
            return 0
        return run_snakemake(options, rest)
    except InputError as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

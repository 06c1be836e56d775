"""The command behind `./run_all.sh`: Snakemake with the study's options, then the result.

Modules that import pandas are imported where they are used, so that a second start is quick.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from importlib import import_module

from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, atomic_write, resolve, run_lock
from lesionlib.workflow import continuation, processes, relocation, status

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
    ("--images", "DIR", "your images, or a public source as it was unpacked"),
    ("--masks", "DIR", "their masks"),
    ("--table", "FILE", "CSV of their labels"),
    ("--controlnet", "DIR", "a trained ControlNet (or hub id) that is evaluated; none is trained"),
    ("--lesion-value", "V", "value of the lesion in masks with more than two values"),
    ("--invert-masks", "", "the lesion is what the masks do not mark"),
    ("--check", "", "only read the images: what was found, and a contact sheet"),
    ("--estimate", "", "only say what the run will cost: minutes, disk, memory"),
    ("--gpu", "CARD[:N]", "with --estimate: on N such GPUs that are not at hand (h100, a100, ...)"),
    ("--help-settings", "", "list all settings with their meaning"),
    ("--test", "", "run the tests (more: for pytest)"),
    ("--fetch", "", "download ISIC (more: for lesionlib.data.download)"),
    ("--prefetch", "", "download all that a run needs (ISIC, base, weights)"),
    ("--bench", "", "measure speed against references"),
    (
        "--generate",
        "RUN",
        "write pairs of a finished run to a folder (more: --generate RUN --help)",
    ),
    ("--export", "RUN", "write its ControlNet and base for diffusers (more: --export RUN --help)"),
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
    ("--play", "", "paint a lesion, and see what the newest finished run makes of it"),
)
REPEATED = (  # may be given several times
    (
        "--synthetic",
        "NAME=DIR",
        "synthetic pairs of another generator, as one more arm (DIR/images, DIR/masks)",
    ),
    ("--external", "NAME=DIR", "a further test set (DIR/images and DIR/masks, or IMAGES:MASKS)"),
)
OWN = ("generate", "export")  # commands with options of their own, in modules of this name
PAIRS = (  # option NAME=DIR, group and name of its setting
    ("synthetic", "design", "external_generators"),
    ("external", "data", "external_tests"),
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are those of the study."""

    def error(self, message):
        raise InputError("command line", message, "./run_all.sh --help lists all options")


def parser() -> argparse.ArgumentParser:
    """The study's own options; all others go to Snakemake."""
    options = Parser(
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


def found_source(given: dict) -> str:
    """The name of the public source in the folder of the images, or `folders`."""
    if not os.path.isdir(given["images"]):
        return "folders"
    from lesionlib.data.catalogue import public_source  # imports pandas: slow

    return public_source(given["images"], given.get("masks", "")) or "folders"


def given_controlnet(name: str) -> dict:
    """The settings that a ControlNet needs, with its base where both were exported together."""
    folder = os.path.abspath(name)
    pair = {key: os.path.join(folder, key) for key in ("controlnet", "base")}
    if all(map(os.path.isdir, pair.values())):
        base = {"base_model": pair["base"], "base_finetune": False}
        return base | {"controlnet_model": pair["controlnet"]}
    return {"controlnet_model": folder if os.path.isdir(folder) else name}


def overrides(options) -> dict:
    """Settings given on the command line; raises InputError for one that is not KEY=VALUE."""
    given = {}
    for item in options.config:
        key, separator, value = item.partition("=")
        if not separator:
            raise InputError("--config", f"'{item}' is not KEY=VALUE", "write --config epochs=20")
        given[key] = config.from_text(key, value)
    for option, _, key in PAIRS:
        named = [item.partition("=") for item in getattr(options, option)]
        for name, _, folders in named:
            if not folders:
                raise InputError(f"--{option}", f"'{name}' is not NAME=DIR", f"--{option} a=DIR")
        if named:
            parts = {n: [w] if os.path.isdir(w) else w.split(":") for n, _, w in named}
            absolute = {n: ":".join(map(os.path.abspath, each)) for n, each in parts.items()}
            given[key] = given.get(key, {}) | absolute
    if options.lesion_value is not None:
        given["lesion_value"] = config.from_text("lesion_value", options.lesion_value)
    if options.invert_masks:
        given["invert_masks"] = True
    for key in ("images", "masks", "table"):
        if (path := getattr(options, key)) is not None:
            given[key] = os.path.abspath(path)
    if options.controlnet:
        given |= given_controlnet(options.controlnet)
    if "images" in given and "source" not in given:
        given["source"] = found_source(given)
    return given


def check_pairs(settings: config.Settings):
    """Raise InputError at once if folders of external pairs do not exist."""
    for option, group, key in PAIRS:
        for folders in getattr(getattr(settings, group), key).values():
            from lesionlib.data.catalogue import pair_folders  # imports pandas: slow

            for folder in filter(None, pair_folders(folders)):
                if not folder.is_dir():
                    raise InputError(folder, "this folder does not exist", f"correct --{option}")


def check_sources(settings: config.Settings):
    """Raise InputError at once if folders that the settings name do not exist."""
    check_pairs(settings)
    data = settings.data
    if data.source == "phantom":
        return
    if data.source == "isic":
        remedy = "./run_all.sh --fetch gets it, or set isic_root to where it is"
        if not resolve(data.isic_root).exists():
            raise InputError(resolve(data.isic_root), "this does not exist", remedy)
        return
    if not data.images:
        remedy = "give --images DIR --masks DIR --table FILE"
        raise InputError("command line", "images of your own without --images", remedy)
    for key in ("images", "masks", "table"):
        value = getattr(data, key)
        if value and not resolve(value).exists():
            raise InputError(resolve(value), "this does not exist", f"correct --{key}")
    if data.source == "folders" and not data.masks:
        from lesionlib.data.catalogue import own_places

        own_places(resolve(data.images), "")


def check_name(name: str):
    """Raise InputError if a run's name is no name of a folder."""
    if name and (name.startswith(".") or "/" in name or not name.isprintable() or not name.strip()):
        raise InputError(f"--name {name}", "it is no name of a folder", "give a name, not a path")


def check_rest(rest):
    """Raise InputError if an option is neither ours nor Snakemake's."""
    given = [word.partition("=")[0] for word in rest if re.match("--[a-z]", word)]
    if not given:
        return
    from snakemake.cli import get_argument_parser  # slow import, needed for other options only

    own, theirs = (set(one._option_string_actions) for one in (parser(), get_argument_parser()))
    for word in given:
        if word not in theirs:
            near = config.nearest(word, own | theirs)
            remedy = f"did you mean {near}? ./run_all.sh --help lists all options"
            raise InputError(word, "there is no such option", remedy)


def check_unread(rest):
    """Raise InputError if there are arguments left, for a command that reads none."""
    if rest:
        remedy = "leave it out; ./run_all.sh --help lists all options"
        raise InputError(rest[0], "this command takes no such argument", remedy)


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


def write_settings(preset: str, name: str, given: dict, folder: str) -> str:
    """Write what the Snakefile is told to a JSON file, unchanged; returns its path.

    Snakemake takes a name like `run #2` or `{b}` apart: it sees such a folder through a link of
    plain letters (`folder` is the run's own path).
    """
    told = {**given, "preset": preset, "name": name}
    if not re.fullmatch(r"runs/[A-Za-z0-9._-]+", folder):
        plain = hashlib.sha256(folder.encode()).hexdigest()[:12]
        told["folder"] = f"runs/.links/{plain}"
        link = ROOT / told["folder"]
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(resolve(folder), link.parent))
    text = json.dumps(told, sort_keys=True)
    path = f"runs/.settings/{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    with atomic_write(ROOT / path) as temporary:
        temporary.write_text(text)
    return path


def snakemake_command(options, rest, settings_file: str) -> list[str]:
    """The command line of Snakemake for a run."""
    profile = ["--workflow-profile", f"profiles/{options.cluster or 'local'}"]
    if {"--profile", "--workflow-profile"} & set(rest):
        profile = []
    locks = "--nolock"  # its locks outlive a killed run; our run lock does not
    start = [sys.executable, "-m", "snakemake", locks, *profile, *rest]
    return [*start, "--configfile", settings_file]


def run_snakemake(options, rest) -> int:
    """Run the DAG; print the tables and the path of the report, or what failed and why."""
    check_name(options.name)
    given = overrides(options)
    check_cluster(options.cluster)
    settings = config.load(options.preset, given, options.name)
    check_sources(settings)
    check_rest(rest)
    run = resolve(settings.run)
    if different := continuation.changes(settings):
        print(f"NOTE: {different}. What depends on them is made anew.", file=sys.stderr)
    settings_file = write_settings(options.preset, options.name, given, settings.run)
    command = snakemake_command(options, rest, settings_file)
    if not relocation.is_known(run):
        command = relocation.forcing(command, relocation.outdated_rules(settings))
    if QUIET & set(rest):
        return processes.run(command)
    with run_lock(run) as lock:
        processes.forget_failures(run)
        continuation.keep(settings)
        status.plan(settings)
        with status.reported(settings, partial(countdown, rest, time.time())):
            code = processes.run(command, pass_fds=[lock])
    report = run / "report" / "index.html"
    if code:
        failed = processes.told_failures(run) or ["see the lines above"]
        print("\n" + "\n".join(f"run_all.sh: failed: {line}" for line in failed), file=sys.stderr)
        return code
    relocation.settle(settings)
    if report.exists():
        from lesionlib.report.summary import summary_lines  # imports pandas: slow

        print(summary_lines(settings.run))
    return code


def call(module: str, *arguments) -> int:
    """Run a module in the terminal's own session, where it may ask something; its exit status."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, env=processes.environment()).returncode


def run_other(options, rest) -> int | None:
    """Run what is not the study: tests, publication, downloads, ...; None if it is the study."""
    if options.test:
        # All tests go to two processes; those that are named to one, in which they can be debugged.
        named = any(not argument.startswith("-") for argument in rest)
        return call("pytest", *([] if named else ["-n", "2"]), *rest)
    if options.publish or options.why or options.verify or options.prefetch or options.status:
        check_unread(rest)
    if options.publish:
        shown = ["--show-images"] if options.show_images else []
        return call("lesionlib.report.publish", options.publish, *shown)
    for verb in ("why", "verify"):
        if path := getattr(options, verb):
            from lesionlib.engine import trace  # imports pandas: slow

            return trace.main(verb, path)
    for name, *command in (
        ("lab", "jupyterlab"),
        ("play", "jupyterlab", "notebooks/playground.ipynb"),
        ("fetch", "lesionlib.data.download"),
        ("bench", "benchmarks"),
    ):
        if getattr(options, name):
            return call(*command, *rest)
    if options.prefetch:
        from lesionlib.workflow.prefetch import prefetch

        prefetch(config.load(options.preset, overrides(options)))
        return 0
    if options.status:
        print(status.report(options.status))
        return 0
    if options.check:
        from lesionlib.workflow import check  # imports pandas and OpenCV: slow

        check_rest(rest)
        check_name(options.name)
        return check.check(config.load(options.preset, overrides(options), options.name))
    if options.estimate or options.gpu:
        return print_estimate(options, rest)
    return None


def countdown(rest, began: float, settings: config.Settings):
    """The time left of a run that began at `began`; `rest`: options for Snakemake."""
    from lesionlib.workflow import estimate  # imports torch: slow, jobs begin meanwhile

    return estimate.Countdown(settings, rest, began)


def print_estimate(options, rest) -> int:
    """Print what a run with these options will cost."""
    from lesionlib.workflow import estimate  # imports torch: slow

    check_rest(rest)
    check_name(options.name)
    settings = config.load(options.preset, overrides(options), options.name)
    if options.images:  # else a source that is not at hand is assumed
        check_sources(settings)
    print(estimate.estimate(settings, rest, options.gpu or ""))
    return 0


def run_own(arguments) -> int | None:
    """Run a command that has options of its own; None if it is none of `OWN`."""
    given = {word.partition("=")[0] for word in arguments}
    for name in OWN:
        if f"--{name}" in given:
            module = import_module(f"lesionlib.workflow.{name}")
            own = Parser(prog="run_all.sh", allow_abbrev=False, description=module.__doc__)
            own.formatter_class = argparse.RawDescriptionHelpFormatter
            module.options(own)
            return module.main(own.parse_args(arguments))
    return None


def main(arguments=None) -> int:
    """Entry point; returns the exit status."""
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        if (code := run_own(arguments)) is not None:
            return code
        options, rest = parser().parse_known_args(arguments)
        if options.help_settings:
            print(config.explain(), end="")
            return 0
        code = run_other(options, rest)
        return run_snakemake(options, rest) if code is None else code
    except InputError as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, processes.Stopped):
        print("\nrun_all.sh: stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

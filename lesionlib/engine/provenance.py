"""Where a result comes from: digests of data, and the record written beside an artefact."""

import datetime
import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import lesionlib
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, read_json, resolve, write_json

VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # instruction sets, the widest first
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "segmentation-models-pytorch",
    "numpy",
    "opencv-python",
    "scikit-image",
    "elasticdeform",
    "papermill",
    "snakemake",
)


def digest(*values) -> str:
    """A short SHA-256 of JSON-able values, bytes, or NumPy arrays."""
    total = hashlib.sha256()
    for value in values:
        if hasattr(value, "dtype"):
            total.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        elif isinstance(value, bytes):
            total.update(value)
        else:
            total.update(json.dumps(value, sort_keys=True, default=str).encode())
    return total.hexdigest()[:16]


def file_digest(path) -> str:
    """A short SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _counts(path: Path) -> bool:
    """Whether a file in a folder is anybody's input: not the system's, nor what we read from it."""
    if path.name == "ISIC2018_Task2_Training_attributes.csv":  # `data.attribute_masks` writes it
        return not (path.parent / "ISIC2018_Task2_Training_GroundTruth_v3").is_dir()
    return not path.name.startswith(".") and path.name.lower() not in ("thumbs.db", "desktop.ini")


def files_state(*paths) -> str:
    """Digest of the names, sizes and times of files, and of all files in folders.

    Anything else is ignored: '', settings that are a word rather than a path, and in folders hidden
    files and those that come about by themselves.
    """
    found = []
    for root in map(resolve, filter(None, paths)):
        files = filter(_counts, sorted(root.rglob("*"))) if root.is_dir() else [root]
        facts = ((f.relative_to(root.parent), f.stat()) for f in files if f.is_file())
        found += [(str(name), stat.st_size, stat.st_mtime_ns) for name, stat in facts]
    return digest(found)


@cache
def code_version() -> str:
    """The package version with the git commit, and whether files were changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "no git"
    return f"{lesionlib.__version__} ({commit})"


def processor(cpuinfo: str) -> str:
    """The name of a processor and the widest of VECTORS that it computes with, from /proc/cpuinfo.

    A name alone, such as AMD EPYC, stands for processors of several generations.
    """
    facts = [line.partition(":") for line in cpuinfo.splitlines()]
    facts = {name.strip(): value.strip() for name, _, value in reversed(facts)}
    widest = next((v for v in VECTORS if v in facts.get("flags", "").split()), None)
    return facts.get("model name", "") + (f" ({widest})" if widest else "")


@cache
def hardware() -> str:
    """Processor, cores, and the accelerator if there is one."""
    path = Path("/proc/cpuinfo")
    name = processor(path.read_text()) if path.exists() else ""
    name = name or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {', '.join(gpus()) or 'no GPU'}"


@cache
def gpus() -> list[str]:
    """Names of this machine's GPUs; [] without their driver."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return found.splitlines()


@cache
def environment() -> dict:
    """Versions of Python and of the packages, and the machine."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "hardware": hardware(),
        "packages": versions,
    }


def record(path, **facts):
    """Write `path`.json: the facts given, the file's SHA-256, code version, environment, time."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(
        f"{path}.json",
        {
            "artefact": Path(path).name,
            "sha256": file_digest(path),
            **facts,
            "code": code_version(),
            "environment": environment(),
            "written": now,
        },
    )


def recorded(path) -> dict:
    """The record written beside an artefact.

    Empty if there is none, or if artefact or record are corrupt (truncated or modified): then a
    WARNING names it, and the caller rebuilds it.
    """
    try:
        unchanged(path)
        return read_json(f"{path}.json", {})
    except InputError as error:
        print(f"WARNING: {error.where}: {error.problem}; it is rebuilt")
        return {}


def unchanged(path):
    """Return `path`; InputError if it is not the file that its record was written for."""
    wanted = read_json(f"{path}.json", {}).get("sha256")
    if wanted and (not Path(path).exists() or file_digest(path) != wanted):
        raise InputError(
            path,
            "it is corrupt (truncated or modified)",
            "delete it and start again: it is rebuilt",
        )
    return path


def other_clone() -> str:
    """A WARNING if the working folder is of another clone than the package, or ''."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "lesionlib" / "__init__.py").exists():
            if folder == ROOT:
                return ""
            remedy = f"start it with {folder}/run_all.sh, or set PYTHONPATH={folder}"
            return f"WARNING: this is {folder}, but the code of {ROOT} runs: {remedy}"
    return ""


def header(run) -> str:
    """Lines for the top of a notebook: run, versions, device, code and whose it is."""
    device = "CPU"
    if gpus():
        import torch  # slow import, which not every notebook needs

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = environment()["packages"]
    line = (
        f"run {run} · lesionlib {code_version()} · Python {platform.python_version()} · "
        f"torch {versions['torch']} · diffusers {versions['diffusers']} · {device}"
    )
    return "\n".join(filter(None, [line, other_clone()]))

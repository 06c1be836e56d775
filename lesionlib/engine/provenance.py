"""Where a result comes from: digests of code and data, and the record written beside it."""

import ast
import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import lesionlib
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, read_json, write_json

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
IMPORT = re.compile(
    r"^\s*(?:from lesionlib import (?:\(([\w,\s]+)\)|([\w, ]+))|(?:from|import) lesionlib\.(\w+))",
    re.M,
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


def _imports(source: str) -> set[str]:
    """Names of the lesionlib modules that a source text imports."""
    found = set()
    for names in IMPORT.findall(source):
        several = ",".join(names).replace("\n", ",").split(",")
        found |= {name.split(" as ")[0].strip() for name in several if name.strip()}
    return {name for name in found if (ROOT / "lesionlib" / f"{name}.py").exists()}


def _without_prose(source: str) -> str:
    """Source code without comments and docstrings: editing prose changes no digest."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(getattr(body[0], "value", None), ast.Constant):
                node.body = body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@cache
def code_digest(*modules: str) -> str:
    """Digest of lesionlib modules and of all that they import from lesionlib."""
    sources, waiting = {}, set(modules)
    while waiting:
        name = waiting.pop()
        sources[name] = (ROOT / "lesionlib" / f"{name}.py").read_text()
        waiting |= _imports(sources[name]) - set(sources)
    return digest({name: _without_prose(source) for name, source in sources.items()})


def lists_parameters(cell: dict) -> bool:
    """Whether a cell only gives parameters their defaults.

    Where they are many, those in the cell tagged `parameters`, after which papermill writes its
    values, are preceded by cells tagged `settings`.
    """
    return bool({"parameters", "settings"} & set(cell["metadata"].get("tags", [])))


def notebook_digest(path) -> str:
    """Digest of a notebook's code cells and of the lesionlib modules that they use.

    Markdown and the parameters' cells do not count: prose changes nothing, and the
    parameters are a rule's own `params`.
    """
    cells = [
        cell
        for cell in json.loads(Path(path).read_text())["cells"]
        if cell["cell_type"] == "code" and not lists_parameters(cell)
    ]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    return digest(_without_prose(source), code_digest(*sorted(_imports(source))))


@cache
def code_version() -> str:
    """The package version with the git commit, and whether files were changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "no git"
    return f"{lesionlib.__version__} ({commit})"


@cache
def hardware() -> str:
    """Processor, cores, and the accelerator if there is one."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if "model name" in x), name)
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        said = []
    return f"{name}, {os.cpu_count()} cores, {', '.join(filter(None, said)) or 'no GPU'}"


@cache
def environment() -> dict:
    """Versions of the packages and the machine that computes."""
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

    Empty if there is none, or if artefact or record were cut short or changed since: then a
    WARNING names it, and who asks makes it anew.
    """
    try:
        unchanged(path)
        return read_json(f"{path}.json", {})
    except InputError as error:
        print(f"WARNING: {error.where}: {error.problem}; it is made anew")
        return {}


def unchanged(path):
    """Return `path`; InputError if it is not the file that its record was written for."""
    wanted = read_json(f"{path}.json", {}).get("sha256")
    if wanted and (not Path(path).exists() or file_digest(path) != wanted):
        raise InputError(
            path, "it was cut short or changed", "delete it and start again: it is made anew"
        )
    return path


def header(run) -> str:
    """One line for the top of a notebook: run, versions, device, code version."""
    torch = sys.modules.get("torch")  # loading it takes seconds that not every notebook needs
    gpu = torch is not None and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "CPU"
    versions = environment()["packages"]
    return (
        f"run {run} · lesionlib {code_version()} · Python {platform.python_version()} · "
        f"torch {versions['torch']} · diffusers {versions['diffusers']} · {device}"
    )

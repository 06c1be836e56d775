"""Notebooks as files: their parameters, and what an executed one has to tell its user.

`python -m lesionlib.notebooks EXECUTED.ipynb` prints warnings and the failed cell, if any.
"""

import ast
import json
import re
import sys
from pathlib import Path

from lesionlib.files import ROOT

ANSI = re.compile(r"\x1b\[[0-9;]*m")
STAGES = (
    "01_data",
    "02_masks",
    "03_controlnet",
    "04_pix2pixhd",
    "05_image_quality",
    "06_segmentation",
    "07_figures",
)  # the study's notebooks; the DAG itself is the Snakefile


def parameters(path) -> dict:
    """Names and default values of a notebook's parameters cell."""
    for cell in json.loads(Path(path).read_text())["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            tree = ast.parse("".join(cell["source"]))
            return {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    raise ValueError(f"{path} has no cell tagged 'parameters'")


def stage_parameters(stage: str, settings: dict) -> dict:
    """The settings that notebooks/`stage`.ipynb takes, by the names in its parameters cell."""
    names = parameters(ROOT / "notebooks" / f"{stage}.ipynb")
    return {name: settings[name] for name in names if name in settings}


def failure(path) -> str:
    """Notebook, cell number and error of an executed notebook that failed, or ''."""
    for number, cell in enumerate(json.loads(Path(path).read_text())["cells"], 1):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                name = output["ename"].removeprefix("InputError").strip()
                text = ANSI.sub("", output["evalue"])
                return f"{path}, cell {number}: {name + ': ' if name else ''}{text}"
    return ""


def warnings(path) -> list[str]:
    """Lines that an executed notebook printed and that begin with WARNING."""
    found = []
    for cell in json.loads(Path(path).read_text())["cells"]:
        for output in cell.get("outputs", []):
            lines = "".join(output.get("text", "")).splitlines()
            found += [line for line in lines if line.startswith("WARNING")]
    return found


if __name__ == "__main__":
    executed = Path(sys.argv[1])
    if executed.exists():
        for line in [*warnings(executed), failure(executed)]:
            if line:
                print(f"\n{line}\n", file=sys.stderr)

"""Notebooks as files: their parameters, and what an executed one has to tell its user."""

import ast
import html
import json
import re
from pathlib import Path

from lesionlib.engine.files import ROOT, atomic_write
from lesionlib.engine.provenance import lists_parameters

PLACE = "*The last cells find it; an executed notebook has it here.*"  # of the answer, in cell 1
LONG = 30  # lines of text or rows of a table: what is longer is folded
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
    """Names and default values of a notebook's parameters."""
    found = {}
    for cell in filter(lists_parameters, json.loads(Path(path).read_text())["cells"]):
        tree = ast.parse("".join(cell["source"]))
        found |= {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    return found


def stage_parameters(stage: str, settings: dict) -> dict:
    """The settings that notebooks/`stage`.ipynb takes, by the names of its parameters."""
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


def answer(text: str):
    """Display the answer to the notebook's question (Markdown); `tidy` puts it to the top."""
    from IPython.display import Markdown, display  # not where files are only read

    display(Markdown(text, metadata={"answer": True}))


def folded(output: dict) -> dict:
    """An output with its text or table inside a fold if that is `LONG`."""
    data = output.get("data", {})
    if output["output_type"] == "stream":
        lines = "".join(output["text"]).splitlines()
        text, size = f"<pre>{html.escape(chr(10).join(lines))}</pre>", f"{len(lines)} lines"
        number = len(lines)
    else:
        text = "".join(data.get("text/html", ""))
        number = text.count("<tr") if "<details>" not in text else 0
        size = f"{number - 1} rows"
    if number <= LONG:
        return output
    text = f"<details><summary>{size}</summary>{text}</details>"
    plain = data.get("text/plain", output.get("text", ""))
    return {
        "output_type": "display_data",
        "metadata": output.get("metadata", {}),
        "data": {"text/html": text, "text/plain": plain},
    }


def tidy(path):
    """Put an executed notebook's answer to its top, and fold its long outputs."""
    path = Path(path)
    content = json.loads(path.read_text())
    found = ""
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            if output.get("metadata", {}).get("text/markdown", {}).get("answer"):
                found = "".join(output["data"]["text/markdown"])
        if "outputs" in cell:
            cell["outputs"] = [folded(output) for output in cell["outputs"]]
    for cell in content["cells"] if found else []:
        if cell["cell_type"] == "markdown":
            cell["source"] = "".join(cell["source"]).replace(PLACE, found)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False))


def said(path) -> list[str]:
    """Warnings and the failure, if any, of an executed notebook, which is made tidy."""
    lines = [line for line in [*warnings(path), failure(path)] if line]
    tidy(path)
    return lines

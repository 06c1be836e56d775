"""Notebook files: their parameters, and messages and answers of executed notebooks."""

import ast
import html
import json
import re
from pathlib import Path

from lesionlib.engine.code import lists_parameters
from lesionlib.engine.files import atomic_write

PLACEHOLDER = "*Filled in when the notebook runs.*"  # `tidy` replaces it
LONG = 30  # lines of text or rows of a table; longer outputs are folded
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def _outputs(cells):
    """Pairs (cell number, output) of a list of cells, in order."""
    for number, cell in enumerate(cells, 1):
        for output in cell.get("outputs", []):
            yield number, output


def parameters(path) -> dict:
    """Names and default values of a notebook's parameters."""
    found = {}
    for cell in filter(lists_parameters, json.loads(Path(path).read_text())["cells"]):
        tree = ast.parse("".join(cell["source"]))
        found |= {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    return found


def failure(path) -> str:
    """Notebook, cell number and error of an executed notebook that failed, or ''."""
    for number, output in _outputs(json.loads(Path(path).read_text())["cells"]):
        if output["output_type"] == "error":
            name = output["ename"].removeprefix("InputError").strip()
            text = ANSI.sub("", output["evalue"])
            return f"{path}, cell {number}: {name + ': ' if name else ''}{text}"
    return ""


def warnings(path) -> list[str]:
    """The printed lines of an executed notebook that begin with WARNING or NOTE."""
    found = []
    for _, output in _outputs(json.loads(Path(path).read_text())["cells"]):
        lines = "".join(output.get("text", "")).splitlines()
        found += [line for line in lines if line.startswith(("WARNING", "NOTE"))]
    return found


def answer(text: str):
    """Display the answer to the notebook's question (Markdown), which `tidy` copies to the top."""
    _display(text, metadata={"answer": True})


def say(sentences: list[str]):
    """Display sentences (Markdown): one as a paragraph, several as a list, none not at all."""
    if sentences:
        _display("\n".join(f"- {one}" for one in sentences) if sentences[1:] else sentences[0])


def _display(text: str, **options):
    from IPython.display import Markdown, display  # slow import, needed only in a kernel

    display(Markdown(text, **options))


def folded(output: dict) -> dict:
    """The output with its text or table in a collapsed block if it is longer than `LONG`."""
    data = output.get("data", {})
    if output["output_type"] == "stream":
        lines = "".join(output["text"]).splitlines()
        text, size = f"<pre>{html.escape(chr(10).join(lines))}</pre>", f"{len(lines)} lines"
        length = len(lines)
    else:
        text = "".join(data.get("text/html", ""))
        length = text.count("<tr") if "<details>" not in text else 0
        size = f"{length - 1} rows"
    if length <= LONG:
        return output
    text = f"<details><summary>{size}</summary>{text}</details>"
    plain = data.get("text/plain", output.get("text", ""))
    return {
        "output_type": "display_data",
        "metadata": output.get("metadata", {}),
        "data": {"text/html": text, "text/plain": plain},
    }


def tidy(path):
    """Copy an executed notebook's answer to its top, and fold its long outputs."""
    path = Path(path)
    content = json.loads(path.read_text())
    found = PLACEHOLDER
    for _, output in _outputs(content["cells"]):
        if output.get("metadata", {}).get("text/markdown", {}).get("answer"):
            found = "".join(output["data"]["text/markdown"])
    for cell in content["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [folded(output) for output in cell["outputs"]]
        if cell["cell_type"] == "markdown":
            cell["source"] = "".join(cell["source"]).replace(PLACEHOLDER, found)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False))


def collect_messages(path) -> list[str]:
    """The warnings, notes and failure, if any, of an executed notebook, which is then tidied."""
    lines = [line for line in [*warnings(path), failure(path)] if line]
    tidy(path)
    return lines

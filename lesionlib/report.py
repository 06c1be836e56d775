"""The run's report: executed notebooks as linked pages, and provenance.

`python -m lesionlib.report RUN SETTINGS-JSON` writes report/index.html and provenance.json.
"""

import html
import json
import sys

from nbconvert import HTMLExporter

from lesionlib import notebooks
from lesionlib.closing import quarantined, table
from lesionlib.files import aside, read_json, resolve, write_json
from lesionlib.provenance import code_version, environment, file_digest

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid #ccc; text-align: right }}
img {{ max-width: 100% }}
</style></head><body>{body}</body></html>
"""


def minutes(path) -> float:
    """How long an executed notebook ran, in minutes, as papermill recorded it."""
    return json.loads(path.read_text())["metadata"]["papermill"]["duration"] / 60


def executed(run) -> list:
    """The executed notebooks of a run in the order of the study, shares of the grid included."""
    found = []
    for stage in notebooks.STAGES:
        found += sorted((run / "notebooks").glob(f"{stage}*.ipynb"))
    return found


def title(path) -> str:
    """The first heading of a notebook."""
    for cell in json.loads(path.read_text())["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if line.startswith("# "):
                return line[2:]
    return path.stem


def write_pages(run) -> list[tuple[str, str]]:
    """Every executed notebook as a static page; returns (file name, title) of each."""
    exporter = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.mathjax_url = exporter.require_js_url = ""  # readable offline: no script from the net
    pages = []
    for path in executed(run):
        body, _ = exporter.from_filename(str(path))
        link = '<p style="margin:1rem"><a href="index.html">All notebooks of this run</a></p>'
        body = body.replace("<main>", f"<main>{link}", 1)
        with aside(run / "report" / f"{path.stem}.html") as temporary:
            temporary.write_text(body)
        pages.append((f"{path.stem}.html", title(path)))
    return pages


def write_provenance(run, settings: dict):
    """provenance.json: settings, code, environment, minutes per notebook, records of artefacts."""
    records = {
        str(path.relative_to(run)): read_json(path)
        for path in sorted(run.rglob("*.json"))
        if isinstance(read_json(path), dict) and "artefact" in read_json(path)
    }
    files = [*run.glob("tables/*.csv"), *run.glob("figures/*.png")]
    write_json(
        run / "provenance.json",
        {
            "settings": settings,
            "code": code_version(),
            "environment": environment(),
            "minutes": {path.stem: round(minutes(path), 2) for path in executed(run)},
            "artefacts": records,
            "sha256": {str(path.relative_to(run)): file_digest(path) for path in sorted(files)},
        },
    )


def write_index(run, settings: dict, pages):
    """report/index.html: both tables, the notebooks with their minutes, the settings."""
    links = "".join(
        f'<li><a href="{html.escape(name)}">{html.escape(heading)}</a> '
        f"({minutes(run / 'notebooks' / name.replace('.html', '.ipynb')):.1f} min)</li>"
        for name, heading in pages
    )
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in settings.items()
    )
    body = (
        f"<h1>Dermatoscopic lesions from visual and textual prompts: {html.escape(run.name)}</h1>"
        f"<p>Preset {html.escape(settings['preset'])}, lesionlib {html.escape(code_version())}. "
        f"{html.escape(quarantined(run))}</p>"
        "<h2>Table 1: image quality</h2><p>S-test, empty prompt, generated against original, "
        "mean over images.</p>"
        + table(run, "table1").to_html(index=False, float_format="%.3f", border=0)
        + "<h2>Table 2: segmentation</h2><p>Dice on S-test, mean per image; mean and standard "
        "deviation over seeds.</p>"
        + table(run, "table2").to_html(index=False, float_format="%.3f", border=0)
        + f"<h2>Notebooks</h2><ol>{links}</ol><h2>Settings</h2><table>{rows}</table>"
    )
    with aside(run / "report" / "index.html") as temporary:
        temporary.write_text(PAGE.format(title=f"lesionlib: {html.escape(run.name)}", body=body))


if __name__ == "__main__":
    folder, values = resolve(sys.argv[1]), json.loads(sys.argv[2])
    write_index(folder, values, write_pages(folder))
    write_provenance(folder, values)

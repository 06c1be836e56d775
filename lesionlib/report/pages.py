"""The run's report: executed notebooks as linked pages, and provenance.

`python -m lesionlib.report.pages RUN SETTINGS-JSON` writes report/index.html and provenance.json.
"""

import html
import json
import re
import sys

import pandas as pd
from nbconvert import HTMLExporter

from lesionlib.data.split import PARTS
from lesionlib.engine import trace
from lesionlib.engine.files import ROOT, atomic_write, read_json, resolve, write_json
from lesionlib.engine.provenance import code_version, environment, file_digest
from lesionlib.evaluation import paper
from lesionlib.evaluation.paper import named
from lesionlib.report import notebooks
from lesionlib.report.summary import quarantined, table

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #1d2733; background: #fff }}
body {{ max-width: 74rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ line-height: 1.2 }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid #ccd }}
.scroll {{ overflow-x: auto }} table {{ border-collapse: collapse; font-size: .92rem }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ccd; text-align: right }}
td {{ white-space: nowrap }} .bar {{ background: linear-gradient(90deg, #bcd7f0 var(--share),
transparent var(--share)) }} .prose td {{ white-space: normal }}
th:first-child, td:first-child {{ text-align: left }}
th button {{ font: inherit; font-weight: bold; background: none; border: 0; cursor: pointer }}
th[aria-sort=ascending] button::after {{ content: " \\2191" }}
th[aria-sort=descending] button::after {{ content: " \\2193" }}
p, figure {{ max-width: 62rem }}
figure {{ margin: 1.5rem 0 }} figure img {{ max-width: 100%; height: auto }}
figcaption, .small {{ color: #4a5765; font-size: .92rem }}
code, pre {{ font-size: .88rem }} pre {{ overflow-x: auto; background: #f3f5f8; padding: .7rem }}
</style></head><body>{body}
<script>
for (const head of document.querySelectorAll("table.sort th")) {{
  const button = document.createElement("button");
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.onclick = () => {{
    const table = head.closest("table"), column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    const key = row => row.cells[column].textContent.trim();
    const rows = [...table.tBodies[0].rows].sort((a, b) => {{
      const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
      const order = isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b)) : x - y;
      return down ? -order : order;
    }});
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...rows);
  }};
}}
</script></body></html>
"""
FIGURES = {  # name: caption; the file may be missing in a run that draws no such figure
    "figure1": "Figure 1. Synthetic images with the masks and prompts they were made from.",
    "figure2": "Figure 2. The study: what goes where, with the numbers of images of this run.",
    "figure3": "Figure 3. Four masks of S-test, one from each quarter of lesion areas: the "
    "original, and what each generator made of the mask alone.",
    "figure4": "Figure 4. The same four, enlarged where the original has most texture.",
    "segmentation": "Dice on S-test against the number of synthetic pairs added. Dashed: S-train "
    "alone. Bars: standard deviation over seeds.",
    "low_data_unet": "Dice of the U-Net against the share of S-train, with and without synthetic "
    "pairs, equal optimiser steps. Bars: 95 % interval over images and seeds.",
}


# Parameters are long lists, twice: the defaults and what this run was given.
FOLD = """<style>
:is(.celltag_settings, .celltag_parameters, .celltag_injected-parameters) .highlight
{ max-height: 9rem; overflow-y: auto }
.jp-OutputArea-output { overflow-x: auto }</style>"""


RESOURCES = {  # what `stage` measures: heading, and units per unit that is shown
    "seconds": ("minutes", 60),
    "cpu_seconds": ("CPU minutes", 60),
    "memory_mb": ("largest memory, GB", 1024),
    "gpu_memory_mb": ("largest GPU memory, GB", 1024),
    "gpu_energy_wh": ("GPU energy, Wh", 1),
}


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


def described(body: str, path) -> str:
    """A page whose pictures have the texts of `plots.show`: nbconvert leaves them without."""
    outputs = [o for cell in json.loads(path.read_text())["cells"] for o in cell.get("outputs", [])]
    shown = [o["metadata"] for o in outputs if "image/png" in o.get("data", {})]
    texts = iter([html.escape(x.get("image/png", {}).get("alt", "picture")) for x in shown])
    return re.sub(
        'alt="No description has been provided for this image"',
        lambda found: f'alt="{next(texts, "picture")}"',
        body,
    )


def write_pages(run) -> list[tuple[str, str]]:
    """Every executed notebook as a static page; returns (file name, title) of each."""
    exporter = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.mathjax_url = exporter.require_js_url = ""  # readable offline: no script from the net
    pages = []
    for path in executed(run):
        body, _ = exporter.from_filename(str(path))
        link = '<p style="margin:1rem"><a href="index.html">All notebooks of this run</a></p>'
        body = body.replace("<main>", f"{FOLD}<main>{link}", 1)
        with atomic_write(run / "report" / f"{path.stem}.html") as temporary:
            temporary.write_text(described(body, path))
        pages.append((f"{path.stem}.html", title(path)))
    return pages


def write_provenance(run, settings: dict):
    """provenance.json: settings, code, environment, minutes per notebook, records of artefacts."""
    records = {str(k.relative_to(run)): facts for k, facts in trace.records(run).items()}
    split = table(run, "curation")["split"]
    files = [*run.glob("tables/*.csv"), *run.glob("figures/*.png")]
    write_json(
        run / "provenance.json",
        {
            "settings": settings,
            "code": code_version(),
            "environment": environment(),
            "images": {part: int((split == part).sum()) for part in PARTS},
            "quarantine": quarantined(run),
            "minutes": {path.stem: round(minutes(path), 2) for path in executed(run)},
            "resources": {
                name: {key: facts.get(key, 0) for key in RESOURCES}
                for name, facts in trace.stages(run).items()
            },  # an older stage may have measured less
            "artefacts": records,
            "sha256": {str(path.relative_to(run)): file_digest(path) for path in sorted(files)},
        },
    )


def _around(row, digits: int) -> str:
    values = (row["mean"], row["mean_low"], row["mean_high"])
    return "{} ({} to {})".format(*(f"{value:.{digits}f}" for value in values))


def image_table(folder) -> pd.DataFrame:
    """Table 1 of a run with 95 % intervals, the paper's values beside it."""
    rows = _read(folder, "table1_comparison").set_index(["arm", "measure"]).to_dict("index")
    digits = {"mse": 3, "psnr_255": 2, "psnr_1": 2, "ssim": 3}
    heads = ["MSE", "PSNR (range 255, as the paper)", "PSNR (range 1)", "SSIM"]
    told = paper.TABLE1.set_index("method")
    found = []
    for method in _read(folder, "table1")["method"]:
        values = [_around(rows[method, m], d) for m, d in digits.items()]
        row = {"": named(method)} | dict(zip(heads, values, strict=True))
        for measure in ("mse", "psnr_255", "ssim"):
            known = told[f"paper {measure}"].get(method)
            head = f"paper: {measure.split('_')[0].upper()}"
            row[head] = "" if known is None else f"{known:.2f}"
        found.append(row)
    return pd.DataFrame(found)


def dice_table(folder) -> pd.DataFrame:
    """Table 2 of a run with 95 % intervals, a row per training set, the paper's value beside it."""
    table, found = _read(folder, "table2_comparison"), []
    told = paper.beside_table2(_read(folder, "table2"))
    columns = list(dict.fromkeys(zip(table["network"], table["schedule"], strict=True)))
    for arm in dict.fromkeys(table["arm"]):
        method, amount = arm.split()
        row = {"trained on": named(method) if method == "real" else f"+ {amount} {named(method)}"}
        for network, schedule in columns:
            where = (table["network"] == network) & (table["schedule"] == schedule)
            some = table[where & (table["arm"] == arm)]
            head = f"{named(network)}, equal {schedule}"
            row[head] = _around(some.iloc[0], 3) if len(some) else ""
        same = (told["method"] == method) & (told["amount"] == int(amount))
        for network in dict.fromkeys(told["network"]):
            known = told.loc[same & (told["network"] == network), "paper dice"].dropna()
            row[f"paper: {named(network)}"] = f"{known.iloc[0]:.3f}" if len(known) else ""
        found.append(row)
    return pd.DataFrame(found)


def fidelity_table(folder) -> pd.DataFrame:
    """Dice and HD95 of the reference segmenter with the masks, mean per image."""
    table = _read(folder, "mask_fidelity").groupby("images", sort=False)[["dice", "hd95"]].mean()
    table = table.round(3).reset_index()
    table["images"] = [
        "real images (ceiling)" if x == "real" else named(x) for x in table["images"]
    ]
    return table.rename(columns={"dice": "Dice", "hd95": "HD95 (share of the diagonal)"})


def verdict_table(folder) -> pd.DataFrame:
    """The verdicts on the paper's claims, Table 1 first, with the numbers behind them."""
    rows = pd.concat([_read(folder, "image_claims"), _read(folder, "claims")])
    around = [
        f"{x.difference:+.3f} ({x.low:+.3f} to {x.high:+.3f})" for x in rows.itertuples(index=False)
    ]
    return pd.DataFrame(
        {
            "claim": rows["claim"],
            "verdict": rows["verdict"],
            "difference (95 % interval)": around,
            "p (Holm)": [f"{p:.2g}" for p in rows["p_holm"]],
            "detectable with 80 % power": rows["detectable"].map("{:.3f}".format),
        }
    )


def abstract(folder, facts: dict) -> str:
    """What was done and found, made from the numbers of a run."""
    counts, settings = facts["images"], facts["settings"]
    kind = "procedural images" if settings["source"] == "phantom" else "dermoscopic images"
    one = _read(folder, "table1").set_index("method")
    best = ", ".join(f"{named(m)} {row['ssim']:.3f}" for m, row in one.iterrows())
    rows = _read(folder, "table2_comparison")
    gains = []
    for network, some in rows.groupby("network", sort=False):
        for schedule, part in some[some["arm"] != "real 0"].groupby("schedule", sort=False):
            top = part.loc[part["difference"].idxmax()]
            method, amount = top["arm"].split()
            gains.append(
                f"{top['difference']:+.3f} ({top['low']:+.3f} to {top['high']:+.3f}) for "
                f"{named(network)} with {amount} {named(method)} pairs at equal {schedule}"
            )
    said = pd.concat([_read(folder, "image_claims"), _read(folder, "claims")])["verdict"]
    number = said.value_counts()
    outcome = ", ".join(
        f"{number.get(k, 0)} {k}" for k in ("confirmed", "not confirmed", "not resolvable")
    )
    return (
        f"Du et al. 2023 report that dermoscopic images painted by a diffusion model from a mask "
        f"and a sentence improve lesion segmentation. This run repeats their study on "
        f"{sum(counts.values()):,} {kind}: {counts['G']:,} for the generators, "
        f"{counts['S-train']:,} / {counts['S-val']:,} / {counts['S-test']:,} for training, "
        f"choosing and testing the segmentation networks; seeds: {len(settings['seeds'])}. SSIM "
        f"against the originals: {best}. Largest differences of Dice to S-train alone: "
        f"{'; '.join(gains)} (95 % intervals over images and seeds). Of the paper's claims that "
        f"this run can judge: {outcome}."
    )


def resources(facts: dict) -> str:
    """Table and bars of what each stage took, as HTML."""
    spent = facts.get("resources", {})
    most = {key: max([1e-9, *(one[key] for one in spent.values())]) for key in RESOURCES}
    shown = {key: head for key, head in RESOURCES.items() if most[key] > 1e-9}
    rows = []
    for name in sorted(spent):
        cells = "".join(
            f'<td class="bar" style="--share:{100 * spent[name][key] / most[key]:.0f}%">'
            f"{spent[name][key] / unit:.1f}</td>"
            for key, (_, unit) in shown.items()
        )
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    heads = "".join(f"<th>{head}</th>" for head, _ in shown.values())
    return (
        f'<div class="scroll"><table class="sort"><thead><tr><th>stage</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _html(table: pd.DataFrame, classes: str = "sort") -> str:
    text = table.to_html(index=False, border=0, classes=classes, na_rep="")
    return f'<div class="scroll">{text}</div>'


def _figures(folder, prefix: str) -> str:
    found = []
    for name, caption in FIGURES.items():
        if (folder / f"{name}.png").exists():
            said = html.escape(caption)
            found.append(
                f'<figure><img src="{prefix}{name}.png" alt="{said}">'
                f"<figcaption>{said}</figcaption></figure>"
            )
    return "".join(found)


def index(run, facts: dict, links, figures, prefix: str, name: str) -> str:
    """The report's page: abstract, tables, figures, verdicts, notebooks, run facts.

    `run` holds tables/; `facts` is its provenance; `links` are (address, title, minutes) of the
    notebooks; `figures` the folder of the pictures, `prefix` its address from the page; `name`
    the run's.
    """
    settings, escape = facts["settings"], html.escape
    items = "".join(
        f'<li><a href="{escape(address)}">{escape(heading)}</a> ({spent:.1f} min)</li>'
        for address, heading, spent in links
    )
    packages = ", ".join(f"{k} {v}" for k, v in facts["environment"]["packages"].items())
    what = {
        "preset": settings["preset"],
        "images": ", ".join(f"{part} {n}" for part, n in facts["images"].items()),
        "seeds": ", ".join(map(str, settings["seeds"])),
        "hardware": facts["environment"]["hardware"],
        "time": f"{sum(facts['minutes'].values()):.0f} minutes of notebooks, some side by side",
        "code": f"lesionlib {facts['code']}",
        "software": f"Python {facts['environment']['python']}, {packages}",
    }
    rows = "".join(
        f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in what.items()
    )
    values = "\n".join(f"{key}: {value}" for key, value in settings.items())
    n = facts["images"]["S-test"]
    body = f"""<h1>Dermatoscopic lesions from visual and textual prompts</h1>
<p class="small">Run {escape(name)}: an open reimplementation of Du et al. 2023
(arXiv 2310.02906). {escape(facts["quarantine"])}</p>
<h2>Abstract</h2><p>{escape(abstract(run, facts))}</p>
<h2>Table 1: image quality</h2><p class="small">S-test, empty prompt, generated against original,
n = {n} images; mean, 95 % interval over images.</p>{_html(image_table(run))}
<h2>Is the lesion in its mask?</h2><p class="small">Dice and HD95 of a U-Net that knows real images
only, n = {n}.</p>{_html(fidelity_table(run))}
<h2>Table 2: segmentation</h2><p class="small">Dice on S-test, n = {n}, seeds:
{len(settings["seeds"])}; mean, 95 % interval over images and seeds. The paper trains for
equal epochs.</p>{_html(dice_table(run))}
<h2>What this says of the paper's claims</h2><p class="small">Confirmed: the interval lies above
zero and p (corrected by Holm) is below 0.05. Not confirmed: not even half a Dice point of gain is
within the interval. Not resolvable: this design cannot tell.</p>
{_html(verdict_table(run), "sort prose")}
<h2>Figures</h2>{_figures(figures, prefix)}
<h2>Notebooks</h2><ol>{items}</ol>
<h2>Time, memory, energy</h2><p class="small">Of each notebook; bars are shares of the
largest value of the column. Some ran side by side. Energy: what the GPUs counted (NVML), other
programs on them included; that of the processors is not known.</p>
{resources(facts)}
<h2>How to cite</h2><pre>{escape((ROOT / "CITATION.cff").read_text())}</pre>
<h2>This run</h2><div class="scroll"><table>{rows}</table></div>
<details><summary>All settings</summary><pre>{escape(values)}</pre></details>"""
    return PAGE.format(title=f"lesionlib: {escape(name)}", body=body)


def write_index(run, pages):
    """report/index.html of a run, with its pages and figures."""
    facts = read_json(run / "provenance.json")
    links = [
        (name, heading, facts["minutes"][name.removesuffix(".html")]) for name, heading in pages
    ]
    text = index(run, facts, links, run / "figures", "../figures/", run.name)
    with atomic_write(run / "report" / "index.html") as temporary:
        temporary.write_text(text)


def _read(folder, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / f"{name}.csv")


if __name__ == "__main__":
    folder, values = resolve(sys.argv[1]), json.loads(sys.argv[2])
    write_provenance(folder, values)
    write_index(folder, write_pages(folder))

"""The report of a run: executed notebooks as linked pages, and provenance.

`python -m lesionlib.report.pages RUN STAGE ... [--settings JSON]` writes report/STAGE.html of each
stage; with all settings by their flat keys also report/index.html and provenance.json. The pages
are rendered from templates/; this module prepares their contents.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from lesionlib.data.split import PARTS
from lesionlib.engine import trace
from lesionlib.engine.files import ROOT, atomic_write, read_json, resolve, write_json
from lesionlib.engine.provenance import code_version, environment, file_digest
from lesionlib.engine.stages import STAGES
from lesionlib.evaluation import claims, fidelity, paper, statistics
from lesionlib.evaluation.paper import display_name
from lesionlib.report import findings, forest
from lesionlib.report.summary import file_of, quarantined, table

TEMPLATES = Environment(
    loader=PackageLoader("lesionlib.report"), autoescape=True, undefined=StrictUndefined
)
FIGURES = {  # name: caption, if the run has it; the first one leads the report
    "figure3": "Figure 3. Four masks of S-test, one from each quarter of lesion areas: the "
    "original, and the image that each generator made from the mask alone.",
    "figure1": "Figure 1. Synthetic images with the masks and prompts they were made from.",
    "figure2": "Figure 2. The path of the data, with the numbers of images of this run.",
    "figure4": "Figure 4. The same four, enlarged where the original has most texture.",
    "segmentation": "Dice on S-test against the number of synthetic pairs added. Dashed: S-train "
    "alone. Bars and grey band: 95 % intervals over images and seeds.",
    "validation": "Dice on S-val during training. Black: the training on S-train alone that found "
    "the plateau (dashed); grey: all others.",
    "worth_unet_steps": "Dice of the U-Net against the number of real pairs (black), and what "
    "synthetic pairs are worth in real ones. Bars: 95 % intervals over images and seeds.",
}
UNFINISHED = " †"
NOTES = {  # what stands beside the tables of a report
    "parts": "G trains the generators; S-train, S-val and S-test train, validate and test the "
    "segmentation networks.",
    "verdicts": "Supported: the interval lies above zero and p (corrected by Holm) is below 0.05. "
    "Ruled out: the interval excludes a gain of half a Dice point, 0.005 (in Table 1, any gain). "
    "Inconclusive: neither, or no gain could have been shown here; an interval below zero points "
    "the other way even then.",
    "fidelity": "Dice and HD95 of a U-Net trained on real images only, on the masks of S-test and "
    "on those of the training pairs; 95 % intervals over images. Beside them real images, in place "
    "and moved to the masks of the training pairs. Distractor: a lesion outside the mask.",
    "table2": f"{paper.FOOTNOTE}{UNFINISHED}: a training ended before the plateau of its "
    "validation.",
    "headroom": "Headroom: what all real pairs of G add to S-train in place of synthetic ones. "
    "Unless it is shown to be above half a Dice point (0.005), synthetic pairs cannot be judged.",
    "worth": "Where a network with synthetic pairs stands on the curve of Dice against the number "
    "of real pairs.",
}
RESOURCES = {  # measurement of `stage`: heading, and measured units per displayed unit
    "sittings": ("sittings", 1),
    "seconds": ("minutes", 60),
    "cpu_seconds": ("CPU minutes", 60),
    "memory_mb": ("largest memory, GB", 1024),
    "gpu_memory_mb": ("largest GPU memory, GB", 1024),
    "gpu_energy_wh": ("GPU energy, Wh", 1),
}
IMAGE_MEASURES = {  # column of Table 1: heading, decimal places
    "mse": ("MSE", 3),
    "psnr_255": ("PSNR (range 255, as the paper)", 2),
    "psnr_1": ("PSNR (range 1)", 2),
    "ssim": ("SSIM", 3),
}


def executed(run) -> list[Path]:
    """The executed notebooks of a run in the order of the study, jobs of the grid left out."""
    paths = [run / "notebooks" / f"{stage}.ipynb" for stage in STAGES]
    return [path for path in paths if path.exists()]


def title(path) -> str:
    """The first heading of a notebook."""
    for cell in json.loads(path.read_text())["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if line.startswith("# "):
                return line[2:]
    return path.stem


def write_pages(run, stages=STAGES):
    """Write the executed notebooks of these stages as static pages, report/STAGE.html."""
    from lesionlib.report.maths import OfflineExporter  # slow import, see below

    exporter = OfflineExporter(
        template_name="templates",  # nbconvert's term for the folder
        template_file="notebook.html.j2",
        extra_template_basedirs=[str(Path(__file__).parent)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    for path in executed(run):
        if path.stem in stages:
            body, _ = exporter.from_filename(str(path))
            with atomic_write(run / "report" / f"{path.stem}.html") as temporary:
                temporary.write_text(body)


def write_provenance(run, settings: dict):
    """Write provenance.json: settings, code, environment, resources, records of artefacts."""
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
            "resources": {
                name: {key: facts[key] for key in RESOURCES}
                for name, facts in trace.stages(run).items()
            },
            "artefacts": {
                str(path.relative_to(run)): facts for path, facts in trace.records(run).items()
            },
            "sha256": {str(path.relative_to(run)): file_digest(path) for path in sorted(files)},
        },
    )


def _read(folder, name: str) -> pd.DataFrame:
    return pd.read_csv(file_of(folder, name))


def _with_interval(row, digits: int) -> str:
    values = (row.mean, row.mean_low, row.mean_high)
    return "{} ({} to {})".format(*(f"{value:.{digits}f}" for value in values))


def coloured(html: str) -> str:
    """A table as HTML with the cells that hold a verdict in its colour (`claims.VERDICTS`)."""
    for name, colour in claims.VERDICTS.items():
        html = html.replace(f"<td>{name}</td>", f'<td style="color:{colour}">{name}</td>')
    return html


TEMPLATES.filters["coloured"] = coloured


def image_table(folder) -> pd.DataFrame:
    """Table 1 of a run with 95 % intervals, beside the paper's values; a row per method."""
    compared = _read(folder, "table1_comparison").itertuples()
    rows = {(row.arm, row.measure): row for row in compared}
    reported = paper.TABLE1.set_index("method")
    found = []
    for method in _read(folder, "table1")["method"]:
        row = {"": display_name(method)}
        for measure, (heading, digits) in IMAGE_MEASURES.items():
            row[heading] = _with_interval(rows[method, measure], digits)
        for measure in ("mse", "psnr_255", "ssim"):
            value = reported[f"paper {measure}"].get(method)
            heading = f"paper: {measure.split('_')[0].upper()}"
            row[heading] = "" if value is None else f"{value:.2f}"
        found.append(row)
    return pd.DataFrame(found)


def dice_table(folder) -> pd.DataFrame:
    """Table 2 of a run with 95 % intervals, beside the paper's Dice; a row per training set.

    UNFINISHED marks means of trainings of which some ended before their plateau.
    """
    compared, reported = (
        _read(folder, "table2_comparison"),
        paper.join_table2(_read(folder, "table2")),
    )
    keys = ["network", "schedule", "trained on"]
    marks = reported.set_index(keys)["unfinished"].gt(0).map({True: UNFINISHED, False: ""})
    found = {}
    for row in compared.rename(columns={"trained on": "label"}).itertuples():
        column = f"{display_name(row.network)}, equal {row.schedule}"
        mark = marks.get((row.network, row.schedule, row.label), "")
        found.setdefault(row.label, {"trained on": row.label})[column] = (
            _with_interval(row, 3) + mark
        )
    wide = pd.DataFrame(found.values())
    for network, subset in reported.groupby("network", sort=False):
        known = subset.groupby("trained on")["paper dice"].first().reindex(found)
        if known.notna().any():
            text = known.map("{:.3f}".format, na_action="ignore")
            wide[f"paper: {display_name(network)}"] = text.to_numpy()
    return wide.fillna("")


def headroom_table(folder) -> pd.DataFrame:
    """What real pairs of G add, by network, schedule and share of S-train; empty if unknown."""
    rows = _read(folder, "headroom")
    return pd.DataFrame(
        {
            "network": rows["network"].map(display_name),
            "schedule": "equal " + rows["schedule"],
            "S-train": rows["share"].map("{} %".format),
            "Dice alone": rows["alone"].map("{:.3f}".format),
            "real pairs added": rows["pairs"].map("{:,}".format),
            "difference (95 % interval)": _differences(rows),
            "headroom": rows["enough"].map({True: "yes", False: "no"}),
        }
    )


def _differences(rows: pd.DataFrame) -> list[str]:
    return [claims.with_interval(row) for row in rows.to_dict("records")]


def fidelity_table(folder) -> pd.DataFrame:
    """Mask fidelity on the masks of S-test and of the training pairs, a row per set of images.

    Dice with its 95 % interval over images.
    """
    rows = _read(folder, "mask_fidelity")
    wide = {}
    for masks, part in rows.groupby("masks", sort=False):
        groups = part.groupby("images", sort=False)
        shares = {
            f"at least {fidelity.HIT}": groups["dice"].agg(
                lambda dice: (dice >= fidelity.HIT).mean()
            ),
            "HD95 (share of the diagonal)": groups["hd95"].mean(),
            "with a distractor": groups["distractors"].agg(lambda n: (n > 0).mean()),
        }
        wide[f"{masks}: Dice"] = groups["dice"].agg(_interval_over_images)
        for heading, values in shares.items():
            wide[f"{masks}: {heading}"] = values.map("{:.3f}".format)
    found = pd.DataFrame(wide).reindex(rows["images"].unique()).fillna("")  # the base has no pairs
    found = found.rename(index=lambda name: "real images" if name == "real" else name)
    return found.rename(index=display_name).rename_axis("images").reset_index()


def _interval_over_images(scores: pd.Series) -> str:
    mean, low, high = statistics.interval(scores.to_numpy())
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def claims_table(folder) -> pd.DataFrame:
    """The verdicts on all claims and controls (`findings.tested`), with the numbers behind them."""
    rows = findings.tested(folder)
    return pd.DataFrame(
        {
            "claim": rows["claim"],
            "verdict": rows["verdict"],
            "difference in its favour (95 % interval)": _differences(rows),
            "p (Holm)": rows["p_holm"].map(claims.p_text),
            "detectable with 80 % power": rows["detectable"].map("{:.3f}".format),
            "of": rows["kind"],
        }
    )


def resources(facts: dict) -> pd.DataFrame:
    """The resources of each stage in displayed units, without those that no stage used.

    The jobs of the grid (06_segmentation-01, ...) stand in one row: their times are summed, of
    memory it holds the largest.
    """
    spent = pd.DataFrame.from_dict(facts.get("resources", {}), orient="index").sort_index()
    spent = spent.reindex(columns=list(RESOURCES)).fillna(0)
    is_job = spent.index.astype(str).str.contains("-")
    rows = spent.index.where(~is_job, f"06_segmentation, {is_job.sum()} jobs of the grid")
    combined = {key: "max" if key.endswith("_mb") else "sum" for key in RESOURCES}
    spent = spent.groupby(rows).agg(combined)
    used = {key: shown for key, shown in RESOURCES.items() if (spent[key] > 1e-9).any()}
    return pd.DataFrame({heading: spent[key] / unit for key, (heading, unit) in used.items()})


def spent(facts: dict) -> str:
    """The time that all notebooks of a run took together, from its provenance."""
    stages = facts.get("resources", {}).values()
    total = sum(stage["seconds"] for stage in stages) / 60
    told = f"{total:.0f} minutes" if total < 120 else f"{total / 60:.1f} hours"
    # an earlier version recorded the last sitting of a notebook only
    return told if all(stage.get("sittings") for stage in stages) else f"at least {told}"


def _facts(facts: dict) -> dict:
    """Rows of the table about the run, from its provenance."""
    settings, used = facts["settings"], facts["environment"]
    left_out = facts["quarantine"].partition(" (see")[0]
    packages = ", ".join(f"{name} {version}" for name, version in used["packages"].items())
    return {
        "preset": settings["preset"],
        "images": ", ".join(f"{part} {number}" for part, number in facts["images"].items()),
        "left out": left_out or "no image",
        "seeds": ", ".join(map(str, settings["seeds"])),
        "hardware": used["hardware"],
        "time": f"{spent(facts)} of notebooks, some in parallel",
        "code": f"lesionlib {facts['code']}",
        "software": f"Python {used['python']}, {packages}",
    }


def write_index(page, folder, links, figures):
    """Write the report's page, from what the run is to its settings, and forest.svg beside it.

    `folder` holds tables/ and provenance.json, and its name is that of the run; `links` are
    (address, title) of the notebooks; `figures` is the folder of the pictures.
    """
    facts, rows = read_json(folder / "provenance.json"), findings.tested(folder)
    used = resources(facts)
    took = used["minutes"] if "minutes" in used else {}
    forest.write(rows, page.parent / "forest.svg")
    pictures = [
        (os.path.relpath(figures / f"{name}.png", page.parent), caption)
        for name, caption in FIGURES.items()
        if (figures / f"{name}.png").exists()
    ]
    text = TEMPLATES.get_template("index.html").render(
        name=folder.name,
        settings=facts["settings"],
        counts=facts["images"],
        seeds=findings.span(findings.table(folder, "table2")["seeds"]),
        compared=findings.against_paper(folder, facts),
        abstract=findings.abstract(folder, facts),
        forest=(forest.alternative_text(rows), forest.CAPTION),
        notes=NOTES,
        table1=image_table(folder),
        fidelity=fidelity_table(folder),
        table2=dice_table(folder),
        headroom=headroom_table(folder),
        worth=list(findings.table(folder, "worth")["sentence"]),
        claims=claims_table(folder),
        figures=pictures,
        links=[(link, heading, took.get(Path(link).stem, 0)) for link, heading in links],
        resources=used,
        citation=(ROOT / "CITATION.cff").read_text(),
        facts=_facts(facts),
    )
    with atomic_write(page) as temporary:
        temporary.write_text(text)


def main(arguments=None):
    """Entry point."""
    options = argparse.ArgumentParser(description="Write pages of executed notebooks.")
    options.add_argument("run", type=resolve)
    options.add_argument("stages", nargs="*", metavar="stage")
    options.add_argument("--settings", type=json.loads, help="also the report of these settings")
    given = options.parse_args(arguments)
    write_pages(given.run, given.stages)
    if given.settings:
        write_provenance(given.run, given.settings)
        links = [(f"{path.stem}.html", title(path)) for path in executed(given.run)]
        write_index(given.run / "report" / "index.html", given.run, links, given.run / "figures")


if __name__ == "__main__":
    sys.modules["rfc3987_syntax"] = None  # as for papermill, see `workflow.stage.PAPERMILL`
    main()

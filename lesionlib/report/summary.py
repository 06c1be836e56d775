"""The run summary on the terminal: images in quarantine, the tables, the path of the report."""

import pandas as pd

from lesionlib.engine.errors import require
from lesionlib.engine.files import resolve

FIDELITY = "images masks n mean share_50 chance real of_real with_distractor".split()
SHOWN = [
    "network",
    "trained on",
    *"schedule steps dice_mean dice_sd seeds unfinished remark".split(),
]


def file_of(folder, name: str):
    """The file of a table: NAME.csv, or NAME.csv.gz if it was too large to publish otherwise."""
    path = folder / "tables" / f"{name}.csv"
    packed = path.with_name(f"{name}.csv.gz")
    return packed if packed.exists() and not path.exists() else path


def table(run, name: str) -> pd.DataFrame:
    """A table of the run; raises InputError if its notebook has not been run."""
    notebooks = dict.fromkeys(("table1", "fidelity"), "05_image_quality")
    notebooks["table2"] = "06_segmentation"
    found = pd.read_csv(require(file_of(resolve(run), name), notebooks.get(name, "01_data")))
    return found.fillna({"remark": ""}) if "remark" in found else found


def quarantined(run) -> str:
    """One line about the images that curation could not use, or ''."""
    rows = table(run, "curation")
    out = rows[rows["status"] != "used"]
    if out.empty:
        return ""
    return (
        f"{len(out)} of {len(rows)} images are in quarantine (see tables/quarantine.csv), "
        f"for example: {out['reason'].iloc[0]}"
    )


def summary_lines(run) -> str:
    """The last lines on the terminal: the tables and the path of the report."""
    parts = [
        quarantined(run),
        "Table 1: image quality on S-test, empty prompt",
        table(run, "table1").round(3).to_string(index=False),
        "\nMask fidelity: is the lesion in its mask?",
        table(run, "fidelity")[FIDELITY].round(3).to_string(index=False, na_rep=""),
        "\nTable 2: Dice on S-test, mean per image, mean and sd over seeds",
        table(run, "table2")[SHOWN].round(3).to_string(index=False),
        f"\nReport: {resolve(run) / 'report' / 'index.html'}",
    ]
    return "\n".join(part for part in parts if part)

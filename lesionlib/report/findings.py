"""What a run says of the paper: its setting beside the paper's, all claims, and an abstract."""

from types import SimpleNamespace

import pandas as pd

from lesionlib.engine.settings import GROUPS
from lesionlib.evaluation import claims, paper
from lesionlib.evaluation.fidelity import KINDS as KINDS_OF_MASKS
from lesionlib.evaluation.paper import display_name
from lesionlib.generators import budget
from lesionlib.report.summary import table
from lesionlib.segmentation.grid import of_generator

UNITS = {"mse": "MSE", "psnr_255": "PSNR (dB)", "ssim": "SSIM"}
KINDS = {"claims": "Table 2", "controls": "controls", "image_claims": "Table 1"}  # by table
NAMED = 3  # claims that a sentence of the abstract names at most
REASONS = {  # how `insensitive` begins: why a claim remains undecided
    "its headroom was not measured": "what real pairs of G would have added was not measured",
    "headroom not shown": "it was not shown that even real pairs of G add half a Dice point",
    "insensitive": "not even masks of other pairs were seen to harm",
}
TRAINED_ONCE = "each generator was trained once"


def tested(folder) -> pd.DataFrame:
    """All claims and controls of a run: `assessed` of its tables."""
    return assessed({name: table(folder, name) for name in KINDS})


def assessed(tables: dict) -> pd.DataFrame:
    """All claims of the tables {name in KINDS: rows}: a row for each, in the order of `tables`.

    Columns: kind (Table 1, Table 2, controls), claim, schedule, share, unit of the difference,
    difference, low, high (positive favours the claim), p_holm, detectable, verdict, insensitive
    (why the design could not have shown a gain, or empty).
    """
    parts = []
    for name, rows in tables.items():
        kind = KINDS[name]
        if rows.empty:
            continue
        given = rows.get("insensitive", pd.Series("", rows.index)).fillna("").astype(str)
        rows = rows.rename(columns={"comparison": "claim"}).assign(kind=kind, insensitive=given)
        if kind == "Table 1":
            rows["unit"] = rows["measure"].map(UNITS)
        parts.append(rows)
    found = pd.concat(parts, ignore_index=True)
    found = found.reindex(columns=[*found.columns.union(["unit", "schedule", "share"])])
    return found.fillna({"unit": "Dice", "schedule": "", "share": 100, "insensitive": ""})


def abstract(folder, facts: dict) -> list[str]:
    """Three sentences: what was found, what was ruled out, what remains undecided and why.

    `facts` is the run's provenance.
    """
    settings, counts = facts["settings"], facts["images"]
    rows, seeds = tested(folder), span(table(folder, "table2")["seeds"])
    rows = rows[rows["kind"] != "controls"]
    supported, ruled_out = (rows[rows["verdict"] == name] for name in ("supported", "ruled out"))
    images = "procedural" if settings["source"] == "phantom" else "dermoscopic"
    return [
        f"Of the paper's {claims_of(rows)} that this run can test, on {sum(counts.values()):,} "
        f"{images} images of {settings['image_size']} px of which {counts['S-test']:,} test (seeds "
        f"of the networks: {seeds}), {are(supported)} supported{named(supported)}, while mask "
        f"fidelity (Dice of a U-Net that knows real images only) is {_fidelity(folder)}.",
        f"{are(ruled_out).capitalize()} ruled out, in the sense that the interval excludes a gain "
        f"of half a Dice point (in Table 1, any gain){named(ruled_out)}.",
        untold(rows[~rows["verdict"].isin(["supported", "ruled out"])]),
    ]


def _fidelity(folder) -> str:
    """Mean mask fidelity on S-test, real images and those without control included.

    Of a generator that was trained several times it is the mean of its trainings.
    """
    rows = table(folder, "mask_fidelity")
    rows = rows[rows["masks"] == KINDS_OF_MASKS[0]] if "masks" in rows else rows
    names = rows["images"].map(lambda name: of_generator(name)[0])
    means = rows.groupby(names, sort=False)["dice"].mean().rename({"real": "real images"})
    return ", ".join(f"{mean:.3f} for {display_name(name)}" for name, mean in means.items())


def span(numbers, form: str = ".0f") -> str:
    """Numbers in the format `form` as "5" if all are the same, else as "2 to 5"."""
    least, most = format(min(numbers), form), format(max(numbers), form)
    return least if least == most else f"{least} to {most}"


def claims_of(rows: pd.DataFrame) -> str:
    """The number of rows as claims: 1 claim, 2 claims."""
    return f"{len(rows)} claim{'s' * (len(rows) != 1)}"


def are(rows: pd.DataFrame) -> str:
    """The number of rows with its verb: none is, one is, 2 are."""
    return {0: "none is", 1: "one is"}.get(len(rows), f"{len(rows)} are")


def named(rows: pd.DataFrame) -> str:
    """The first claims with their differences, in the order of the paper; '' if there are none."""
    first = [f"{r['claim']}, {claims.with_interval(r)}" for r in rows[:NAMED].to_dict("records")]
    more = f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f": {'; '.join(first)}{more}" if first else ""


def untold(rows: pd.DataFrame) -> str:
    """The sentence on the claims that are neither supported nor ruled out, with the reasons.

    It also says which of them point the other way here: no gain could have been seen, harm could.
    """
    if rows.empty:
        return "Nothing was left open."
    reasons = rows["insensitive"].str.partition(":")[0].map(lambda x: REASONS.get(x, ""))
    reasons[rows["verdict"] == "not tested"] = TRAINED_ONCE
    parts = [f"{n}: {reason}" for reason, n in reasons[reasons != ""].value_counts().items()]
    if (wide := reasons == "").any():
        power = rows.loc[wide & (rows["unit"] == "Dice"), "detectable"]
        seen = f", would have shown {span(power, '.3f')} Dice" if len(power) else ""
        parts.append(f"{wide.sum()}: the interval is too wide{seen}")
    remain = "remains" if len(rows) == 1 else "remain"
    contrary = rows[(rows["high"] < 0) & (rows["verdict"] != "not tested")]
    if len(contrary):
        parts.append(f"in {len(contrary)} the interval is below zero{named(contrary)}")
    return f"{len(rows)} {remain} undecided ({'; '.join(parts)})."


def against_paper(folder, facts: dict) -> pd.DataFrame:
    """The run's setting beside the paper's: a row per quantity. `facts`: the run's provenance."""
    settings, counts = facts["settings"], facts["images"]
    amounts = settings["synthetic_amounts"]
    source = "procedural, not of patients" if settings["source"] == "phantom" else "dermoscopic"
    generators = len(settings["generator_seeds"])
    rows = {
        "images": (f"{sum(counts.values()):,}, {source}", "2,594 of ISIC 2018"),
        "G / S-train / S-val": (_counts(counts), "1,594 / 700 / 100"),
        "S-test": (f"{counts['S-test']:,}", "200"),
        "resolution": (
            f"generators {settings['image_size']} px, networks {settings['segmentation_size']} px",
            "not stated",
        ),
        "base": (_base(settings), "Stable Diffusion, version not stated"),
        "images seen in training": (_images_seen(settings), "not stated"),
        "synthetic pairs ÷ S-train": (
            _multiples(amounts, counts["S-train"]),
            _multiples(paper.AMOUNTS, paper.S_TRAIN),
        ),
        "training of the networks": (_training(folder, facts), "350 epochs, plateau not stated"),
        "seeds": (
            f"networks {span(table(folder, 'table2')['seeds'])}, generators {generators}",
            "1",
        ),
        "loss of Pix2PixHD": (_perceptual(folder), "not stated"),
    }
    found = pd.DataFrame(rows, index=["this run", "the paper"]).T
    return found.rename_axis("").reset_index()


def _counts(counts: dict) -> str:
    return " / ".join(f"{counts[part]:,}" for part in ("G", "S-train", "S-val"))


def _multiples(amounts, s_train: int) -> str:
    return ", ".join(f"{amount / s_train:.2f}" for amount in amounts)


def _base(settings: dict) -> str:
    name = settings["base_model"]
    if not name:
        return "small, trained on G from scratch"
    known = "small, pretrained on procedural images" if name == "small" else name
    return known + (", trained further on G" if settings["base_finetune"] else "")


def _images_seen(settings: dict) -> str:
    groups = {}
    for name in ("base", "controlnet", "pix2pixhd"):
        group = GROUPS[name]
        flat = {field: f"{group.prefix}{field}" for field in group.model_fields}
        groups[name] = group.model_validate({f: settings[key] for f, key in flat.items()})
    seen = budget.table(SimpleNamespace(**groups)).set_index("training")["images seen"]
    used = {"base", *map(display_name, settings["methods"])}
    told = [f"{name} {n:,}" for name, n in seen.items() if name in used]
    given = ["ControlNet was given, trained elsewhere"] if settings["controlnet_model"] else []
    return ", ".join(given + told)


def _training(folder, facts: dict) -> str:
    """Length of the trainings on S-train alone, and how many trainings reached their plateau."""
    settings, rows = facts["settings"], table(folder, "table2")
    alone = rows[(rows["method"] == "real") & (rows["share"] == 100)]
    per_step = max(2, settings["batch"]) / facts["images"]["S-train"]
    lengths = [
        f"{display_name(network)} {steps * per_step:.0f}"
        for network, steps in alone.groupby("network", sort=False)["steps"].first().items()
    ]
    number = int((rows["seeds"] * rows["generators"]).sum())
    reached = number - int(rows["unfinished"].sum())
    return f"epochs: {', '.join(lengths)}; plateau reached by {reached} of {number} in Table 2"


def _perceptual(folder) -> str:
    rows = table(folder, "table1").set_index("method")
    if "pix2pixhd" not in rows.index:
        return "not part of this run"
    return str(rows.get("remark", pd.Series("", rows.index))["pix2pixhd"]) or "VGG19"

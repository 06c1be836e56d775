"""Sentences that read the tables and figures of notebooks 01 and 07, made from the numbers.

Each is true in every run: it says what the numbers say, and no more than they carry. Those of
notebook 05 are in `readings_images`, those of notebook 06 in `readings_networks`.
"""

import cv2
import numpy as np
import pandas as pd
from scipy import stats

from lesionlib.data.prompts import WORDS
from lesionlib.data.split import PARTS
from lesionlib.evaluation import statistics
from lesionlib.evaluation.paper import display_name
from lesionlib.report import findings


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, as in no pair, 1 pair, 3 pairs."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {plural or f'{noun}s'}" if number else f"no {noun}"


def listed(words) -> str:
    """Words in a row, as in a, b and c."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def upper(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def join(table: pd.DataFrame) -> str:
    """How many labels the join of ISIC's tables finds; '' where nothing was joined."""
    if table.empty:
        return ""
    facts = table.set_index("fact")["images"]
    number, found = facts["ids of 2018 Task 1-2"], facts["of these in 2019"]
    lost = facts["named …_downsampled there"]
    return (
        f"Of {counted(number, 'image')}, {found:,} have a row in the tables of 2019, "
        f"{lost:,} of them under a name that ends in `_downsampled`: without removing the suffix "
        f"the join would lose these."
    )


def disagreements(table: pd.DataFrame) -> str:
    """On which labels the sources contradict each other."""
    if table.empty:
        return "The sources contradict each other on no label."
    counts = table["label"].value_counts()
    return (
        f"The sources contradict each other on {counted(len(table), 'label')}, most often on "
        f"{counts.index[0]} ({counts.iloc[0]:,}): these are left empty."
    )


def curation(table: pd.DataFrame, others: int) -> str:
    """What became of the images; `others`: files and labels without an image."""
    used, out = (table["status"] == "used").sum(), table[table["status"] == "quarantined"]
    repaired = table[table["repairs"].fillna("") != ""]
    return (
        f"Of {counted(len(table), 'image')}, {used:,} are used ({used / len(table):.0%}), "
        f"{findings.are(repaired)} repaired, and {findings.are(out)} in quarantine. "
        f"{upper(counted(others, 'file or label', 'files or labels'))} had no image."
    )


def repairs(counts: pd.Series) -> str:
    """The most frequent repair."""
    if counts.empty:
        return "No image needed a repair."
    images = counted(counts.iloc[0], "image")
    return f"The most frequent repair, {counts.index[0]}, was made in {images}."


def orphans(reasons: pd.Series) -> str:
    """Why files and labels have no image: counts by reason."""
    if reasons.empty:
        return "Every file and label belongs to an image."
    number = counted(reasons.sum(), "file or label", "files or labels")
    cause = f"{reasons.index[0]} ({reasons.iloc[0]:,})"
    return f"Of {number} without an image the most frequent kind is: {cause}."


def prompts(column: pd.Series, shown: int) -> str:
    """How many prompts there are, and how unequal they are; `shown`: the first ones of a table."""
    counts = column.value_counts()
    rare = (counts == 1).sum()
    return (
        f"Of {counted(len(counts), 'different prompt')}, the first {min(shown, len(counts))} stand "
        f"for {counts.head(shown).sum() / counts.sum():.0%} of the images, and "
        f"{counted(rare, 'prompt')} for a single image each."
    )


def attributes(table: pd.DataFrame) -> str:
    """The most and the least frequent attribute, of the images whose attributes are known."""
    known = table[list(WORDS)].apply(pd.to_numeric, errors="coerce").dropna(how="all")
    if known.empty:
        return "No attribute is known of any image."
    means = known.mean().rename(WORDS).sort_values()
    return (
        f"Of {counted(len(known), 'image')} with known attributes, {means.iloc[-1]:.0%} show "
        f"{means.index[-1]}, the most frequent one, and {means.iloc[0]:.0%} {means.index[0]}, the "
        f"rarest: a generator sees few examples of it."
    )


def near_duplicates(pairs: pd.DataFrame, number: int) -> str:
    """Whether pictures occur twice among `number` images."""
    if pairs.empty:
        return f"No two of the {number:,} images show the same picture, as far as this search sees."
    involved = len(set(pairs["a"]) | set(pairs["b"]))
    return (
        f"{upper(counted(len(pairs), 'pair'))} among {number:,} images show the same picture; "
        f"{involved:,} images are in such a pair, and the least certain one correlates by "
        f"{pairs['same'].min():.2f}."
    )


def lowest(correlations: pd.Series) -> str:
    """What the pairs of lowest correlation say of all."""
    if correlations.empty:
        return "There is no pair to look at."
    return (
        f"Detail correlates by {correlations.iloc[0]:.2f} in the least certain pair and by "
        f"{correlations.iloc[-1]:.2f} in the last one shown; if the former is one picture, so are "
        f"the pairs that are not shown."
    )


def split(names) -> str:
    """The sizes of the parts."""
    counts = pd.Series(names).value_counts().reindex(PARTS).fillna(0).astype(int)
    shares = [f"{part} {n:,} ({n / len(names):.0%})" for part, n in counts.items()]
    return f"The parts hold {listed(shares)} of the images; only G is seen by generators."


def audit(table: pd.DataFrame) -> str:
    """What the parts of a split share; `table`: of `data.split.audit`."""
    divided = int(table["groups"].sum())
    if not divided:
        return "No lesion, picture or group lies in two parts."
    worst = table.loc[table["groups"].idxmax()]
    return (
        f"Counted at each border, {counted(divided, 'group')} of related images "
        f"{'is' if divided == 1 else 'are'} divided, {worst['groups']} of them at "
        f"{worst['border']}: a network could be tested on what its training has seen."
    )


def examples(table: pd.DataFrame) -> str:
    """How the diagnoses of a part are distributed."""
    counts = table["diagnosis"].replace("", "unknown").value_counts()
    names = [f"{name} {n:,} ({n / len(table):.0%})" for name, n in counts.items()]
    return f"The images of G by diagnosis: {listed(names)}."


def parts(facts: pd.DataFrame) -> str:
    """Whether quantities differ between the parts: Kruskal-Wallis tests, corrected by Holm.

    `facts` has a row per image, its `part`, and a column per quantity.
    """
    found = {}
    for name in facts.columns.drop("part"):
        values = facts[[name, "part"]].dropna()
        groups = [own.to_numpy() for _, own in values.groupby("part")[name]]
        if len(groups) > 1 and values[name].nunique() > 1:
            found[name] = stats.kruskal(*groups).pvalue
    if not found:
        return "There are too few images to compare the parts."
    p = pd.Series(statistics.holm(list(found.values())), list(found)).sort_values()
    tested = f"Kruskal-Wallis, Holm over {counted(len(p), 'quantity', 'quantities')}"
    if p.iloc[0] >= 0.05:
        return f"No difference between the parts is seen (smallest p {p.iloc[0]:.2g}; {tested})."
    names = listed(f"{name} (p {value:.2g})" for name, value in p[p < 0.05].items())
    return f"The parts differ in {names} by more than chance explains ({tested})."


def medians(table: pd.DataFrame) -> str:
    """Between which parts the medians differ most; `table`: a row per part with n."""
    ranges = []
    for name in table.columns.drop("n"):
        column = table[name].dropna().sort_values()
        if len(column):
            (least, low), *_, (most, high) = [*column.items(), *column[-1:].items()]
            ranges.append(f"{name} {low:g} ({least}) to {high:g} ({most})")
    smallest = table["n"].idxmin()
    return (
        f"Medians range over: {'; '.join(ranges)}. {smallest} has "
        f"{counted(table['n'].min(), 'image')} only, so its medians vary most from split to split."
    )


def skin(tones: pd.Series, limit: float) -> str:
    """How many images show skin of an individual typology angle below `limit` degrees."""
    below, known = (tones < limit).sum(), tones.notna().sum()
    return (
        f"{below:,} of {known:,} images have an angle below {limit:g} degrees: what this study "
        f"says of such skin rests on these."
    )


def data_answer(table: pd.DataFrame, diagnosed: float, pairs: int, borders: pd.DataFrame) -> str:
    """The answer to notebook 01's question in four sentences.

    `table`: the curated images with their split; `diagnosed`: share of the used ones; `pairs`:
    number of near-duplicates; `borders`: of `data.split.audit`.
    """
    used, out = (int((table["status"] == name).sum()) for name in ("used", "quarantined"))
    sizes = listed(f"{(table['split'] == part).sum():,} in {part}" for part in PARTS)
    return (
        f"{used:,} of {len(table):,} images are used ({sizes}) and {out:,} are in quarantine; the "
        f"generators may see those in G. {diagnosed:.0%} have a diagnosis for their prompt. "
        f"{upper(counted(pairs, 'pair'))} of images show{'s' * (pairs < 2)} the same picture. "
        f"{audit(borders)}"
    )


def figure1(prompts: list, shown: int) -> str:
    """How the shown pairs were chosen, out of how many prompts."""
    number = len(set(prompts))
    return (
        f"The {len(prompts):,} pairs have {counted(number, 'different prompt')}; of "
        f"{counted(min(shown, number), 'prompt')} the first pair is shown, whatever it looks like."
    )


def external_sets(names) -> str:
    """The external generators of this run."""
    if not names:
        return "This run has no external generator."
    return f"External generators: {listed(names)}; where their lesions lie, notebook 05 measures."


def workflow(counts: dict, pairs: int) -> str:
    """The proportions of the study."""
    total, train = sum(counts.values()), counts["S-train"]
    return (
        f"Generators see {counts['G'] / total:.0%} of the {total:,} images; the {pairs:,} "
        f"synthetic masks are {pairs / train:.2f} times the {train:,} images of S-train "
        f"(the paper's largest set: 7.14 times)."
    )


def figure3(quality: pd.DataFrame, ids) -> str:
    """How typical the shown examples are: their SSIM beside that of all images.

    `quality` is tables/image_quality.csv, `ids` those of the examples.
    """
    lines = []
    for method, rows in quality.groupby("method", sort=False):
        own = rows.loc[rows["id"].isin(list(ids)), "ssim"]
        lines.append(
            f"{display_name(method)} {findings.span(own, '.2f')} (mean over all "
            f"{rows['id'].nunique():,}: {rows['ssim'].mean():.2f})"
        )
    return f"SSIM of these {len(ids)} with their originals: {'; '.join(lines)}."


def detail(images, windows) -> float:
    """Mean absolute Laplacian of the luminance in the window of each image (n, S, S, 3)."""
    found = [
        np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F)[window]).mean()
        for image, window in zip(images, windows, strict=True)
    ]
    return float(np.mean(found))


def figure4(pictures: dict, windows) -> str:
    """The detail of generated images in relation to that of the originals.

    `pictures`: images (n, S, S, 3) by name, the originals first.
    """
    (_, original), *others = ((name, detail(own, windows)) for name, own in pictures.items())
    shares = [f"{name} {value / original:.0%}" for name, value in others]
    return (
        f"Of the detail that the originals have in these windows, the generated images show "
        f"{listed(shares)}; noise counts as detail too."
    )


def outcome(tables: dict) -> str:
    """One sentence: how many claims have which verdict, and why the others remain undecided.

    `tables` as for `findings.assessed`: of claims.table1_claims, table2_claims or controls.
    """
    if all(rows.empty for rows in tables.values()):
        return "This run can test none of these claims."
    rows = findings.assessed(tables)
    told = {name: rows[rows["verdict"] == name] for name in ("supported", "ruled out")}
    parts = [f"{findings.are(own)} {name}" for name, own in told.items()]
    left = rows.drop(pd.concat(told.values()).index)
    ending = findings.untold(left) if len(left) else "none is left open."
    return f"Of {counted(len(rows), 'claim')}, {', '.join(parts)}, and {ending}"


def verdicts(tables: dict) -> list[str]:
    """`outcome`, and the claims that are supported or ruled out."""
    if all(rows.empty for rows in tables.values()):
        return [outcome(tables)]
    rows = findings.assessed(tables)
    told = {name: rows[rows["verdict"] == name] for name in ("supported", "ruled out")}
    return [
        outcome(tables),
        *(f"{upper(name)}{findings.named(own)}." for name, own in told.items() if len(own)),
    ]

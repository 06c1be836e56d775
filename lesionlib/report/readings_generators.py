"""Sentences that read the tables and figures of notebooks 02 to 04, made from their numbers.

Each function gets the numbers that are shown and returns Markdown. A sentence says no more than
they carry, whatever they are: differences that chance gives are called so.
"""

import numpy as np
import pandas as pd

from lesionlib.data.dataset import off_centre
from lesionlib.data.prompts import WORDS
from lesionlib.evaluation import statistics
from lesionlib.evaluation.fidelity import GOOD, HIT
from lesionlib.evaluation.paper import display_name
from lesionlib.masks.recipe import grown
from lesionlib.masks.shapes import STATISTICS
from lesionlib.report.readings import counted, listed

NOTABLE = 0.01  # relative rise of the loss by wrong masks, from which it depends on the mask
CLEAR = 0.1  # difference of two Dice values from which a sentence calls one of them higher
STANDS_OUT = 1.5  # ratio of checkerboards, from which one stands out
FAIR = 0.25  # LSGAN loss, per scale, of a discriminator that scores everything one half


def _named(values: dict, form: str) -> str:
    """ "paper 0.9 and real 0.6" of numbers by name."""
    return listed([f"{name} {value:{form}}" for name, value in values.items()])


def _values(values: dict) -> str:
    """ "2.3 (guidance 1) and 6.8 (guidance 3)" of numbers by name."""
    return listed([f"{value:.1f} ({name})" for name, value in values.items()])


def _modes(names) -> str:
    return listed([f"`{name}`" for name in names])


# Notebook 02


def recipe_steps(examples: list[dict]) -> str:
    """How far the masks of the recipe are from the circles that they began as."""
    ends = [list(steps.values()) for steps in examples]
    ends = [(pictures[0] > 0.5, pictures[-1] > 0.5) for pictures in ends]
    shared = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in ends]
    areas = [b.sum() / a.sum() - 1 for a, b in ends]
    return (
        "With the circles that they began as, the masks share a Dice of "
        f"{listed([f'{value:.2f}' for value in shared])}; their areas differ by "
        f"{listed([f'{value:+.0%}' for value in areas])}."
    )


def elastic(start, bent, shifts) -> str:
    """What an elastic deformation does to a picture (`teaching.deformed`)."""
    far, before, after = np.hypot(*shifts), (start > 0.5).sum(), (bent > 0.5).sum()
    area = f"the area changes by {after / before - 1:+.0%}" if before else "there is no shape"
    return (
        f"The {far.size} control points are shifted by {far.mean():.1f} pixels on average, at most "
        f"by {far.max():.1f}; {area}."
    )


def parameters(rows: dict) -> str:
    """What each parameter of the recipe does to the area of a mask (`teaching.recipe_values`)."""
    areas = [f"{name.split()[0]} {row[0].mean():.0%} to {row[-1].mean():.0%}"
             for name, row in rows.items()]  # fmt: skip
    shapes = [mask for row in rows.values() for mask in row]
    kept = sum(mask.any() and np.array_equal(mask, grown(mask)) for mask in shapes)
    return (
        f"From left to right the area goes from and to: {', '.join(areas)} of the image. "
        f"{len(shapes) - kept} of the {len(shapes)} shapes are empty or no single region: the "
        "recipe would reject them and draw again."
    )


def rejections(rejected: dict, number: int) -> str:
    """How many shapes each mode has drawn in vain, for `number` masks."""
    shares = [f"`{mode}` {n} of {number + n}" for mode, n in rejected.items()]
    return f"Shapes that were no single region, and were drawn again: {listed(shares)}."


def distances(table: pd.DataFrame, held_out: int) -> str:
    """Which masks are nearest to real ones, and which are told apart from them.

    `table` as in notebook 02, real masks in the first row; `held_out`: number of the real masks
    that all rows are compared with.
    """
    rows = table.set_index("masks")
    floor, modes = rows["sum"].iloc[0], rows.iloc[1:]
    sums = modes["sum"]
    near, far = sums.idxmin(), sums.idxmax()
    most = modes.loc[far, list(STATISTICS)].astype(float).idxmax()
    n = rows["n"].clip(upper=held_out)
    chance = 0.5 + 1.96 * np.sqrt(0.25 / (2 * n))
    apart = list(rows.index[rows["told apart"] > chance])
    told = f"tells {_modes(apart)} from real masks" if apart else "tells none of them apart"
    return (
        f"Nearest to real masks is `{near}` (sum {sums[near]:.1f}, against {floor:.1f} among real "
        f"masks), farthest `{far}` ({sums[far]:.1f}), most of all in {most}. The classifier "
        f"{told}: with this many masks chance alone reaches {chance.max():.0%} in one of 40 cases."
    )


def contact(facts: dict, held_out: pd.DataFrame) -> str:
    """How many masks touch the border of the image, beside real ones."""
    shares = {f"`{name}`": (sample["contact"] > 0).mean() for name, sample in facts.items()}
    real = (held_out["contact"] > 0).mean()
    far = max(shares, key=lambda name: abs(shares[name] - real))
    return (
        f"Of the held-out real masks {real:.0%} touch the border of the image; of the others, "
        f"{_named(shares, '.0%')}. {far} differs most, by "
        f"{100 * abs(shares[far] - real):.0f} percentage points."
    )


def conditions(masks: np.ndarray, prompts) -> str:
    """Sizes of the masks, and how varied the prompts are."""
    areas, distinct = masks.mean(axis=(1, 2)), len(set(prompts))
    empty = sum(text == "" for text in prompts)
    without = f", {empty:,} of them empty" if empty else ""
    return (
        f"The {len(masks):,} masks cover from {areas.min():.0%} to {areas.max():.0%} of the image, "
        f"on average {areas.mean():.0%}; there are {distinct:,} different prompts{without}."
    )


def reference(table: pd.DataFrame) -> str:
    """What the reference segmenter finds on real images, and what it can therefore judge."""
    rows = table.set_index("images")
    text = "; ".join(
        f"{name} Dice {row['mean']:.3f}, with other masks {row['chance']:.3f}"
        for name, row in rows.iterrows()
    )
    moved = rows.loc["moved"]
    if moved["mean"] < moved["chance"] + CLEAR:
        return (
            f"Real lesions: {text}. **Where the masks lie it hardly does better than chance: in "
            "this run mask fidelity says nothing about generators.**"
        )
    sizes = moved[["small", "medium-sized", "large"]].dropna().astype(float)
    weakest = f" It is weakest on {sizes.idxmin()} lesions ({sizes.min():.3f})."
    return (
        f"Real lesions: {text}. A generated lesion that fills its mask and is as hard to find as a "
        f"real one scores about {moved['mean']:.2f}, an easier one more."
        f"{weakest if len(sizes) > 1 else ''}"
    )


def in_masks(dice, what: str = "image") -> str:
    """How many lesions lie in their masks, from Dice values (n,); `what` has been judged."""
    dice = np.asarray(dice)
    least, most = dice.min(), dice.max()
    missed, filled = int((dice < HIT).sum()), int((dice >= GOOD).sum())
    return (
        f"Dice with the mask, {counted(len(dice), what)}: mean {dice.mean():.3f}, from {least:.2f} "
        f"to {most:.2f}; {filled:,} at or above {GOOD} (in the mask), {missed:,} below {HIT} "
        "(not where the mask says)."
    )


def masks_answer(distances: pd.DataFrame, judged: pd.DataFrame, mode: str, number: int) -> str:
    """The answer of notebook 02, from its two tables, for `number` masks of a mode."""
    rows, dice = distances.set_index("masks"), judged.set_index("images")["mean"]
    rows.index = [f"`{name}`" for name in rows.index]
    others = [name for name in rows.index[1:] if name != f"`{mode}`"]
    own = rows.loc[f"`{mode}`"]
    told, sums = (rows.loc[others, column].to_dict() for column in ("told apart", "sum"))
    return (
        f"The generators get {number:,} masks of the mode `{mode}`. From shape alone a classifier "
        f"tells such masks from real ones with an accuracy of {own['told apart']:.0%} "
        f"(chance: 50%; {_named(told, '.0%')}). The sum of seven distances from real masks is "
        f"{own['sum']:.1f} ({_named(sums, '.1f')}; of real masks from one another "
        f"{rows['sum'].iloc[0]:.1f}). The reference segmenter finds real lesions with a Dice of "
        f"{dice['in place']:.3f} in place and {dice['moved']:.3f} where these masks lie."
    )


# Notebook 03


def warps(masks: np.ndarray, copies: np.ndarray) -> str:
    """Where lesions lie in place (n, S, S), and in warped copies (m, S, S)."""
    told = []
    for name, found in (("in place", masks), ("in the copies", copies)):
        areas = found.mean(axis=(1, 2))
        away = [off_centre(mask) for mask in found if mask.any()]
        told.append(
            f"{name} they cover {areas.min():.0%} to {areas.max():.0%} of the image, and their "
            f"centres are {np.mean(away):.2f} image sides from its centre on average"
        )
    return f"The lesions shown: {told[0]}; {told[1]}."


def noising(times, signal) -> str:
    """What is left of the image at the last timestep."""
    left = np.sqrt(signal[-1])
    if left < 0.005:
        return (
            f"At t = {times[-1]} nothing of the image is left: sampling, which starts from pure "
            "noise, starts where training has been."
        )
    return (
        f"At t = {times[-1]} {left:.1%} of the image's amplitude is left, though sampling starts "
        "from pure noise: training has never seen what sampling begins with (Lin et al. 2023)."
    )


def parts(locked: int, trained: int) -> str:
    """How many parameters are fixed, and how many are trained."""
    return (
        f"In this run {locked:,} parameters of the UNet are locked and {trained:,} are trained "
        f"({trained / (locked + trained):.0%} of both)."
    )


def course(name: str, values) -> str:
    """From where to where a loss goes: the means of its first and last tenth."""
    values = np.asarray(values, float)
    if not len(values):
        return f"The training was too short for a log of the {name}."
    tenth = max(len(values) // 10, 1)
    first, last = values[:tenth].mean(), values[-tenth:].mean()
    return f"The {name} goes from {first:.3f} to {last:.3f} (first and last tenth of the training)."


def reconstruction(images: np.ndarray, decoded: np.ndarray) -> str:
    """How well the autoencoder keeps images (n, S, S, 3)."""
    errors = ((images.astype(float) - decoded) ** 2).mean(axis=(1, 2, 3)).clip(min=1e-9)
    psnr = 10 * np.log10(255**2 / errors)
    return (
        f"The reconstructions have a PSNR of {psnr.mean():.1f} dB on average ({psnr.min():.1f} to "
        f"{psnr.max():.1f}); what is lost here no generator on this base can show."
    )


def budget(seen: dict, pairs: int) -> str:
    """How often base and ControlNet see each pair of G in this run."""
    names = {"base": "base", "controlnet": "ControlNet"}
    told = [
        f"the {names[name]} sees {count:,} images, each of the {pairs:,} pairs of G "
        f"{count / pairs:.1f} times"
        if count
        else f"the {names[name]} is not trained"
        for name, count in seen.items()
    ]
    return f"In this run {listed(told)}."


def control_effect(table: pd.DataFrame) -> str:
    """Whether the ControlNet starts from nothing, and where it acts once it is trained."""
    start = table["untrained"].max()
    least, at = table["trained"].min(), table.loc[table["trained"].idxmax()]
    begins = (
        "changes nothing at all"
        if start == 0
        else f"changes the prediction by {start:.1%} of its norm"
    )
    return (
        f"Before training the ControlNet {begins}. Afterwards it changes the prediction by "
        f"{least:.1%} to {at['trained']:.1%} of its norm, most at t = {at['t']:.0f}."
    )


def learning(validations: pd.DataFrame) -> str:
    """Whether the validations say that the ControlNet uses the mask."""
    first, last = validations.iloc[0], validations.iloc[-1]
    gain = last["wrong_mask_loss"] / last["held_out_loss"] - 1
    now = f"fidelity is {last['mask_fidelity']:.3f}"
    if first["step"]:  # the beginning is not known: it was measured otherwise, or never
        return f"In the last validation wrong masks change the loss by {gain:+.1%}, {now}."
    rise = last["mask_fidelity"] - first["mask_fidelity"]
    text = (
        f"At the end wrong masks change the held-out loss by {gain:+.1%}, and {now} "
        f"({first['mask_fidelity']:.3f} at step {first['step']:.0f}). "
    )
    verdicts = {
        (True, True): "Both say that the ControlNet uses the mask.",
        (True, False): "The loss depends on the mask, but the lesions do not yet lie in it.",
        (False, True): "The lesions have moved into the masks, but the loss does not show it.",
        (False, False): "**Nothing in these curves says that the ControlNet uses the mask.**",
    }
    return text + verdicts[bool(gain >= NOTABLE), bool(rise >= CLEAR)]


def over_time(dice: dict) -> str:
    """From which label of {label: mean Dice} on the lesions lie in their masks."""
    labels, values = list(dice), np.array(list(dice.values()))
    first = _from_there_on(values)
    reached = f"; from {labels[first]} on they are at or above {GOOD}" if first is not None else (
        f"; none is at or above {GOOD} to the end")  # fmt: skip
    return (
        f"Mean Dice with the masks: {values[0]:.2f} at {labels[0]}, {values[-1]:.2f} at "
        f"{labels[-1]}{reached}."
    )


def _from_there_on(values: np.ndarray) -> int | None:
    """The index from which all values are at least GOOD; None if the last is not."""
    low = np.flatnonzero(values < GOOD)
    first = low[-1] + 1 if len(low) else 0
    return int(first) if first < len(values) else None


def denoising(with_control, alone) -> str:
    """From which DDIM step on the predicted image has its lesion in the mask; Dice (n,) each."""
    first, steps = _from_there_on(np.asarray(with_control)), len(with_control)
    found = f"from step {first + 1} of {steps} on" if first is not None else (
        f"in none of the {steps} steps to the end")  # fmt: skip
    return (
        f"With control, the predicted image has its lesion in the mask (Dice at least {GOOD}) "
        f"{found}. At the end Dice is {with_control[-1]:.2f}; of the base alone, from the same "
        f"noise, {alone[-1]:.2f}."
    )


def same_noise(made, alone) -> str:
    """What control changes: Dice (n,) with and without it, from the same noise."""
    made, alone = np.asarray(made, float), np.asarray(alone, float)
    apart, low, high = statistics.interval(made - alone)
    verdict = (
        "Noise and prompt are the same: the mask makes the difference."
        if low > 0 and len(made) > 1
        else "**These images do not show that the mask makes a difference.**"
    )
    return (
        f"Dice with the mask, {counted(len(made), 'image')}: {made.mean():.3f} with control, "
        f"{alone.mean():.3f} without; the difference is {apart:.3f} (95 % interval over images: "
        f"{low:.3f} to {high:.3f}). {verdict}"
    )


def difference(pictures) -> float:
    """Mean absolute difference of each two of n pictures (n, S, S, 3), in grey levels."""
    pictures = np.asarray(pictures, float)
    pairs = [abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    return float(np.mean(pairs)) if pairs else 0.0


def words(pictures: dict) -> str:
    """How much images of one mask and noise differ by their prompts, by label of guidance."""
    found = {label: difference(images) for label, images in pictures.items()}
    if not any(found.values()):
        return "The prompts change nothing, or there is only one."
    return (
        f"Between two prompts a pixel changes, of 255 grey levels, by {_values(found)} on average. "
        "Mask and noise are the same: all of it is due to the words."
    )


def prompt_grid(grid: np.ndarray) -> str:
    """What another diagnosis or attribute changes: images (diagnoses, attributes, S, S, 3)."""
    by_diagnosis = np.mean([difference(grid[:, i]) for i in range(grid.shape[1])])
    by_attribute = np.mean([difference(row) for row in grid])
    diagnosis = f"another diagnosis by {by_diagnosis:.1f}, " if len(grid) > 1 else ""
    return (
        f"Of 255 grey levels a pixel changes on average: {diagnosis}another attribute by "
        f"{by_attribute:.1f}. Whether the change is the one that the word "
        "asks for, the next table says."
    )


def _limit(first: int, second: int) -> float:
    """The area under the curve that chance exceeds in one of 40 cases, for these numbers."""
    if not first or not second:
        return float("inf")
    return 0.5 + 1.96 * np.sqrt((first + second + 1) / (12 * first * second))


def recognised_labels(table: pd.DataFrame) -> list[str]:
    """Labels that are recognised more often than chance allows (1.96 standard errors)."""
    numbers = zip(table["asked"], table["not_asked"], strict=True)
    limits = np.array([_limit(*pair) for pair in numbers])
    return table.loc[table["auc_generated"].to_numpy() > limits, "label"].tolist()


def recognition(table: pd.DataFrame, total: int) -> str:
    """Which words show, and of which nothing can be said; `total`: number of real images."""
    right = recognised_labels(table)
    real = np.array([_limit(n, total - n) for n in table["real"]])
    blind = table.loc[~(table["auc_real"].to_numpy() > real), "label"]
    blind = [name for name in blind if name not in right]
    text = f"Recognised more often than chance allows: {_worded(right) if right else 'none'}, of "
    text += f"{len(table)} labels (of such, chance alone gives one in 40)."
    if blind:
        text += f" Of {_worded(blind)} nothing can be said: on real images, too, the classifier "
        text += "is not better than chance allows."
    return text


def as_prompted(counts: pd.DataFrame) -> str:
    """How often the diagnosis is the one that the prompt names; `counts` prompted by recognised."""
    n, k = int(counts.to_numpy().sum()), len(counts)
    if k < 2 or not n:
        return "With one diagnosis there is nothing to confuse."
    right = np.diag(counts).sum() / n
    limit = 1 / k + 1.96 * np.sqrt((1 - 1 / k) / k / n)
    verdict = "more than" if right > limit else "no more than"
    wrong = counts.astype(float).mask(np.eye(k, dtype=bool)).stack()
    prompted, seen = wrong.idxmax()
    text = f"{right:.0%} of {n} images are recognised as prompted, {verdict} chance allows "
    text += f"({1 / k:.0%}, at most {limit:.0%} in 39 of 40 cases)."
    if wrong.max():
        text += f" Most often confused: {prompted}, taken for {seen} in {wrong.max():.0f} of "
        text += f"{counts.loc[prompted].sum():.0f}."
    return text


def ablation(table: pd.DataFrame) -> str:
    """The best variants of an ablation (`generated.variants`), beside real images (first row)."""
    real, tried = table.iloc[0], table.iloc[1:]
    nearest = tried.loc[tried["kid"].idxmin()]
    column = "automatic_masks" if "automatic_masks" in tried else "mask_fidelity"
    fullest = tried.loc[tried[column].idxmax()]
    where = "automatic masks" if column == "automatic_masks" else "the masks"
    other = fullest["variant"] != nearest["variant"]
    most = f", and **{fullest['variant']}** has" if other else " and"
    return (
        f"Of {len(tried)} variants **{nearest['variant']}** has the lowest KID "
        f"({nearest['kid']:.2f}; real images {real['kid']:.2f}){most} the highest fidelity "
        f"on {where} ({fullest[column]:.2f}; real images {real[column]:.2f}). Each was trained "
        "once."
    )


def controlnet_answer(dice: dict, pairs, table: pd.DataFrame) -> str:
    """The answer of notebook 03.

    `dice` {"with", "without": values (n,)} on the masks of S-test, `pairs` on those of the
    synthetic pairs; `table` of `attributes.table`.
    """
    short, right = (np.asarray(pairs) < HIT).mean(), recognised_labels(table)
    means = {name: np.mean(values) for name, values in dice.items()}
    return (
        f"The reference segmenter finds the lesion in its mask with Dice {means['with']:.3f} "
        f"(without control {means['without']:.3f}; n = {len(dice['with'])} S-test masks). On the "
        f"masks of the {len(pairs):,} training pairs it is {np.mean(pairs):.3f}; {short:.0%} of "
        f"them are below {HIT}. Of {len(table)} labels that prompts name, the attribute classifier "
        "recognises more often than chance allows: "
        f"{_worded(right) if right else 'none'}."
    )


def _worded(labels) -> str:
    return listed([WORDS.get(label, label) for label in labels])


# Notebook 04


def budgets(table: pd.DataFrame) -> str:
    """How many images Pix2PixHD sees, for one that base and ControlNet see in this run."""
    seen = table.set_index("training")["images seen"]
    own = seen["Pix2PixHD"]
    others = seen[[name for name in ("base", "ControlNet") if name in seen]].sum()
    if not others:
        return f"Pix2PixHD sees {own:,} images; base and ControlNet are not trained in this run."
    return (
        f"Pix2PixHD sees {own:,} images, {own / others:.2f} times as many as base and ControlNet "
        f"together in this run ({others:,})."
    )


def scored(score: float, losses: dict, scales: int) -> str:
    """What the least-squares losses are if a discriminator gives every patch the same score."""
    least, mean = scales * FAIR, (losses["d_real"] + losses["d_fake"]) / 2
    if score == 0.5:
        verdict = "the least that one score for everything can have"
    else:
        side = "real images" if score < 0.5 else "generated ones"
        verdict = f"more than {least:.2f}, that of a score of one half: it errs more on {side}"
    return (
        f"If the discriminators give every patch the score {score:g}, the losses, summed over "
        f"{counted(scales, 'scale')}, are {_named(losses, '.2f')}. The mean of the discriminators' "
        f"two is {mean:.2f}, {verdict}."
    )


def contest(name: str, first: pd.Series, last: pd.Series, scales: int) -> str:
    """Who is ahead at the end of a training: losses in its first and last tenth (`d_real`, ...)."""
    if first.isna().all():
        return f"{name}: the training was too short for a log of its losses."
    critic, fair = (last["d_real"] + last["d_fake"]) / 2, FAIR * scales
    before = (first["d_real"] + first["d_fake"]) / 2
    text = (
        f"{name}: the mean of the discriminators' losses goes from {before:.2f} to {critic:.2f}; "
        f"{fair:.2f} is that of scores of one half everywhere. "
    )
    risen = [key for key in ("g_gan", "g_feat") if last[key] > first[key]]
    if critic >= min(fair, before):
        return text + "They have not pulled ahead of the generator."
    if len(risen) == 2:
        return text + (
            "As they got better, both losses of the generator rose: the discriminators are winning."
        )
    if not risen:
        return text + "Both losses of the generator fell as well: both sides have learnt."
    fell = {"g_gan": "g_feat", "g_feat": "g_gan"}[risen[0]]
    return text + f"Of the generator's losses `{risen[0]}` rose and `{fell}` fell."


def located(dice: dict) -> str:
    """Whether the lesions of each generator lie in their masks: Dice values (n,) by method."""
    told = [f"{display_name(method)} {np.mean(values):.3f} (n = {len(values):,})"
            for method, values in dice.items()]  # fmt: skip
    return f"Mean Dice with the masks: {listed(told)}." if told else ""


def varied(spread: dict) -> str:
    """How varied images are: by method, a pixel's standard deviation, that of real ones being 1."""
    told = [f"{value:.2f} ({display_name(method)})" for method, value in spread.items()]
    return f"Where real images have a variety of 1, it is {listed(told)}." if told else ""


def noises(pictures: dict) -> str:
    """Which generators make several images of one mask: images (n, S, S, 3) by name."""
    told = []
    for name, images in pictures.items():
        apart = difference(images)
        change = f"a pixel changes by {apart:.1f} of 255 grey levels on average"
        told.append(f"{name}: {change if apart else 'the same image each time'}")
    return f"{'; '.join(told)}." if told else ""


def checkerboards(levels: dict) -> str:
    """Whether a checkerboard stands out, beside real images (the first of {name: level})."""
    (_, real), *made = levels.items()
    seen = [name for name, level in made if level > STANDS_OUT * real]
    text = f"Power at the checkerboard's frequencies over that around them: {_named(levels, '.2f')}"
    if seen:
        return f"{text}. It stands out, above {STANDS_OUT} times real images: {listed(seen)}."
    return f"{text}. None is above {STANDS_OUT} times that of real images."


def pix2pixhd_answer(in_place: dict, pairs: dict, spread: dict) -> str:
    """The answer of notebook 04: values as for `located` and `varied`.

    Dice on S-test (`in_place`) and of the synthetic `pairs`.
    """
    told = []
    for method, values in in_place.items():
        told.append(
            f"{display_name(method)}: the reference segmenter finds the lesion in its mask with "
            f"Dice {np.mean(values):.3f} (n = {len(values):,} S-test masks) and "
            f"{np.mean(pairs[method]):.3f} (n = {len(pairs[method]):,} training pairs); its images "
            f"differ from one another {spread[method]:.2f} times as much as real ones do "
            "(standard deviation of a pixel over the images)."
        )
    return " ".join(told) or "Pix2PixHD is not part of this run."

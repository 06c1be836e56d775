"""Figures and tables of notebook 06, from made-up rows."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lesionlib.evaluation import paper
from lesionlib.evaluation.claims import VERDICTS
from lesionlib.report import evidence, plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_validation_curves_have_an_axis_per_network_and_mark_the_plateau():
    names = [("unet", "plateau"), ("unet", "steps"), ("dcsaunet", "plateau")]
    table = pd.concat(
        pd.DataFrame({"step": [1, 2, 3], "val_dice": [0.1, 0.5, 0.6]}).assign(
            cell=f"{network}-{schedule}", network=network, schedule=schedule
        )
        for network, schedule in names
    )
    learnt = pd.DataFrame(names, columns=["network", "schedule"]).assign(plateau=[2, 2, np.nan])
    fig = evidence.curves(table, learnt)
    first, second = fig.axes
    assert first.get_title() == "U-Net" and len(first.lines) == 2 + 1  # two curves, one plateau
    assert first.lines[-1].get_xdata()[0] == 2 and len(second.lines) == 1
    without = evidence.curves(table, learnt.assign(plateau=np.nan))
    keys = [[text.get_text() for text in some.legends[0].get_texts()] for some in (fig, without)]
    assert keys[0] == [*keys[1], "start of the plateau"]


def rows(method, amount, share, pairs, dice):
    rng = np.random.default_rng(pairs)
    own = pd.DataFrame({"id": np.arange(40), "dice": dice + rng.normal(0, 0.001, 40)})
    own = own.assign(network="unet", schedule="steps", method=method, amount=amount, share=share)
    return [own.assign(pairs=pairs, seed=seed, generator="first") for seed in range(2)]


def test_the_worth_is_drawn_on_the_curve_of_real_pairs_and_open_ends_have_an_arrowhead():
    images = pd.concat([*rows("real", 0, 25, 145, 0.78), *rows("real", 0, 100, 580, 0.84)])
    table = pd.DataFrame(
        {
            "network": "unet",
            "schedule": "steps",
            "method": "controlnet",
            "amount": 830,
            "start": 145,
            "dice": 0.8,
            "worth": 50.0,
            "low": [-np.inf],
            "high": [200.0],
        }
    )
    curve, arms = evidence.worths(images, table, "unet", "steps").axes
    assert curve.lines[0].get_xdata() == pytest.approx([145, 580])
    drawn = [(line.get_marker(), list(line.get_xdata())) for line in arms.lines]
    assert drawn == [("None", [145, 345]), ("<", [145]), ("s", [195]), ("|", [145])]
    assert [text.get_text() for text in arms.get_yticklabels()] == ["145 real + 830 ControlNet"]


def test_rows_of_table_2_say_what_was_trained_on():
    arms = [
        ("real", 0, 100),
        ("real", 0, 25),
        ("classical", 0, 100),
        ("controlnet", 830, 100),
        ("pix2pixhd", 60, 25),
        ("controlnet_shuffled", 830, 25),
        ("real_pairs", 50, 25),
        ("gan", 830, 0),
    ]
    table = pd.DataFrame(arms, columns=["method", "amount", "share"])
    assert paper.labelled(table, 580, 1321)["trained on"].tolist() == [
        "S-train alone",
        "25 % of S-train (145) alone",
        "S-train, classical augmentation",
        "S-train + 830 ControlNet (paper: 1,000)",
        "25 % of S-train (145) + 60 Pix2PixHD (0.41 × these)",
        "25 % of S-train (145) + 830 ControlNet, masks of other pairs (5.72 × these)",
        "25 % of S-train (145) + 660 real pairs of G",
        "830 gan (paper: 1,000) only",
    ]


def test_the_papers_dice_stands_where_amount_and_schedule_correspond():
    columns = ["network", "method", "amount", "share", "schedule", "pairs"]
    rows = [
        ("unet", "real", 0, 100, "epochs", 580),
        ("unet", "real", 0, 100, "steps", 580),
        ("unet", "controlnet", 830, 100, "epochs", 1410),
        ("unet", "controlnet", 830, 100, "steps", 1410),
        ("unet", "controlnet", 4150, 100, "steps", 4730),  # not trained with equal epochs
        ("unet", "controlnet", 500, 100, "epochs", 1080),  # no amount of the paper
        ("unet", "controlnet", 830, 25, "steps", 975),
        ("dcsaunet", "controlnet", 4150, 100, "steps", 4730),
        ("dcsaunet", "real", 0, 100, "steps", 580),
    ]
    found = paper.join_table2(pd.DataFrame(rows, columns=columns))
    assert found[columns].apply(tuple, axis=1).tolist() == rows
    assert found["paper dice"].fillna(0).tolist() == [0.861, 0, 0.912, 0, 0.914, 0, 0, 0, 0.903]


def test_verdicts_have_their_colour_in_notebooks(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda style: shown.append(style.to_html()))
    plots.table(pd.DataFrame({"claim": ["a", "b"], "verdict": ["supported", "ruled out"]}))
    assert all(VERDICTS[name] in shown[0] for name in ("supported", "ruled out"))
    assert VERDICTS["inconclusive"] not in shown[0]

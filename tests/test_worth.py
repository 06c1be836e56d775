"""The worth of synthetic pairs on simulated curves whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from lesionlib.evaluation import statistics, worth

REAL = {58: 0.70, 145: 0.78, 290: 0.82, 580: 0.84, 1901: 0.86}  # pairs: true Dice
RUNS = 200


def scores(rng, dice, base, seeds=5, noise=0.03, of_seeds=0.006):
    """A score per seed and image: the images' own difficulty, seeds, and a rest."""
    values = dice + base + rng.normal(0, of_seeds, (seeds, 1))
    values = values + rng.normal(0, noise, (seeds, len(base)))
    index = pd.MultiIndex.from_product([["first"], range(seeds)], names=["generator", "seed"])
    return pd.DataFrame(values, index=index)


def simulated(rng, number, curve=REAL, images=80, **options):
    """An arm that is as good as `number` real pairs, and the curve of real pairs."""
    base = rng.normal(0, 0.1, images)
    truth = np.interp(np.log(number), np.log(list(curve)), list(curve.values()))
    knots = [(n, scores(rng, dice, base, **options)) for n, dice in curve.items()]
    return scores(rng, truth, base, **options), knots


@pytest.mark.parametrize("number, start", [(200, 145), (100, 145), (400, 145)])
def test_the_interval_holds_the_true_worth_as_often_as_it_says(number, start, monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 400)
    rng, covered, guesses = np.random.default_rng(1), 0, []
    for _ in range(RUNS):
        found = worth.worth(*simulated(rng, number), start)
        covered += found["low"] <= number - start <= found["high"]
        guesses.append(found["worth"])
    assert 0.92 <= covered / RUNS <= 0.98
    assert np.median(guesses) == pytest.approx(number - start, abs=0.15 * number)


def test_more_seeds_and_images_give_a_narrower_interval():
    rng = np.random.default_rng(2)
    few, many = (
        worth.worth(*simulated(rng, 200, seeds=seeds, images=images), 145)
        for seeds, images in ((3, 40), (8, 400))
    )
    assert many["high"] - many["low"] < (few["high"] - few["low"]) / 2
    assert many["low"] < 55 < many["high"]


def test_on_a_flat_curve_nothing_is_told_apart_and_the_words_say_so():
    flat = dict.fromkeys(REAL, 0.84)
    every = [
        worth.worth(*simulated(np.random.default_rng(seed), 200, curve=flat), 145)
        for seed in range(10)
    ]
    unbounded = [found for found in every if np.isinf(found["low"]) and np.isinf(found["high"])]
    assert len(unbounded) >= 7
    row = unbounded[0] | dict(amount=830, method="controlnet", start=145)
    row |= dict(network="unet", schedule="steps")
    assert worth.sentence(row) == (
        "U-Net, equal optimiser steps: 145 real pairs and 830 ControlNet pairs cannot be placed: "
        "the curve tells no number of real pairs apart from them."
    )


def test_between_two_numbers_the_undecided_part_by_hand():
    assert worth._undecided((-1, 1), (-1, 1)) == (0, 1)
    assert worth._undecided((1, 3), (-1, 1)) == (0.5, 1)
    assert worth._undecided((1, 3), (-3, -1)) == (0.25, 0.75)  # it lies wholly between them
    assert worth._undecided((-1, 1), (-3, -1)) == (0, 0.5)
    assert worth._undecided((1, 3), (0.5, 2)) is None


def test_what_lies_beyond_the_curve_is_said_to_be_at_least_or_at_most_its_end():
    rng = np.random.default_rng(4)
    _, knots = simulated(rng, 200, noise=0.001, of_seeds=0.0005)
    best, worst = knots[-1][1] + 0.03, knots[0][1] - 0.03
    high, low = (worth.worth(arm, knots, 145) for arm in (best, worst))
    assert high["at_least"] and high["worth"] == pytest.approx(1901 - 145) and not high["at_most"]
    assert low["at_most"] and low["worth"] == pytest.approx(58 - 145)
    assert high["high"] == np.inf and low["low"] == -np.inf


def test_the_interval_holds_the_place_where_few_seeds_tell_only_that_apart():
    base = np.zeros(40)
    knots = [(n, scores(np.random.default_rng(n), dice, base)) for n, dice in REAL.items()]
    knots[1][1].iloc[:] += np.linspace(-0.5, 0.5, 5)[:, None]  # 145 pairs: nothing is told apart
    found = worth.worth(knots[0][1] - 0.2, knots, 145)
    assert found["at_most"] and found["low"] == -np.inf and found["high"] > found["worth"]


def test_a_dip_of_the_measured_curve_does_not_mislead_place_and_ends():
    def placed(dice, means):
        base, rng = np.zeros(40), np.random.default_rng(6)
        knots = [(10**n, scores(rng, m, base, noise=0, of_seeds=0)) for n, m in enumerate(means)]
        return worth.worth(scores(rng, dice, base, noise=0, of_seeds=0), knots, 0)

    inner = placed(0.80, [0.7, 0.81, 0.79, 0.9])  # 10 and 100 pairs are as good
    assert inner["worth"] == pytest.approx(10, rel=0.05)
    assert not inner["at_most"] and not inner["at_least"]
    least, most = placed(0.793, [0.80, 0.79, 0.85]), placed(0.855, [0.70, 0.86, 0.84])
    assert least["at_most"] and least["low"] == -np.inf and not least["at_least"]
    assert most["at_least"] and most["high"] == np.inf and not most["at_most"]


def rows_of(method, amount, share, pairs, dice):
    rng = np.random.default_rng(pairs)
    found = pd.DataFrame({"id": np.arange(60), "dice": dice + rng.normal(0, 0.002, 60)})
    names = dict(network="unet", method=method, amount=amount, share=share, schedule="steps")
    return [found.assign(**names, pairs=pairs, seed=s, generator="first") for s in range(3)]


def test_a_table_places_every_arm_and_says_it_in_words():
    rows = pd.concat(
        [
            *rows_of("real", 0, 25, 145, 0.78),
            *rows_of("real", 0, 50, 290, 0.82),
            *rows_of("real", 0, 100, 580, 0.84),
            *rows_of("real_pairs", 100, 100, 1901, 0.86),
            *rows_of("real_pairs", 100, 25, 1466, 0.9),  # not nested in the others: no knot
            *rows_of("controlnet", 830, 25, 975, 0.80),
            *rows_of("controlnet", 830, 0, 830, 0.5),  # beside no real pairs: nothing to be worth
        ]
    )
    assert [number for number, _ in worth.knots(rows)] == [145, 290, 580, 1901]
    table = worth.table(rows)
    assert len(table) == 1 and table["start"].item() == 145
    assert table["worth"].item() == pytest.approx(np.sqrt(145 * 290) - 145, abs=6)
    said = table["sentence"].item()
    assert said.startswith(
        "U-Net, equal optimiser steps: 145 real pairs and 830 ControlNet pairs do as well as 20"
    )
    assert " real pairs alone; worth: 6" in said and "real pairs (95 % interval" in said
    row = table.iloc[0].to_dict() | {"method": "controlnet_shuffled", "worth": -0.2, "low": -np.inf}
    said = worth.sentence(row | {"high": 5.2, "at_most": True})
    assert "145 real pairs and 830 pairs (ControlNet, masks of other pairs) do no better" in said
    assert said.endswith(
        "do no better than the curve's fewest, 145 real pairs alone; worth: at most 0 real pairs "
        "(95 % interval 5 or fewer)."
    )
    most = {"worth": 1756, "low": 1321.4, "high": np.inf, "at_least": True, "at_most": False}
    assert worth.sentence(row | most).endswith(
        "do at least as well as the curve's most, 1,901 real pairs alone; worth: at least 1,756 "
        "real pairs (95 % interval 1,321 or more)."
    )
    assert worth.table(rows[rows["share"] == 100]).empty
    with pytest.raises(ValueError, match="at least two"):
        worth.worth(None, worth.knots(rows)[:1], 145)

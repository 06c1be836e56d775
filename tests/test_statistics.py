"""Intervals that cover, tests without false alarms, corrections by hand."""

import numpy as np
import pytest
from scipy import stats

from lesionlib.evaluation import statistics

RUNS = 1000


def draws(rng, seeds, images, of_seeds, of_images, rest, mean=0.0):
    """Crossed scores: seeds and images have effects of their own, and there is a rest."""
    effects = rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_images, (1, images))
    return mean + effects + rng.normal(0, rest, (seeds, images))


@pytest.mark.parametrize(
    "seeds, of_seeds, of_images, least",
    [
        (1, 0.0, 0.1, 0.92),
        (2, 0.01, 0.1, 0.92),
        (2, 0.05, 0.02, 0.87),  # two seeds that differ much say too little of their spread
        (3, 0.0, 0.1, 0.92),
        (5, 0.01, 0.1, 0.92),
        (5, 0.03, 0.1, 0.92),
        (5, 0.05, 0.02, 0.92),
    ],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(
    seeds, of_seeds, of_images, least, monkeypatch
):
    monkeypatch.setattr(statistics, "DRAWS", 400)
    rng, covered = np.random.default_rng(1), 0
    for run in range(RUNS):
        scores = draws(rng, seeds, 60, of_seeds, of_images, 0.03, mean=0.8)
        _, low, high = statistics.interval(scores, seed=run)
        covered += low <= 0.8 <= high
    assert least <= covered / RUNS <= 0.98


def test_the_interval_covers_too_if_generators_are_drawn_as_well(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 400)
    rng, covered = np.random.default_rng(8), 0
    for run in range(RUNS):
        scores = draws(rng, 3, 60, 0.01, 0.1, 0.03, mean=0.8) + rng.normal(0, 0.02, (3, 1, 1))
        _, low, high = statistics.interval(scores + rng.normal(0, 0.03, (3, 3, 60)), seed=run)
        covered += low <= 0.8 <= high
    assert 0.92 <= covered / RUNS <= 0.98


def test_generators_of_one_arm_are_compared_with_an_arm_that_has_none():
    rng = np.random.default_rng(9)
    alone = rng.normal(0.8, 0.1, (3, 50))
    added = alone + 0.02 + rng.normal(0, 0.01, (2, 1, 1)) + rng.normal(0, 0.001, (2, 3, 50))
    found = statistics.compare(added, alone)
    assert found["generators"] == 2 and found["seeds"] == 3 and found["images"] == 50
    assert found["difference"] == pytest.approx((added - alone).mean())
    one = statistics.compare(added[:1], alone)
    assert one["high"] - one["low"] < (found["high"] - found["low"]) / 5


@pytest.mark.parametrize("of_seeds", [0.0, 0.01, 0.04])
def test_the_paired_test_finds_nothing_where_nothing_is(of_seeds):
    rng, found = np.random.default_rng(2), 0
    for _ in range(RUNS):
        base = rng.normal(0.8, 0.1, (1, 60))
        arms = [base + draws(rng, 5, 60, of_seeds, 0.03, 0.03) for _ in range(2)]
        variance, freedom = statistics._parts(arms[0] - arms[1])
        t = abs((arms[0] - arms[1]).mean()) / np.sqrt(variance)
        found += 2 * stats.t.sf(t, freedom) < 0.05
    assert found / RUNS <= 0.065


def test_p_is_that_of_the_interval_and_finds_what_is_there():
    rng = np.random.default_rng(3)
    base = rng.normal(0.8, 0.1, (1, 100))
    worse, better = (base + draws(rng, 5, 100, 0.005, 0.02, 0.02, mean=m) for m in (0.0, 0.05))
    found = statistics.compare(better, worse)
    assert found["low"] > 0.02 and found["p"] < 1e-3 and found["p_images"] < 1e-6
    assert found["effect"] > 1 and not found["equivalent"] and found["detectable"] < 0.03
    assert statistics.compare(worse, better)["difference"] == -found["difference"]


def test_power_is_what_it_says():
    rng, found, detectable = np.random.default_rng(4), 0, []
    for _ in range(400):
        apart = draws(rng, 5, 80, 0.01, 0.05, 0.02)
        detectable.append(statistics.compare(apart, np.zeros_like(apart))["detectable"])
    wanted = float(np.median(detectable))
    for _ in range(400):
        apart = draws(rng, 5, 80, 0.01, 0.05, 0.02, mean=wanted)
        variance, freedom = statistics._parts(apart)
        found += 2 * stats.t.sf(apart.mean() / np.sqrt(variance), freedom) < 0.05
    assert 0.7 < found / 400 < 0.9


def test_equivalence_needs_the_whole_interval_within_the_margin():
    rng = np.random.default_rng(5)
    base = rng.normal(0.8, 0.1, (1, 200))
    same = [base + draws(rng, 5, 200, 0.0, 0.005, 0.005) for _ in range(2)]
    assert statistics.compare(*same)["equivalent"]
    assert not statistics.compare(*same, margin=1e-4)["equivalent"]
    loose = [base + draws(rng, 3, 200, 0.03, 0.005, 0.005) for _ in range(2)]
    assert not statistics.compare(*loose)["equivalent"]


def test_holm_by_hand():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(statistics.holm([0.6, 0.5]), [1.0, 1.0])


def test_identical_arms_differ_in_nothing():
    scores = np.random.default_rng(0).random((3, 20))
    found = statistics.compare(scores, scores)
    assert found["difference"] == 0 == found["low"] == found["high"] == found["detectable"]
    assert found["p"] == 1 == found["p_images"] and found["equivalent"]


def test_a_table_has_a_row_per_arm_and_corrected_p_values():
    rng = np.random.default_rng(6)
    arms = {name: draws(rng, 3, 40, 0.01, 0.1, 0.02, 0.8) for name in ("alone", "a", "b")}
    found = statistics.table(arms, "alone").set_index("arm")
    assert found.loc["alone", "mean"] == pytest.approx(arms["alone"].mean())
    assert np.isnan(found.loc["alone", "p_holm"])
    assert (found.loc[["a", "b"], "p_holm"] >= found.loc[["a", "b"], "p"]).all()


def test_what_is_not_paired_or_not_finite_is_refused():
    with pytest.raises(ValueError, match="3 and 4 images"):
        statistics.compare(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="2 and 3 seeds"):
        statistics.compare(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="finite"):
        statistics.interval([np.nan, 1.0])

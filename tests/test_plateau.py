"""The plateau of made-up validation curves."""

import numpy as np
import pytest

from lesionlib.segmentation import plateau

STEPS = np.arange(50, 1501, 50)


def curve(half_life, noise=0.0, seed=0, top=0.85):
    """A Dice that halves its distance to `top` every `half_life` steps."""
    rest = np.random.default_rng(seed).normal(0, noise, len(STEPS))
    return top * (1 - 0.5 ** (STEPS / half_life)) + rest


def test_smoothing_by_hand():
    assert plateau.smoothed([0.0, 0.3, 0.6, 0.3]) == pytest.approx([0.15, 0.3, 0.4, 0.45])
    assert plateau.smoothed([0.7]) == pytest.approx([0.7])


def test_the_plateau_begins_where_nothing_of_the_gain_is_left():
    begin = plateau.plateau(STEPS, curve(60), gain=0.01)
    assert 60 * np.log2(0.85 / 0.01) == pytest.approx(begin, abs=75)
    assert plateau.plateau(STEPS, curve(60), gain=0.05) < begin
    later = plateau.plateau(STEPS, curve(120), gain=0.01)
    assert begin < later <= 1000


def test_a_curve_that_rises_at_its_end_has_no_plateau():
    assert plateau.plateau(STEPS, 0.5 + STEPS / 5000, gain=0.01) is None
    assert plateau.plateau(STEPS, curve(400), gain=0.01) is None
    late = np.where(STEPS < 1200, 0.7, 0.8)  # flat for long, then better
    assert plateau.plateau(STEPS, late, gain=0.01) is None
    assert plateau.plateau(STEPS, np.where(STEPS < 600, 0.7, 0.8), gain=0.01) <= 650


def test_what_is_flat_or_falls_from_the_beginning_is_at_its_plateau_at_once():
    assert plateau.plateau(STEPS, np.full(30, 0.8), gain=0.01) == 50
    assert plateau.plateau(STEPS, 0.8 - STEPS / 5000, gain=0.01) == 50


def test_noise_of_validation_moves_it_little():
    clean = plateau.plateau(STEPS, curve(60), gain=0.01)
    found = [plateau.plateau(STEPS, curve(60, 0.006, seed), gain=0.01) for seed in range(200)]
    assert np.mean([begin is None for begin in found]) < 0.1
    assert abs(np.median([begin for begin in found if begin]) - clean) <= 200


def test_one_validation_is_no_plateau_and_none_is_no_curve():
    assert plateau.plateau([10], [0.8], gain=0.01) is None
    with pytest.raises(ValueError, match="no curve"):
        plateau.plateau([], [], gain=0.01)


def test_the_budget_lets_s_train_alone_show_its_plateau_and_is_never_longer_than_allowed():
    assert plateau.budget(600, longest=1500) == 900
    assert plateau.budget(7, longest=1500) == 11
    assert plateau.budget(1200, longest=1500) == plateau.budget(None, longest=1500) == 1500
    jump = np.where(STEPS < 600, 0.5, 0.8)
    begin = plateau.plateau(STEPS, jump, gain=0.01)
    whole = plateau.budget(begin, longest=1500)
    own = np.linspace(whole / 15, whole, 15)  # validations of a training of this length
    own_begin = plateau.plateau(own, np.where(own < 600, 0.5, 0.8), gain=0.01)
    assert begin == 650 and own_begin == pytest.approx(650, abs=whole / 15)

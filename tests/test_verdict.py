"""Sentences follow the numbers: made-up tables for each outcome."""

import numpy as np
import pandas as pd
import pytest

from lesionlib import verdict


def made_up(gains: dict, seeds=5, images=150, noise=0.01, of_seeds=0.002, draw=0):
    """Rows of a run whose arms differ from S alone by `gains` {(method, amount): gain}."""
    rng, rows = np.random.default_rng(draw), []
    base = rng.normal(0.8, 0.1, images)
    for (method, amount), gain in ({("real", 0): 0.0} | gains).items():
        for seed in range(seeds):
            dice = base + gain + rng.normal(0, of_seeds) + rng.normal(0, noise, images)
            rows.append(pd.DataFrame({"network": "unet", "method": method, "amount": amount,
                                      "seed": seed, "id": np.arange(images), "dice": dice}))
    return pd.concat(rows, ignore_index=True)


def verdicts(gains, **options):
    table = verdict.claims(made_up(gains, **options)).set_index("claim")
    return table["verdict"].to_dict(), table["sentence"]


BOTH = {("controlnet", 10): 0.05, ("controlnet", 50): 0.05, ("pix2pixhd", 10): 0.01,
        ("pix2pixhd", 50): 0.048}


def test_what_is_there_is_confirmed_and_what_is_not_is_not():
    said, sentences = verdicts(BOTH)
    last = said.pop("many ControlNet pairs beat as many of Pix2PixHD for unet")
    assert last in ("not confirmed", "not resolvable")
    assert said == {
        "ControlNet pairs improve unet": "confirmed",
        "many ControlNet pairs improve unet": "confirmed",
        "more ControlNet pairs help unet more": "not confirmed",
        "few ControlNet pairs beat as many of Pix2PixHD for unet": "confirmed"}
    first = sentences["ControlNet pairs improve unet"]
    assert "confirmed. Difference +0.048, 95 % interval +0.043 to +0.052" in first
    assert "n = 150 images, 5 seeds" in first
    assert "would have shown" not in first


def test_harm_is_not_confirmed():
    said, _ = verdicts({("controlnet", 10): -0.03, ("controlnet", 50): -0.03})
    assert said["ControlNet pairs improve unet"] == "not confirmed"


def test_a_small_noisy_study_resolves_nothing_and_says_what_it_could_have_shown():
    said, sentences = verdicts(BOTH, seeds=3, images=20, noise=0.1, of_seeds=0.05, draw=1)
    assert set(said.values()) == {"not resolvable"}
    assert all("this design would have shown 0." in text for text in sentences)


@pytest.mark.parametrize("low, high, p, said", [
    (0.01, 0.03, 0.01, "confirmed"), (0.01, 0.03, 0.20, "not resolvable"),
    (-0.01, 0.004, 0.5, "not confirmed"), (-0.01, 0.03, 0.3, "not resolvable")])
def test_verdicts_by_hand(low, high, p, said):
    assert verdict.of({"low": low, "high": high}, p) == said


def test_a_run_without_synthetic_arms_judges_nothing():
    assert verdict.claims(made_up({})).empty
    only_one = verdict.claims(made_up({("controlnet", 10): 0.02}))
    assert only_one["claim"].tolist() == ["ControlNet pairs improve unet"]

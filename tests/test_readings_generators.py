"""What notebooks 02 to 04 say of their results: true for each outcome, from made-up numbers."""

import numpy as np
import pandas as pd
import pytest

from lesionlib.masks.shapes import STATISTICS
from lesionlib.report import generated
from lesionlib.report import readings_generators as reading


def square(side: int, size: int = 16) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[:side, :side] = 1
    return mask


def test_masks_are_compared_with_the_circles_they_began_as():
    said = reading.recipe_steps(
        [{"a": square(4), "b": square(4)}, {"a": square(4), "b": square(2)}]
    )
    assert "Dice of 1.00 and 0.40" in said and "+0% and -75%" in said


def test_a_deformation_is_told_in_pixels_and_an_empty_picture_is_no_shape():
    shifts = np.stack([np.full((2, 2), 3.0), np.full((2, 2), 4.0)])
    said = reading.elastic(square(4), square(2), shifts)
    assert "4 control points" in said and "5.0 pixels" in said and "-75%" in said
    assert "no shape" in reading.elastic(square(0), square(0), shifts)


def test_shapes_that_the_recipe_would_reject_are_counted():
    two = square(3)
    two[10:12, 10:12] = 1
    said = reading.parameters({"blur 0 to 1": [square(4), two, square(0)]})
    assert "blur 6% to 0%" in said and "2 of the 3 shapes" in said


def distances(**changes):
    rows = {"real (G)": (1.0, 0.52), "paper": (5.9, 0.9), "real": (2.0, 0.5), "fitted": (1.5, 0.5)}
    rows |= changes
    table = pd.DataFrame(rows, index=["sum", "told apart"]).T.rename_axis("masks").reset_index()
    return table.assign(n=150, **dict.fromkeys(STATISTICS, 0.1) | {"row": 2.0})


def test_masks_are_told_apart_only_where_chance_is_exceeded():
    said = reading.distances(distances(), 100)
    assert "Nearest to real masks is `fitted` (sum 1.5, against 1.0" in said
    assert "farthest `paper` (5.9), most of all in row" in said
    assert "tells `paper` from real masks: with this many masks chance alone reaches 57%" in said
    assert "tells none of them apart" in reading.distances(distances(paper=(0.9, 0.5)), 100)
    assert "chance alone reaches 81%" in reading.distances(distances(), 5)


def test_the_border_is_told_for_all_masks_and_the_one_that_differs_most():
    part = {name: pd.DataFrame({"contact": [0.0] * (10 - n) + [0.1] * n})
            for name, n in {"real (G)": 1, "paper": 4}.items()}  # fmt: skip
    said = reading.contact(part, pd.DataFrame({"contact": [0.0, 0.0]}))
    assert "real masks 0% touch" in said and "`paper` differs most, by 40 percentage" in said


def test_conditions_count_prompts_and_the_empty_ones():
    masks = np.stack([square(4), square(8)])
    assert "from 6% to 25% of the image, on average 16%" in reading.conditions(masks, ["a", "b"])
    assert "1 different prompts, 2 of them empty" in reading.conditions(masks, ["", ""])


def judged(mean, chance):
    rows = {"images": ["in place", "moved"], "mean": [0.9, mean], "chance": [0.4, chance]}
    sizes = {"small": [0.8, mean - 0.1], "medium-sized": [0.9, mean], "large": [0.9, np.nan]}
    return pd.DataFrame(rows | sizes)


def test_a_reference_segmenter_near_chance_judges_nothing():
    said = reading.reference(judged(0.85, 0.1))
    assert "scores about 0.85, an easier one more" in said
    assert "weakest on small lesions (0.750)" in said
    said = reading.reference(judged(0.15, 0.1))
    assert "says nothing about generators" in said and "expect" not in said


@pytest.mark.parametrize("dice, said", [
    ([0.9, 0.6, 0.4], "3 images: mean 0.633, from 0.40 to 0.90; 1 at or above 0.7 (in the mask)"),
    ([0.7], "1 image: mean 0.700, from 0.70 to 0.70; 1 at or above"),
])  # fmt: skip
def test_lesions_in_their_masks_are_counted(dice, said):
    assert said in reading.in_masks(dice)


def test_the_answer_of_notebook_02_names_the_mode_that_is_used():
    said = reading.masks_answer(distances(), judged(0.85, 0.1), "fitted", 60)
    assert "60 masks of the mode `fitted`" in said and "accuracy of 50%" in said
    assert "`paper` 90% and `real` 50%" in said and "1.5 (`paper` 5.9 and `real` 2.0" in said


def test_warps_are_told_by_area_and_place():
    said = reading.warps(square(16)[None], np.stack([square(8), square(0)]))
    assert "in place they cover 100% to 100%" in said and "0.00 image sides" in said
    assert "in the copies they cover 0% to 25%" in said and "0.35 image sides" in said


def test_what_is_left_of_the_image_decides_what_is_said_of_the_schedule():
    assert "nothing of the image is left" in reading.noising([0, 999], np.array([1.0, 0.0]))
    said = reading.noising([0, 999], np.array([1.0, 0.0047]))
    assert "6.9% of the image's amplitude is left" in said and "never seen" in said


def test_a_perfect_reconstruction_has_a_finite_psnr():
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    assert "20.0 dB" in reading.reconstruction(np.uint8(images * 0 + 25), images * 0 + 50.5)
    assert "inf" not in reading.reconstruction(images, images)


def test_an_untrained_base_sees_nothing():
    said = reading.budget({"base": 0, "controlnet": 3520}, 160)
    assert "the base is not trained and the ControlNet sees 3,520 images" in said
    assert "22.0 times" in said


def test_a_course_is_that_of_the_first_and_last_tenth():
    assert "from 0.500 to 9.500" in reading.course("loss", np.repeat(np.arange(10), 2) + 0.5 * 1)
    assert "from 2.000 to 2.000" in reading.course("loss", [2])


def test_a_control_that_begins_with_nothing_is_told_from_one_that_does_not():
    table = pd.DataFrame({"t": [0, 999], "untrained": [0.0, 0.0], "trained": [0.1, 0.5]})
    assert "changes nothing at all" in reading.control_effect(table)
    assert "10.0% to 50.0% of its norm, most at t = 999" in reading.control_effect(table)
    assert "by 1.0%" in reading.control_effect(table.assign(untrained=0.01))


def validations(last_wrong, last_fidelity, number=2):
    rows = {"step": [0, 9], "held_out_loss": [0.4, 0.3], "wrong_mask_loss": [0.4, last_wrong]}
    return pd.DataFrame(rows | {"mask_fidelity": [0.2, last_fidelity]})[-number:]


@pytest.mark.parametrize("given, said", [
    (validations(0.36, 0.9), "Both say that the ControlNet uses the mask"),
    (validations(0.36, 0.25), "do not yet lie in it"),
    (validations(0.301, 0.9), "The lesions have moved into the masks, but the loss does not"),
    (validations(0.301, 0.25), "Nothing in these curves"),
    (validations(0.36, 0.9, number=1), "In the last validation wrong masks change the loss by"),
])  # fmt: skip
def test_curves_say_whether_the_mask_is_used(given, said):
    assert said in reading.learning(given)


@pytest.mark.parametrize("values, said", [
    ([0.2, 0.8, 0.9], "from step 1 on they are at or above 0.7"),
    ([0.9, 0.6, 0.8], "from step 2 on"),
    ([0.8, 0.8, 0.6], "none is at or above 0.7 to the end"),
    ([0.8, 0.8, 0.7], "from step 0 on"),
])  # fmt: skip
def test_lesions_are_in_their_masks_from_the_step_on_that_none_falls_behind(values, said):
    named = {f"step {i}": value for i, value in enumerate(values)}
    assert said in reading.over_time(named)


def test_the_steps_of_sampling_are_counted_from_one():
    said = reading.denoising(np.array([0.1, 0.8, 0.9]), np.array([0.0, 0.1, 0.2]))
    assert "from step 2 of 3 on" in said and "Dice is 0.90; of the base alone" in said
    assert "in none of the 3 steps" in reading.denoising(np.array([0.1] * 3), np.array([0.2] * 3))


def test_control_is_credited_only_if_it_helps():
    said = reading.same_noise([0.9, 0.8, 0.8], [0.1, 0.2, 0.3])
    assert "0.833 with control, 0.200 without; the difference is 0.633" in said
    assert "the mask makes the difference" in said
    for made, alone in (([0.4, 0.1], [0.1, 0.2]), ([0.9], [0.1]), ([0.2, 0.2], [0.2, 0.2])):
        assert "**These images do not show" in reading.same_noise(made, alone)


def test_differences_between_pictures_are_mean_absolute_ones_of_all_pairs():
    pictures = np.stack([np.full((2, 2, 3), x, np.uint8) for x in (0, 10, 20)])
    assert reading.difference(pictures) == pytest.approx(40 / 3)
    assert reading.difference(pictures[:1]) == 0
    said = reading.words({"guidance 1": pictures, "guidance 3": 3 * pictures})
    assert "13.3 (guidance 1) and 40.0 (guidance 3)" in said
    grid = np.stack([pictures, pictures + 1])
    said = "a pixel changes on average: another diagnosis by 1.0, another attribute by 13.3"
    assert said in reading.prompt_grid(grid)
    assert "on average: another attribute by 13.3" in reading.prompt_grid(grid[:1])
    assert "change nothing" in reading.words({"guidance 1": pictures[:1]})


def recognised(made, real):
    columns = {"label": ["nevus", "milia_like_cyst"], "asked": 10, "not_asked": 20, "real": 50}
    return pd.DataFrame(columns | {"auc_generated": made, "auc_real": real})


def test_labels_count_as_recognised_beyond_chance_only():
    table = recognised([0.73, 0.71], [0.9, 0.5])
    assert reading.recognised_labels(table) == ["nevus"]
    said = reading.recognition(table, 100)
    assert "chance allows: nevus, of 2 labels" in said
    assert "Of milia-like cysts nothing can be said" in said
    said = reading.recognition(recognised([0.5, np.nan], [0.9, 0.9]), 100)
    assert "chance allows: none" in said and "nothing can be said" not in said


def test_labels_without_images_are_not_recognised():
    table = recognised([1.0, 1.0], [1.0, 1.0]).assign(not_asked=0, real=0)
    assert reading.recognised_labels(table) == []
    assert "nevus and milia-like cysts nothing" in reading.recognition(table, 0)


def crosstab(rows):
    names = ["nevus", "melanoma"][: len(rows)]
    return pd.DataFrame(rows, index=names, columns=names)


def test_diagnoses_are_as_prompted_beyond_chance_only():
    said = reading.as_prompted(crosstab([[9, 1], [3, 7]]))
    assert "80% of 20 images are recognised as prompted, more than chance" in said
    assert "melanoma, taken for nevus in 3 of 10" in said
    assert "no more than chance" in reading.as_prompted(crosstab([[6, 4], [4, 6]]))
    assert "confused" not in reading.as_prompted(crosstab([[9, 0], [0, 7]]))
    assert "nothing to confuse" in reading.as_prompted(crosstab([[9]]))


def test_the_answer_of_notebook_03_counts_missed_masks():
    dice = {"with": [0.9, 0.8], "without": [0.1, 0.2]}
    table = recognised([0.73, 0.71], [0.9, 0.5])
    said = reading.controlnet_answer(dice, pd.Series([0.4, 0.9]), table)
    assert "0.850 (without control 0.150; n = 2" in said and "0.650; 50% of them" in said
    assert said.endswith("nevus.")


@pytest.mark.parametrize("generator, plan", [
    ("controlnet", "isic"), ("controlnet", "augmentation"), ("pix2pixhd", "isic")
])  # fmt: skip
def test_the_best_variants_are_those_of_the_table(generator, plan):
    table = generated.variants(generator, plan)
    said = reading.ablation(table)
    tried = table[1:]
    assert f"Of {len(tried)} variants **{tried.loc[tried['kid'].idxmin(), 'variant']}**" in said
    best = tried.assign(kid=1.0)
    best.loc[best.index[0], ["kid", "mask_fidelity", "automatic_masks"]] = 0.0, 1.0, 1.0
    assert ") and the highest" in reading.ablation(pd.concat([table[:1], best])[table.columns])


def test_budgets_are_compared_where_the_diffusion_model_is_trained():
    table = pd.DataFrame({"training": ["base", "ControlNet", "Pix2PixHD"],
                          "images seen": [100, 300, 200]})  # fmt: skip
    assert "0.50 times as many" in reading.budgets(table)
    assert "are not trained in this run" in reading.budgets(table[2:])


@pytest.mark.parametrize("score, said", [
    (0.5, "The mean of the discriminators' two is 0.50, the least that one score"),
    (0.8, "is 0.68, more than 0.50, that of a score of one half: it errs more on generated ones"),
    (0.2, "it errs more on real images"),
])  # fmt: skip
def test_one_score_for_everything_is_best_in_the_middle(score, said):
    losses = {"d_real": 2 * (1 - score) ** 2, "d_fake": 2 * score**2}
    assert said in reading.scored(score, losses, 2)
    assert (losses["d_fake"] > losses["d_real"]) == ("generated" in said)


@pytest.mark.parametrize("last, said", [
    ((0.3, 0.3, 0.9, 0.9), "the discriminators are winning"),
    ((0.3, 0.3, 0.1, 0.1), "both sides have learnt"),
    ((0.3, 0.3, 0.9, 0.1), "`g_gan` rose and `g_feat` fell"),
    ((0.3, 0.3, 0.1, 0.9), "`g_feat` rose and `g_gan` fell"),
    ((0.6, 0.6, 0.1, 0.1), "have not pulled ahead"),
])  # fmt: skip
def test_who_is_ahead_depends_on_all_four_losses(last, said):
    names = ["d_real", "d_fake", "g_gan", "g_feat"]
    first, last = (pd.Series(values, names) for values in ((0.5, 0.7, 0.5, 0.5), last))
    text = reading.contest("Pix2PixHD", first, last, 2)
    assert said in text and "from 0.60" in text and "0.50 is that of scores" in text


def test_a_training_without_a_log_has_no_winner():
    empty = pd.DataFrame(columns=["d_real", "d_fake", "g_gan", "g_feat"]).astype(float).mean()
    assert "too short" in reading.contest("Pix2PixHD", empty, empty, 2)
    assert "too short" in reading.course("loss", [])


def test_generators_are_told_by_place_and_variety():
    dice = {"pix2pixhd": np.array([0.9, 0.7]), "pix2pixhd_plus": np.array([0.5])}
    spread = {"pix2pixhd": 0.6, "pix2pixhd_plus": 1.1}
    said = "Pix2PixHD 0.800 (n = 2) and Pix2PixHD+ (ours) 0.500 (n = 1)."
    assert reading.located(dice).endswith(said)
    assert "it is 0.60 (Pix2PixHD) and" in reading.varied(spread)
    assert reading.pix2pixhd_answer(dice, dice, spread).count("times as much") == 2


def test_a_generator_without_noise_repeats_itself():
    same = np.full((3, 2, 2, 3), 7, np.uint8)
    other = same + np.arange(3, dtype=np.uint8)[:, None, None, None]
    said = "a: the same image each time; b: a pixel changes by 1.3 of 255 grey levels on average."
    assert reading.noises({"a": same, "b": other}) == said


def test_without_pix2pixhd_nothing_is_said_of_it():
    assert reading.located({}) == reading.varied({}) == reading.noises({}) == ""
    assert reading.pix2pixhd_answer({}, {}, {}) == "Pix2PixHD is not part of this run."


def test_a_checkerboard_is_visible_beside_real_images_only():
    assert "It stands out, above 1.5 times real images: a." in reading.checkerboards(
        {"real": 1.0, "a": 1.6, "b": 1.4}
    )
    assert "None is above" in reading.checkerboards({"real": 2.0, "a": 1.6, "b": 1.4})

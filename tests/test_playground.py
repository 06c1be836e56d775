"""The playground without a browser: what is painted, judged, shown, kept, and refused."""

import os
import re
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import small_base
from small_run import SETTINGS, finish

from lesionlib.data import dataset, external_tests
from lesionlib.engine.errors import InputError
from lesionlib.masks import conditions
from lesionlib.segmentation import reference
from lesionlib.workflow import board, cli, playground
from lesionlib.workflow.generate import Maker, Order, generate
from lesionlib.workflow.playground import Studio, Wish


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny finished run with a reference segmenter of its own."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    with pytest.MonkeyPatch.context() as monkeypatch:
        finish(folder, monkeypatch)
    small_base.train("reference", folder, 1)
    conditions.draw(folder, dataset.load(folder), SETTINGS)
    return folder


@pytest.fixture(scope="module")
def studio(run):
    return Studio(run)


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A studio where there is no run."""
    monkeypatch.setattr(playground, "ROOT", tmp_path)
    return Studio()


def wish(size=32, top=8, seed=0, prompt="a dermoscopic image of a nevus") -> Wish:
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + 14, 10:25] = 1
    return Wish(mask, prompt, 1.0, 1.5, seed)


def files(folder) -> set:
    return {str(path.relative_to(folder)) for path in folder.rglob("[!.]*") if path.is_file()}


def test_every_generator_paints_and_the_reference_segmenter_judges(run, studio):
    asked = wish()
    lesions = studio.paint(asked)
    assert [one.generator for one in lesions] == ["controlnet", "pix2pixhd", "pix2pixhd_plus"]
    segmenter = reference.load(run)
    for one in lesions:
        assert one.image.shape == (32, 32, 3) and one.image.std() > 1
        assert (one.found == segmenter.predictions(one.image[None])[0]).all()
        assert np.isclose(one.fidelity, segmenter(one.image[None], asked.mask[None])[0])


def test_the_image_is_that_of_pairs_on_demand(run, studio):
    asked = wish(seed=5)
    painter = Maker(Order(str(run), "x", seed=5)).painter
    image = next(painter.sample(asked.mask[None], [asked.prompt]))
    assert (studio.paint(asked)[0].image == image).all()


def test_the_seed_changes_what_has_noise(studio):
    first, second = (studio.paint(wish(seed=seed)) for seed in (0, 1))
    same = [(a.image == b.image).all() for a, b in zip(first, second, strict=True)]
    assert same == [False, True, False]


def test_the_steps_lead_to_the_image(studio):
    lesion = studio.paint(wish())[0]
    n = studio.settings.sampling.ddim_steps
    assert len(lesion.latents) == n
    steps = np.stack([studio.step(lesion, k + 1) for k in range(n)])
    assert steps.shape == (n, 2, 32, 32, 3) and (steps[-1, 1] == lesion.image).all()
    assert (steps[0, 0] != steps[-1, 0]).any()


@pytest.mark.parametrize("value, said", [(0, "it is empty"), (1, "it leaves no skin")])
def test_a_mask_without_lesion_or_skin_is_refused(studio, value, said):
    with pytest.raises(InputError, match=f"mask: {said}. Remedy: paint one lesion"):
        studio.paint(Wish(np.full((32, 32), value, np.uint8), "", 1.0, 1.5, 0))


def test_a_lesion_on_the_border_is_painted(studio):
    mask = np.zeros((32, 32), np.uint8)
    mask[0, :] = mask[:, 0] = 1
    assert len(studio.paint(Wish(mask, "", 3.0, 1.5, 0))) == 3


def test_kept_pairs_are_files_with_a_row_each(studio, tmp_path):
    lesions = [one for seed in (3, 4) for one in studio.paint(wish(seed=seed))]
    paths = [studio.keep(one, tmp_path / "a") for one in lesions]
    table = pd.read_csv(tmp_path / "a" / "manifest.csv", keep_default_na=False)
    assert table["seed"].tolist() == [3] * 3 + [4] * 3
    assert table["generator"].tolist() == [one.generator for one in lesions]
    assert np.allclose(table["mask_fidelity"], [one.fidelity for one in lesions], atol=1e-4)
    assert table["prompt"].tolist() == [wish().prompt, "", ""] * 2 and (table["index"] == 0).all()
    for path, one in zip(paths, lesions, strict=True):
        assert (cv2.imread(str(path))[..., ::-1] == one.image).all()
        mask = cv2.imread(str(tmp_path / "a" / "masks" / path.name), cv2.IMREAD_GRAYSCALE)
        assert (mask == 255 * one.wish.mask).all()
    _, images, masks = external_tests.read_pairs(tmp_path / "a", 32, "squash", tmp_path / "work")
    assert len(images) == len(masks) == 6


def test_a_pair_is_never_half_kept(studio, tmp_path, monkeypatch):
    first, second = (studio.paint(wish(seed=seed))[0] for seed in (0, 1))
    studio.keep(first, tmp_path)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(playground, "write_csv", stop)
        with pytest.raises(KeyboardInterrupt):
            studio.keep(first, tmp_path)
    assert len(pd.read_csv(tmp_path / "manifest.csv")) == 1
    path = studio.keep(second, tmp_path)  # takes the place of what has no row
    assert (cv2.imread(str(path))[..., ::-1] == second.image).all()
    pairs = {f"{part}/00000{k}.png" for part in ("images", "masks") for k in (0, 1)}
    assert files(tmp_path) == {*pairs, "manifest.csv"}


def test_a_folder_with_other_things_is_left_alone(run, studio, tmp_path):
    lesion = studio.paint(wish())[0]
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "a" / "images" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match=r"it holds letter\.txt"):
        studio.keep(lesion, tmp_path / "a")
    generate(Order(str(run), str(tmp_path / "b"), 1))
    before = files(tmp_path / "b")
    with pytest.raises(InputError, match="its manifest is of something else"):
        studio.keep(lesion, tmp_path / "b")
    assert files(tmp_path / "b") == before


def test_the_newest_finished_run_is_taken(run, monkeypatch, tmp_path):
    monkeypatch.setattr(playground, "ROOT", tmp_path)
    for age, name in enumerate(("new", "old")):
        shutil.copytree(run, tmp_path / "runs" / name)
        path = tmp_path / "runs" / name / "provenance.json"
        os.utime(path, (path.stat().st_mtime - 100 * age,) * 2)
    (tmp_path / "runs" / "unfinished" / "data").mkdir(parents=True)
    assert Studio().folder == tmp_path / "runs" / "new"
    with pytest.raises(InputError, match="there is no finished run"):
        Studio(tmp_path / "runs" / "unfinished")


def test_a_run_without_pix2pixhd_says_so(run, tmp_path):
    shutil.copytree(run, tmp_path / "mine")
    for name in ("pix2pixhd", "pix2pixhd_plus"):
        shutil.rmtree(tmp_path / "mine" / "models" / name)
    shown = board.Board(Studio(tmp_path / "mine"), tmp_path / "kept")
    assert [panel.name for panel in shown.panels] == ["controlnet"]
    assert "It has no Pix2PixHD and no Pix2PixHD+." in shown.box.children[0].value
    shutil.rmtree(tmp_path / "mine" / "models" / "controlnet")
    with pytest.raises(InputError, match="it has no generator"):
        Studio(tmp_path / "mine")


def test_the_small_base_is_told_in_words_where_the_mask_is(alone, tmp_path):
    assert alone.folder is None and list(alone.generators) == ["base"]
    shown = board.Board(alone, tmp_path)
    assert "no ControlNet" in shown.box.children[0].value and shown.control.disabled
    shown.canvas.array = wish(64, 40).mask
    assert shown.wish.prompt == "a dermoscopic image of a nevus, small, in the lower left"
    shown.paint()
    (lesion,) = (panel.lesion for panel in shown.panels)
    assert lesion.fidelity is None and lesion.image.std() > 5
    shown.keep(shown.panels[0])
    assert pd.read_csv(tmp_path / "manifest.csv")["mask_fidelity"].isna().all()


@pytest.fixture
def shown(studio, tmp_path):
    one = board.Board(studio, tmp_path / "kept")
    one.canvas.array = wish().mask
    return one


def test_a_double_click_paints_and_keeps_once(shown, tmp_path, monkeypatch):
    calls, paint = [], shown.studio.paint
    monkeypatch.setattr(shown.studio, "paint", lambda one: calls.append(one) or paint(one))
    for _ in range(2):
        shown.button.click()
    assert len(calls) == 1 and "Painted in" in shown.status.value
    for _ in range(2):
        shown.panels[1].button.click()
    assert len(pd.read_csv(tmp_path / "kept" / "manifest.csv")) == 1
    shown.seed.value += 1
    shown.button.click()
    assert len(calls) == 2 and not shown.panels[1].button.disabled


def test_what_goes_wrong_is_said_and_the_button_works_again(shown):
    shown.canvas.array = np.zeros((32, 32), np.uint8)
    shown.button.click()
    assert "mask: it is empty" in shown.status.value and not shown.button.disabled
    shown.automatic.click()
    assert (shown.canvas.array == conditions.load(shown.studio.folder)[0][0]).all()
    shown.button.click()
    assert "Painted in" in shown.status.value


def test_labels_become_the_prompt_and_the_pictures_follow(shown):
    shown.diagnosis.value = "melanoma"
    shown.attributes["streaks"].value = True
    assert shown.wording.value == "<i>a dermoscopic image of a melanoma with streaks</i>"
    shown.paint()
    seen = []
    for change in (
        lambda: None,
        lambda: setattr(shown.slider, "value", 1),
        lambda: setattr(shown.outlines, "value", False),
    ):
        change()
        seen.append([shown.states[0].value, shown.panels[0].picture.value])
    assert seen[0][0] != seen[1][0] == seen[2][0] and seen[0][1] == seen[1][1] != seen[2][1]
    shown.diagnosis.value = ""
    assert shown.wish.prompt == ""


def test_the_canvas_needs_no_network():
    text = (board.HERE / "canvas.js").read_text()
    assert not re.search(r"\bimport\b *[({\"'*\w]|https?:|fetch\(", text.replace("It imports", ""))


def test_play_opens_the_notebook(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "call", lambda *words: called.append(words) or 0)
    assert cli.main(["--play", "--no-browser"]) == 0
    assert called == [("jupyterlab", "notebooks/playground.ipynb", "--no-browser")]

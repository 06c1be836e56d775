"""Pairs on demand: `--generate` writes what was ordered, goes on, and says why not."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_run import finish, judged

from lesionlib.data import dataset
from lesionlib.engine.errors import InputError
from lesionlib.generators import sets
from lesionlib.workflow import cli, generate
from lesionlib.workflow.generate import Order


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "secret place"
    with pytest.MonkeyPatch.context() as monkeypatch:
        finish(folder, monkeypatch)
        yield folder


def make(run, out, *args, **options) -> pd.DataFrame:
    return generate.generate(Order(str(run), str(out), *args, **options))


def files(folder) -> dict:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_pairs_are_complete_with_manifest_and_card(run, tmp_path):
    table = make(run, tmp_path / "a", 5)
    read = pd.read_csv(tmp_path / "a" / "manifest.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(read, table)
    assert {"prompt", "seed", "mask_fidelity", "model", "near_copy"} <= set(table)
    images, masks, _ = sets.load(tmp_path / "a", "x")
    assert len(images) == 5 and masks.any(axis=(1, 2)).all()
    assert np.allclose(judged(images, masks), table["mask_fidelity"], atol=1e-4)
    card = (tmp_path / "a" / "README.md").read_text()
    assert card.startswith("---\nlicense: ") and f"mean {table['mask_fidelity'].mean():.3f}" in card
    assert "16 procedural images. Licence: MIT" in card
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        *("images", "masks", "manifest.csv", "manifest.csv.json", "README.md")
    }
    for path in (tmp_path / "a").rglob("*"):
        assert not path.is_file() or b"secret place" not in path.read_bytes()


def test_several_processes_and_another_start_give_the_same_files(run, tmp_path, monkeypatch):
    make(run, tmp_path / "a", 8, mask_mode="fitted")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate, "_near_copies", stop)
        with pytest.raises(KeyboardInterrupt):
            make(run, tmp_path / "b", 8, mask_mode="fitted", processes=2)
    (tmp_path / "b" / ".work" / "from-000000" / "images" / "000004.png").unlink()
    make(run, tmp_path / "b", 8, mask_mode="fitted")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(generate, "candidates", stop)  # nothing is left to do
        assert len(make(run, tmp_path / "b", 8, mask_mode="fitted")) == 8


def test_a_seed_changes_masks_and_images(run, tmp_path):
    tables = [make(run, tmp_path / str(seed), 4, seed=seed) for seed in (0, 1)]
    for column in ("sha256", "mask_sha256"):
        assert not set(tables[0][column]) & set(tables[1][column])


def test_pairs_below_the_least_fidelity_are_replaced(run, tmp_path):
    every = make(run, tmp_path / "all", 40)
    table = make(run, tmp_path / "good", 12, min_fidelity=0.5)
    assert len(table) == 12 == len(files(tmp_path / "good" / "images"))
    assert (table["mask_fidelity"] >= 0.5).all() and table["index"].max() > 12
    good = every[every["mask_fidelity"] >= 0.5].head(12)
    common = [name for name in table["image"] if name in set(good["image"])]
    assert len(common) > 6  # number N is the same candidate in either order
    for name in common:
        rows = (t.set_index("image").loc[name, "mask_fidelity"] for t in (table, good))
        assert np.ptp([*rows]) < 0.02
    with pytest.raises(InputError, match=r"--min-fidelity 0\.999\d*: .* of .* candidates will do"):
        make(run, tmp_path / "none", 2, min_fidelity=0.99999)


@pytest.fixture
def shapes(tmp_path):
    folder = tmp_path / "shapes"
    folder.mkdir()
    for k in range(3):
        mask = np.zeros((50, 60), np.uint8)
        mask[10 : 20 + 8 * k, 12:40] = 255
        Image.fromarray(mask).save(folder / f"m{k}.png")
    return folder


def test_given_masks_are_taken_in_turn(run, tmp_path, shapes):
    assert len(make(run, tmp_path / "each", masks=str(shapes))) == 3
    table = make(run, tmp_path / "a", 7, masks=str(shapes), prompt="a nevus")
    assert table["mask_sha256"].nunique() == 3 and table["sha256"].nunique() == 7
    assert list(table["mask_sha256"][:3]) == list(table["mask_sha256"][3:6])
    assert set(table["prompt"]) == {"a nevus"}
    masks = sets.load(tmp_path / "a", "x")[1]
    assert abs(masks[2].mean() - 26 * 28 / 3000) < 0.02


def test_diagnoses_have_the_ordered_shares(run, tmp_path):
    maker = generate.Maker(Order(str(run), str(tmp_path), 1, diagnosis={"melanoma": 0.75}))
    texts = maker.conditions(0, 200)[1]
    share = np.mean(["melanoma" in text for text in texts])
    assert abs(share - 0.75) < 0.1 and any("nevus" in text for text in texts)
    assert maker.conditions(150, 5)[1] == texts[150:155]


@pytest.mark.parametrize("name", ["pix2pixhd", "pix2pixhd_plus"])
def test_pix2pixhd_makes_as_many_images_as_it_can(run, tmp_path, shapes, name):
    assert make(run, tmp_path / "a", 4, generator=name)["sha256"].nunique() == 4
    given = dict(generator=name, masks=str(shapes))
    if name == "pix2pixhd_plus":
        assert len(make(run, tmp_path / "b", 5, **given)) == 5
    else:
        with pytest.raises(InputError, match=r"3 of 3 candidates will do .* give more masks"):
            make(run, tmp_path / "b", 5, **given)


def test_copies_and_held_out_masks_are_said(run, tmp_path, monkeypatch, capsys):
    study = dataset.load(run)
    folder = tmp_path / "held"
    folder.mkdir()
    test = study.part("S-test")
    Image.fromarray(test.masks[0] * 255).save(folder / "a.png")
    known = study.part("G").images[5]
    patch = type(generate.Maker(Order(str(run), "x")).painter)
    monkeypatch.setattr(patch, "sample", lambda *args, **options: iter([known]))
    table = make(run, tmp_path / "a", 1, masks=str(folder))
    assert table["near_copy"].tolist() == [True]
    card = (tmp_path / "a" / "README.md").read_text()
    assert "Near-copies of a training image: 1 of 1" in card
    assert "is the mask of" in capsys.readouterr().out and "is the mask of" in card


@pytest.mark.parametrize(
    "words, said",
    [
        (["--generator", "gan"], "--generator: 'gan' is not possible"),
        (["--mask-mode", "fited"], "one of paper, real, fitted"),
        (["--min-fidelity", "80"], "at least 0 and less than 1"),
        (["--diagnosis", "melanoma"], "is not NAME=SHARE"),
        (["--diagnosis", "melanoma=0.7,nevus=0.7"], "sum of at most 1"),
        (["--diagnosis", "melanom=0.5"], "did you mean melanoma?"),
        (["--generator", "pix2pixhd", "--prompt", "x"], "Pix2PixHD reads none"),
        (["--number", "4"], "unrecognized arguments"),
        (["--masks", "nowhere"], "the folder does not exist"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(run, tmp_path, words, said, capsys, monkeypatch):
    monkeypatch.setenv("LESIONLIB_QUIET", "1")  # no bars
    given = ["--generate", str(run), "--out", str(tmp_path / "a"), "-n", "2", *words]
    assert cli.main(given) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "a" / "manifest.csv").exists()


def test_an_unfinished_run_and_a_full_folder_are_refused(run, tmp_path, capsys):
    assert cli.main(["--generate", str(tmp_path), "--out", str(tmp_path / "a")]) == 2
    assert "there is no finished run" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match=r"it holds letter\.txt"):
        make(run, tmp_path / "b", 2)
    given = ["--generate", str(run), "--out", str(tmp_path / "c"), "-n", "2", "--seed", "4"]
    assert cli.main(given) == 0
    assert "2 pairs in" in capsys.readouterr().out
    with pytest.raises(InputError, match="pairs of another order"):
        make(run, tmp_path / "c", 3)

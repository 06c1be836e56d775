"""Public sources as they are unpacked: each in a generated folder of its layout."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionlib.data import catalogue, layouts
from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.workflow import check

NUMBER = 24


def draw(seed: int):
    """An image (40, 60, 3) and a mask (40, 60) of 0 and 255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :60]
    lesion = np.hypot(y - 20 - seed % 3, x - 30) < 8 + seed % 5
    image = rng.integers(120, 200, (40, 60, 3))
    image[lesion] //= 2
    return image.astype(np.uint8), lesion.astype(np.uint8) * 255


def write(root, names, image: str, mask: str):
    """Pairs of these names; `image` and `mask` are paths with {} for the name."""
    for seed, name in enumerate(names):
        for text, array in zip((image, mask), draw(seed), strict=True):
            path = root / text.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def ids(first: int, number: int = NUMBER):
    return [f"ISIC_{first + k:07d}" for k in range(number)]


def ham10000(root):
    codes = ["akiec", "bcc", "bkl", "df", "mel", "nv"]
    masks = "HAM10000_segmentations_lesion_tschandl/{}_segmentation.png"
    write(root, ids(0, 12), "HAM10000_images_part_1/{}.jpg", masks)
    write(root, ids(12, 12), "HAM10000_images_part_2/{}.jpg", masks)
    (root / "HAM10000_images_part_1" / "._ISIC_0000000.jpg").write_bytes(b"fork")
    table = pd.DataFrame({"lesion_id": [f"HAM_{k // 2}" for k in range(24)], "image_id": ids(0)})
    table = table.assign(dx=codes * 4, dx_type="histo", age=50.0, sex="male", localization="back")
    table.to_csv(root / "HAM10000_metadata.csv", index=False)


def ph2(root):
    names = [f"IMD{k:03d}" for k in range(2, 2 + NUMBER)]
    place = root / "PH2Dataset"
    images = "PH2 Dataset images/{0}/{0}_Dermoscopic_Image/{0}.bmp"
    write(place, names, images, "PH2 Dataset images/{0}/{0}_lesion/{0}_lesion.bmp")
    roi = place / "PH2 Dataset images" / "IMD002" / "IMD002_roi"
    roi.mkdir()
    Image.fromarray(draw(0)[1]).save(roi / "IMD002_R1_Label4.bmp")
    features = ["Asymmetry", "Pigment Network", "Dots/Globules", "Streaks", "Colors"]
    rows = [["Name", "Histological Diagnosis", "Clinical Diagnosis", *features]]
    cells = ("AT", "T"), ("A", "T", "AT"), ("A", "P")
    for k, name in enumerate(names):
        drawn = [values[k % len(values)] for values in cells]
        rows.append([name, "" if k % 2 else "Common Nevus", str(k % 3), "0", *drawn, "4"])
    text = "\n".join("|| " + " || ".join(f"{cell:>6}" for cell in row) + " ||" for row in rows)
    (place / "PH2_dataset.txt").write_text(f"{text}\n\nLegends:\n    0 - Common Nevus;\n")


def isic2016(root):
    names = {"Training": ids(0, 16), "Test": ids(16, 8)}
    for part, own in names.items():
        start = f"ISBI2016_ISIC_Part1_{part}_"
        write(root, own, start + "Data/{}.jpg", start + "GroundTruth/{}_Segmentation.png")
        words = ["benign", "malignant"] if part == "Training" else ["0.0", "1.0"]
        lines = [f"{name},{words[k % 2]}" for k, name in enumerate(own)]
        table = root / f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv"
        table.write_text("\n".join(lines) + "\n")


def isic2017(root):
    for part, first, number in (("Training", 0, 14), ("Validation", 14, 2), ("Test_v2", 16, 8)):
        own, start = ids(first, number), f"ISIC-2017_{part}_"
        data = root / f"{start}Data" / f"{start}Data"  # unpacking doubled the name
        write(data, own, "{}.jpg", f"../../{start}Part1_GroundTruth/{{}}_segmentation.png")
        Image.fromarray(draw(0)[0]).save(data / f"{own[0]}_superpixels.png")
        metadata = pd.DataFrame({"image_id": own, "age_approximate": 40, "sex": "female"})
        metadata.to_csv(data / f"{start}Data_metadata.csv", index=False)
        flags = [(name, float(k % 3 == 1), float(k % 3 == 2)) for k, name in enumerate(own)]
        columns = ["image_id", "melanoma", "seborrheic_keratosis"]
        truth = root / f"{start}Part3_GroundTruth.csv"
        pd.DataFrame(flags, columns=columns).to_csv(truth, index=False)


def isic2018(root):
    for part, first, number in (("Training", 0, 14), ("Validation", 14, 2), ("Test", 16, 8)):
        start = f"ISIC2018_Task1-2_{part}_Input"
        masks = f"ISIC2018_Task1_{part}_GroundTruth/{{}}_segmentation.png"
        write(root, ids(first, number), start + "/{}.jpg", masks)
        (root / start / "LICENSE.txt").write_text("terms")
    resources = root / "__MACOSX" / "ISIC2018_Task1-2_Training_Input"
    resources.mkdir(parents=True)
    (resources / "._ISIC_0000000.jpg").write_bytes(b"fork")


def isic_archive(root):
    write(root, ids(0), "{}.jpg", "masks/{}.png")
    table = pd.DataFrame({"isic_id": ids(0), "attribution": "x", "age_approx": 55, "sex": "male"})
    table["diagnosis_3"] = ["Nevus", "Melanoma, NOS", "Basal cell carcinoma"] * 8
    table = table.assign(patient_id=[f"IP_{k // 3}" for k in range(24)], lesion_id="")
    table = table.assign(anatom_site_general="head/neck", diagnosis_1="Benign")
    table.to_csv(root / "metadata.csv", index=False)


LABELLED = {  # source: images with a diagnosis
    ham10000: 24,
    ph2: 24,
    isic2016: 12,
    isic2017: 24,
    isic2018: 0,
    isic_archive: 24,
}


@pytest.mark.parametrize("make", LABELLED, ids=lambda make: make.__name__)
def test_a_public_source_is_recognised_and_read_whole(make, tmp_path, capsys):
    make(tmp_path)
    assert layouts.detect(tmp_path) == make.__name__
    found = catalogue.read("folders", images=tmp_path)
    table = found.table.set_index("id")
    assert len(table) == NUMBER and (table["mask"] != "").all() and table.index.is_unique
    assert (table["diagnosis"] != "").sum() == LABELLED[make] and found.orphans.empty
    said = "\n".join(found.notes)
    assert all(word in said for word in ("licence: ", "please cite: ", "known overlap: "))
    same = catalogue.read(make.__name__, images=tmp_path)
    pd.testing.assert_frame_equal(found.table, same.table)
    run = str(tmp_path / "run")
    settings = config.load("smoke", {"images": str(tmp_path)})
    assert check.check(settings.model_copy(update={"run": run})) == 0
    text = capsys.readouterr().out
    assert "24 pairs of image and mask" in text and "24 of 24 pairs that were read" in text
    assert (tmp_path / "run" / "check" / "images.png").stat().st_size > 10_000


def test_labels_of_each_source_are_ours(tmp_path):
    for make in LABELLED:
        (tmp_path / make.__name__).mkdir()
        make(tmp_path / make.__name__)
    read = {make.__name__: catalogue.read(make.__name__, images=tmp_path / make.__name__)
            for make in LABELLED}  # fmt: skip
    tables = {name: found.table.set_index("id") for name, found in read.items()}
    ham = tables["ham10000"].loc["ISIC_0000000"]
    assert ham[["diagnosis", "site", "age", "lesion_id"]].tolist() == [
        "actinic keratosis", "back", "50", "HAM_0"]  # fmt: skip
    own = tables["ph2"]
    assert own["diagnosis"].tolist()[:3] == ["nevus", "nevus", "melanoma"]
    assert own["pigment_network"].tolist()[:2] == [1, 1]
    assert own["globules"].tolist()[:3] == [0, 1, 1] and own["streaks"].tolist()[:2] == [0, 1]
    assert tables["isic2016"]["diagnosis"].tolist()[:2] == ["", "melanoma"]
    assert tables["isic2016"]["official"].value_counts().to_dict() == {"train": 16, "test": 8}
    assert tables["isic2017"]["diagnosis"].tolist()[:3] == [
        "nevus", "melanoma", "benign keratosis"]  # fmt: skip
    assert tables["isic2017"].loc["ISIC_0000000", ["age", "sex"]].tolist() == ["40", "female"]
    parts = {"train": 14, "val": 2, "test": 8}
    assert tables["isic2018"]["official"].value_counts().to_dict() == parts
    assert tables["isic_archive"]["patient_id"].nunique() == 8


def test_isic_2018_uses_the_labels_that_are_there_and_names_those_that_are_not(tmp_path):
    isic2018(tmp_path)
    names = ids(0)[:14]
    flags = dict.fromkeys(ATTRIBUTES, 0) | {"globules": 1}
    table = pd.DataFrame({"id": names}).assign(**flags)
    table.to_csv(tmp_path / "ISIC2018_Task2_Training_attributes.csv", index=False)
    read = catalogue.read("isic2018", images=tmp_path)
    assert read.table["globules"].sum() == 14 and (read.table["diagnosis"] == "").all()
    (said,) = [note for note in read.notes if "labels that are not there" in note]
    for word in ("WARNING", "diagnoses of 2019", "diagnoses of 2017", "ISIC-2017_*_Part3", "sex"):
        assert word in said
    assert "attributes" not in said
    truth = pd.DataFrame({"image": names}).assign(MEL=0.0, NV=1.0, BCC=0.0)
    truth.to_csv(tmp_path / "ISIC_2019_Training_GroundTruth.csv", index=False)
    (tmp_path / "ISIC2018_Task2_Training_attributes.csv").unlink()
    read = catalogue.read("isic2018", images=tmp_path)
    assert (read.table["diagnosis"] == "nevus").sum() == 14 and read.table["globules"].isna().all()
    (said,) = [note for note in read.notes if "labels that are not there" in note]
    assert "diagnoses of 2019" not in said and "attributes (ISIC" in said


def test_two_sources_in_one_folder_are_an_error_that_names_both(tmp_path):
    ham10000(tmp_path)
    isic2018(tmp_path)
    with pytest.raises(InputError, match="it holds HAM10000.*ISIC 2018.*source=ham10000"):
        layouts.detect(tmp_path)
    assert len(catalogue.read("isic2018", images=tmp_path).table) == NUMBER


def test_masks_that_lie_elsewhere_do_not_hide_a_source(tmp_path):
    masks = tmp_path / "masks"
    (tmp_path / "ham").mkdir()
    ham10000(tmp_path / "ham")
    (tmp_path / "ham" / "HAM10000_segmentations_lesion_tschandl").rename(masks)
    assert catalogue.public_source(tmp_path / "ham", masks) == "ham10000"
    assert catalogue.public_source(tmp_path / "ham" / "HAM10000_images_part_1", masks) == ""
    found = catalogue.read("folders", images=tmp_path / "ham", masks=masks)
    assert (found.table["diagnosis"] != "").all() and (found.table["mask"] != "").all()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="no PH2 in it"):
        catalogue.read("ph2", images=tmp_path)
    write(tmp_path, ids(0), "HAM10000_images_part_1/{}.jpg", "elsewhere/{}.png")
    with pytest.raises(InputError, match="has no folder of masks"):
        catalogue.read("folders", images=tmp_path)
    found = catalogue.read("ham10000", images=tmp_path, masks=tmp_path / "elsewhere")
    assert (found.table["mask"] != "").all()
    assert "no table of labels lies beside the images" in "".join(found.notes)


@pytest.mark.parametrize("names", [("images", "masks"), ("Image", "Segmentations")])
def test_own_folders_inside_one_are_found(tmp_path, names):
    write(tmp_path, ids(0), f"{names[0]}/{{}}.jpg", f"{names[1]}/{{}}.png")
    assert (catalogue.read("folders", images=tmp_path).table["mask"] != "").all()
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="no public source is recognised in it"):
        catalogue.read("folders", images=tmp_path / "other")

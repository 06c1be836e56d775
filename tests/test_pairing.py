"""Which mask belongs to which image, whatever their names have around what they share."""

import unicodedata

import pytest

from lesionlib.data import pairing
from lesionlib.engine.errors import InputError

NUMBERS = [f"{k:03d}" for k in range(12)]


@pytest.mark.parametrize(
    "image, mask, said",
    [
        ("{}", "{}", ""),
        ("IMG_{}", "img_{}", ""),
        ("{}", "{}_segmentation", "'_segmentation'"),
        ("{}", "{}_Segmentation", "'_segmentation'"),
        ("{}", "{}_lesion", "'_lesion'"),
        ("{}", "{}-roi2", "'NAME-roi2' for the mask"),
        ("{}", "mask_{}", "'mask_NAME' for the mask"),
        ("{}", "m{}", "'mNAME' for the mask"),
        ("img_{}", "{}", "'img_NAME' for the image"),
        ("image_{}", "mask_{}", "'NAME' for the"),
        ("{}_photo", "{}_truth", "for the image and"),
        ("a{}.x", "a{}.x_GT", "'_gt'"),
    ],
)
def test_any_prefix_or_suffix_is_found_and_said(image, mask, said):
    images, masks = ([text.format(n) for n in NUMBERS] for text in (image, mask))
    pairs, sentences = pairing.pair(images, masks)
    assert pairs == dict(zip(images, masks, strict=True))
    assert len(sentences) == bool(said) and said.split("NAME")[-1] in "".join(sentences)


def test_strangers_are_not_paired():
    pairs, _ = pairing.pair(["1", "2", "x"], ["1", "2", "10", "y"])
    assert pairs == {"1": "1", "2": "2"}
    assert pairing.pair(["0", "1", "2"], ["000", "001", "002"])[0] == {}  # zeros are no prefix


def test_two_possible_masks_are_an_error_that_names_both():
    masks = [f"{n}{end}" for n in NUMBERS for end in ("_globules", "_network")]
    with pytest.raises(InputError, match="'000_globules' and '000_network'|'000_network' and"):
        pairing.pair(NUMBERS, masks)


def test_unicode_forms_are_one_name(tmp_path):
    for folder, form in (("images", "NFC"), ("masks", "NFD")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{unicodedata.normalize(form, 'Müller')}.png").touch()
    images, masks = (pairing.list_files(tmp_path / f, "--x").found for f in ("images", "masks"))
    assert pairing.pair(images, masks)[0] == {"Müller": "Müller"}


def test_every_file_is_a_picture_or_accounted_for(tmp_path):
    names = ["a.JPE", "b.jfif", "c.webp", "d.tif", "e.dcm", "f", "ISIC_1_superpixels.png"]
    for name in [*names, "._a.jpg", ".DS_Store", "LICENSE.txt", "a.png"]:
        (tmp_path / name).touch()
    files = pairing.list_files(tmp_path, "--images")
    assert list(files.found) == ["a", "b", "c", "d"]
    reasons = {name: reason.partition(";")[0] for name, _, reason in files.unused}
    assert reasons.keys() == {"a", "e", "f"} and "second file" in reasons["a"]
    assert files.beside == {"file of the operating system": 2, "superpixels": 1, "document": 1}
    assert len(files.found) + len(files.unused) + files.beside.total() == 11


def test_images_in_part_folders_are_found(tmp_path):
    for place in ("part_1", "part_2", "__MACOSX"):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{place}.jpg").touch()
    assert list(pairing.list_files(tmp_path, "--images").found) == ["part_1", "part_2"]


def test_one_folder_for_both_is_told_apart_or_refused(tmp_path):
    names = [*NUMBERS, *(f"{n}_M" for n in NUMBERS)]
    images, masks, suffix = pairing.divide(names, tmp_path)
    assert (images, masks, suffix) == (NUMBERS, names[12:], "_m")
    with pytest.raises(InputError, match="no suffix tells them apart"):
        pairing.divide(NUMBERS, tmp_path)

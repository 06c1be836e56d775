"""Tables as people save them: separators, encodings, names of columns, cells, ids."""

import pandas as pd
import pytest

from lesionlib.data import tables
from lesionlib.engine.errors import InputError

IMAGES = ["a.1", "b", "ISIC_0000002"]


def read(path, content, images=IMAGES, encoding="utf-8"):
    """Labels by id and notes of a table with this content, joined with images."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    found, notes = tables.labels(path, tables.read_table(path), images)
    found, more = tables.matched(path, found, images)
    return found.set_index("id"), notes + more


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.csv"


@pytest.mark.parametrize(
    "content, encoding",
    [
        ("id,diagnosis,age,site\nb,BCC,55,Gesäß\n", "utf-8"),
        ("id;diagnosis;age;site\nb;BCC;55,0;Gesäß\n", "utf-8-sig"),
        ("sep=;\nid;diagnosis;age;site\nb;BCC;55;Gesäß\n\n;;;\n", "cp1252"),
        ("id\tdiagnosis\tage\tsite\nb\tBCC\t55\tGesäß\n", "utf-16"),
        (" ID , Diagnosis ,AGE,site \r\n b , BCC ,55, Gesäß \r\n", "utf-8"),
        ("image_id  dx  age  localization\nb   bcc 55.0  Gesäß\n", "utf-8"),
        ('"id";"dx";"age";"site"\n"b";"BCC";"55";"Gesäß"\n', "latin-1"),
        ("id,diagnosis,age,site,\nb,BCC,55,Gesäß,\n", "utf-8"),
    ],
)
def test_tables_are_read_as_people_save_them(path, content, encoding):
    found, notes = read(path, content, encoding=encoding)
    row = found.loc["b"]
    assert row[["diagnosis", "age", "site"]].tolist() == ["basal cell carcinoma", "55", "Gesäß"]
    assert not notes


def test_a_spreadsheet_and_an_empty_table_are_named(path):
    for content, said in ((b"PK\3\4", "not text but a spreadsheet"), (b"\n", "it is empty")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            tables.read_table(path)


def test_a_table_whose_first_column_begins_like_a_spreadsheet_is_read(path):
    path.write_text("PK_ID,image\n1,b\n")
    assert list(tables.read_table(path)) == ["pk_id", "image"]


def test_ids_may_have_dots_folders_endings_capitals_and_isics_suffix(path):
    ids = ["a.1", r"C:\\x\\B.JPG", "ISIC_0000002_downsampled"]
    found, notes = read(path, "id,diagnosis\n" + "".join(f"{name},nv\n" for name in ids))
    assert list(found.index) == IMAGES and not notes


def test_rows_that_match_no_image_are_counted_and_none_at_all_is_an_error(path):
    _, notes = read(path, "id,diagnosis\nb,nv\nc,nv\n")
    assert len(notes) == 1 and "ids that are no image: 1 of 2" in notes[0] and "'c'" in notes[0]
    with pytest.raises(
        InputError, match=r"none of its 1 ids.*'x' in the table, 'a\.1' among the 3"
    ):
        read(path, "id,diagnosis\nx,nv\n")
    with pytest.raises(InputError, match="lost leading zeros"):
        read(path, "id,diagnosis\n0,nv\n1,nv\n", ["000", "001"])


def test_unused_columns_are_named_with_the_nearest_known(path):
    _, notes = read(path, "id,diagnose,colour\nb,nv,red\n")
    assert "columns that are not used: diagnose, colour" in notes[0]
    assert "did you mean 'diagnosis' by 'diagnose'" in notes[0] and "by 'colour'" not in notes[0]


def test_a_column_of_ids_with_another_name_is_found_and_said(path):
    found, notes = read(path, "bild,dx\nb,nv\na.1,mel\n")
    assert found["diagnosis"].tolist() == ["nevus", "melanoma"]
    assert "'bild' is taken for 'id': 100%" in notes[0]


def test_flags_are_read_and_what_is_no_flag_is_said(path):
    cells = ["True", "no", "1.0", "0", "", "unknown", "++", "-"]
    names = [f"n{k}" for k in range(8)]
    text = "".join(f"{name},{cell}\n" for name, cell in zip(names, cells, strict=True))
    found, notes = read(path, "id,streaks\n" + text, names)
    assert found["streaks"].tolist() == ["1", "0", "1", "0", "", "", "", ""]
    assert "words, read as 1 (yes) or 0 (no): 2, such as 'True', 'no'" in notes[0]
    assert "no flag (0 or 1), unknown now: 2, such as '++', '-'" in notes[1]


def test_ages_and_sexes_that_are_none_are_said(path):
    found, notes = read(path, "id;age;gender\nb;55,5;F\na.1;old;x\n")
    assert found["age"].tolist() == ["55.5", ""] and found["sex"].tolist() == ["female", ""]
    assert "no age in years, unknown now: 1, such as 'old'" in notes[0]
    assert "neither female nor male, unknown now: 1, such as 'x'" in notes[1]


def test_one_column_for_each_diagnosis(path):
    found, notes = read(path, "image,MEL,NV,UNK\nb,0.0,1.0,0\na.1,0,0,1\nISIC_0000002,1,1,0\n")
    assert found["diagnosis"].tolist() == ["nevus", "", ""]
    assert "name more than one diagnosis: 1, such as 'ISIC_0000002'" in notes[0]
    found, notes = read(path, "image_id,melanoma,seborrheic_keratosis\nb,0,0\na.1,0,1\n")
    assert found["diagnosis"].tolist() == ["nevus", "benign keratosis"] and not notes


def test_the_five_levels_of_the_isic_archive(path):
    levels = [
        ("b", "Benign", "Benign melanocytic proliferations", "Nevus", "", "blue"),
        ("a.1", "Malignant", "Malignant melanocytic proliferations (Melanoma)", "", "", ""),
        ("ISIC_0000002", "Benign", "Benign - Other", "Clear cell acanthoma", "", ""),
    ]
    columns = ["isic_id", *(f"diagnosis_{k}" for k in range(1, 6))]
    pd.DataFrame(levels, columns=columns).assign(patient_id="p").to_csv(path, index=False)
    found, notes = read(path, path.read_bytes())
    assert found["diagnosis"].tolist() == ["nevus", "melanoma", ""]
    assert (found["patient_id"] == "p").all()
    assert "none of our diagnoses, unknown now: 1, such as 'Clear cell acanthoma'" in notes[0]


def test_an_unknown_diagnosis_names_the_nearest_and_is_an_error_if_none_is_known(path):
    with pytest.raises(InputError, match=r"'melanom' \(1 rows, and none.*did you mean 'melanoma'"):
        read(path, "id,diagnosis\nb,melanom\n")
    found, notes = read(path, "id,diagnosis\nb,melanom\na.1,Solar lentigo\n")
    assert found["diagnosis"].tolist() == ["", "benign keratosis"]
    assert "none of our diagnoses, unknown now: 1, such as 'melanom'" in notes[0]
    assert notes[0].endswith("did you mean 'melanoma'?")

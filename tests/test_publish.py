"""What is published: no patient's image, no path of a machine, pages equal to the tables."""

import base64
import io
import json

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, run_lock, write_csv, write_json
from lesionlib.engine.provenance import file_digest
from lesionlib.evaluation.claims import VERDICTS
from lesionlib.evaluation.paper import NAMES
from lesionlib.report import plots, publish

matplotlib.use("agg")


def patients(n=4, size=48, seed=0):
    """Images of loud random blocks, which nothing else on a page looks like, and round masks."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 2, (n, size // 4, size // 4, 3), np.uint8) * 255
    y, x = np.mgrid[:size, :size] - size / 2
    masks = np.stack([np.hypot(y, x) < size / 4 + 2 * i for i in range(n)]).astype(np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2), masks


def shows(page: np.ndarray, image: np.ndarray) -> bool:
    """Whether a quarter of the image is on a page, at one of the scales that `run`'s sheet has."""
    half = image.shape[0] // 2
    corners = [image[a : a + half, b : b + half, 1] for a in (0, half) for b in (0, half)]
    small = cv2.resize(page[..., 1], None, fx=0.19, fy=0.19, interpolation=cv2.INTER_AREA)
    for side in range(13, 30):  # a panel of 1.15 inches has 173 or 253 pixels
        for part in corners:
            wanted = cv2.resize(part, (side, side), interpolation=cv2.INTER_NEAREST)
            if cv2.matchTemplate(small, wanted, cv2.TM_CCOEFF_NORMED).max() > 0.85:
                return True
    return False


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run on real images: one sheet, one plot, a notebook that shows both."""
    folder, shown, clinic = tmp_path / "runs" / "mine", [], tmp_path / "clinic ü"
    monkeypatch.setattr(plots, "display", shown.append)
    images, masks = patients()
    painted = patients(seed=1)[0]
    rows = {"mask": masks, "original": plots.all_outlined(images, masks), "painted": painted}
    sheet = plots.sheet(rows, made=["painted"], masks={"original": masks})
    plots.show(sheet, folder, "figure3")
    plots.show(
        plots.curve([{"step": 1, "loss": 2}, {"step": 2, "loss": 1}], ["loss"], "loss"),
        folder,
        "training",
    )
    outputs = []
    for picture in shown:
        data, metadata = picture._repr_mimebundle_()
        text = data["image/png"]
        text = base64.b64encode(text).decode() if isinstance(text, bytes) else text
        outputs.append(
            {"output_type": "display_data", "data": {"image/png": text}, "metadata": metadata}
        )
    text = [
        f"{clinic}/images/7.jpg\n",
        f"{folder}/checkpoints/x.pt\n",
        f"WARNING: {clinic}/images/Meier_Anna/Li/7.jpg: a second file of this id\n",
        f"WARNING: {clinic}/split.csv: ids that are no image: 1, as Huber_Max\n",
        "WARNING: files left out: 1, such as Müller, Eva (2).jpg, surname_forename_00: melanoma",
        "surname_fore... a lesion\n",
    ]
    said = {"output_type": "stream", "name": "stdout", "text": text}
    for stage in ("01_data", "07_figures"):
        write_json(
            folder / "notebooks" / f"{stage}.ipynb",
            {
                "cells": [
                    {"cell_type": "markdown", "source": ["# A stage"], "metadata": {}},
                    {
                        "cell_type": "code",
                        "outputs": [*outputs, said],
                        "source": [],
                        "metadata": {},
                        "execution_count": 1,
                    },
                ],
                "metadata": {
                    "papermill": {"duration": 60, "parameters": {"images": str(tmp_path)}}
                },
                "nbformat": 4,
                "nbformat_minor": 5,
            },
        )
    _write_tables(folder / "tables")
    for name in ("images", "masks"):
        (clinic / name / "Meier_Anna" / "Li").mkdir(parents=True)
        for stem in ("Müller, Eva (2)", "surname_forename_00", "7", "20231"):
            (clinic / name / f"{stem}.jpg").touch()
    (clinic / "split.csv").write_text("id,split\n7,G\nHuber_Max,G\n")
    own = {"images": f"{clinic}/images", "masks": f"{clinic}/masks", "split": f"{clinic}/split.csv"}
    own |= {"base_model": f"{clinic}/base"}
    settings = config.load("isic", own).flat()
    write_json(
        folder / "provenance.json",
        {
            "settings": settings,
            "code": "0 (abc)",
            "resources": {
                "01_data": {"sittings": 2, "seconds": 60},
                "07_figures": {"seconds": 120},
            },
            "images": {"G": 40, "S-train": 14, "S-val": 2, "S-test": 4},
            "quarantine": f"1 of 4 images: {clinic}/images/Müller, Eva (2).jpg: damaged",
            "artefacts": {"models/x": {"trained_on": ["7", "surname_forename_00"]}},
            "environment": {"python": "3", "packages": {"torch": "2"}, "hardware": "two cores"},
        },
    )
    monkeypatch.setattr(publish, "FIGURES", tmp_path / "figures")
    return folder


def _write_tables(folder):
    arms = ["controlnet", "pix2pixhd"]
    interval = {"mean_low": 0.1, "mean_high": 0.3}
    claim = pd.DataFrame(
        {
            "claim": ["better (equal epochs)"],
            "schedule": ["epochs"],
            "measure": ["ssim"],
            "seeds": [3],
            "insensitive": [""],
            "verdict": ["supported"],
            "difference": [0.1],
            "low": [0.05],
            "high": [0.2],
            "p_holm": [1e-9],
            "detectable": [0.02],
        }
    )
    paper = [
        {
            "network": "unet",
            "schedule": "epochs",
            "share": 100,
            "arm": arm,
            "method": arm.split()[0],
            "trained on": arm,
            "mean": 0.2,
            **interval,
            "difference": 0.1,
            "low": 0.0,
            "high": 0.2,
        }
        for arm in ("real 0", "controlnet 5", "pix2pixhd 5")
    ]
    tables = {
        "table1": pd.DataFrame({"method": arms, "n": 4, "ssim": [0.5, 0.4]}),
        "table1_comparison": pd.DataFrame(
            [
                {"arm": a, "measure": m, "mean": 0.2, **interval}
                for a in arms
                for m in ("mse", "psnr_255", "psnr_1", "ssim")
            ]
        ),
        "table2": pd.DataFrame(
            {
                "network": "unet",
                "method": ["real", *arms],
                "amount": [0, 10, 10],  # as many times S-train as 1,000 are in the paper
                "pairs": [7, 17, 17],
                "share": 100,
                "schedule": "epochs",
                "trained on": ["real 0", "controlnet 5", "pix2pixhd 5"],
                "seeds": 3,
                "generators": 1,
                "steps": 40,
                "unfinished": [0, 1, 0],
            }
        ),
        "headroom": pd.DataFrame(
            {
                "network": ["unet"],
                "schedule": ["steps"],
                "share": [25],
                "alone": [0.8],
                "pairs": [1321],
                "difference": [0.03],
                "low": [0.01],
                "high": [0.05],
                "enough": [True],
            }
        ),
        "worth": pd.DataFrame(
            {"network": ["unet"], "schedule": ["steps"], "sentence": ["5 are 2."]}
        ),
        "table2_comparison": pd.DataFrame(paper),
        "claims": claim,
        "image_claims": claim,
        "controls": pd.DataFrame(columns=["claim", "verdict", "sentence"]),
        "mask_fidelity": pd.DataFrame(
            {
                "images": ["real", *arms],
                "masks": "S-test",
                "dice": 0.8,
                "hd95": 0.1,
                "distractors": 0,
            }
        ),
        "curation": pd.DataFrame({"id": ["patient-17"], "split": ["G"]}),
        "image_quality": pd.DataFrame({"id": ["20231", "7", "patient-17"], "mse": [0.20231, 7, 7]}),
    }
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)


def pages(folder):
    """Every picture that a published folder holds: files, and those inside notebooks."""
    for path in folder.rglob("*.png"):
        yield opened(path.read_bytes())
    for path in folder.rglob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    yield opened(base64.b64decode(output["data"]["image/png"]))


def test_no_part_of_a_patients_image_is_published_but_what_was_painted_is(run):
    folder = publish.publish(run)
    found = list(pages(folder))
    assert len(found) == 2 + 2 * 2
    real, painted = patients()[0], patients(seed=1)[0]
    own = opened((run / "figures" / "figure3.png").read_bytes())
    assert all(shows(own, image) for image in real)  # the run itself shows them
    assert not any(shows(page, image) for page in found for image in real)
    assert sum(all(shows(page, image) for image in painted) for page in found) == 3


def test_pictures_lose_colours_only_where_that_makes_them_smaller():
    side = np.arange(128, dtype=np.uint8)
    smooth = np.stack(np.broadcast_arrays(side[:, None], side, np.uint8(9)), -1)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for picture, kept in ((smooth, True), (noise, False)):
        Image.fromarray(picture).save(file := io.BytesIO(), "PNG")
        small = publish.compress(file.getvalue())
        assert len(small) <= len(file.getvalue())
        assert (opened(small) == picture).all() == kept


def test_they_are_shown_on_demand_and_if_they_are_nobodys(run):
    image = patients()[0][1]
    folder = publish.publish(run, show_images=True)
    assert sum(shows(page, image) for page in pages(folder)) == 3
    facts = json.loads((run / "provenance.json").read_text())
    facts["settings"]["source"] = "phantom"
    write_json(run / "provenance.json", facts)
    assert sum(shows(page, image) for page in pages(publish.publish(run))) == 3


def test_a_picture_of_unknown_content_is_refused_and_named(run):
    path = run / "notebooks" / "01_data.ipynb"
    content = json.loads(path.read_text())
    content["cells"][1]["outputs"][0]["metadata"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"01_data\.ipynb: cell 2 shows a picture of unknown"):
        publish.publish(run)
    assert not publish.FIGURES.exists() or not list(publish.FIGURES.iterdir())


def test_no_path_of_the_machine_and_no_table_of_patients_is_published(run, tmp_path):
    folder = publish.publish(run)
    texts = [
        path.read_text()
        for path in folder.rglob("*")
        if path.suffix in (".ipynb", ".json", ".csv", ".html")
    ]
    assert len(texts) > 8
    assert not any(str(tmp_path) in text or "patient-17" in text for text in texts)
    facts = json.loads((folder / "provenance.json").read_text())["settings"]
    assert facts["split"] == ".../split.csv" and facts["base_model"] == ".../base"
    assert any(".../images/case-0002.jpg" in text for text in texts)
    assert any("runs/mine/checkpoints/x.pt" in text for text in texts)


def test_no_name_of_an_own_image_is_in_any_published_byte(run):
    for show_images in (False, True):
        folder = publish.publish(run, show_images)
        for path in folder.rglob("*"):
            data = path.read_bytes() if path.is_file() else b""
            for name in (
                "Müller",
                "M\\u00fcller",
                ", Eva",
                "surname",
                "patient-17",
                "/7.jpg",
                "Meier",
                "/Li/case",
                "Huber",
            ):
                assert name.encode() not in data, (path, name)
    table = pd.read_csv(folder / "tables" / "image_quality.csv")
    assert table["mse"].tolist() == [0.20231, 7, 7]
    assert table["id"].tolist() == ["case-0001", "case-0002", "case-0007"]
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["artefacts"]["models/x"]["trained_on"] == ["case-0002", "case-0008"]
    assert ".../images/case-0006.jpg: damaged" in facts["quarantine"]


def test_a_large_table_is_published_compressed_without_names(run, monkeypatch):
    pages = publish.results(publish.publish(run))
    monkeypatch.setattr(publish, "LARGE_TABLE", 0)
    folder = publish.publish(run)
    packed = folder / "tables" / "image_quality.csv.gz"
    assert not list(folder.glob("tables/*.csv")) and len(list(folder.glob("tables/*.gz"))) > 5
    assert pd.read_csv(packed)["id"].tolist() == ["case-0001", "case-0002", "case-0007"]
    assert publish.results(folder) == pages
    before = packed.read_bytes()
    assert publish.publish(run).joinpath("tables", packed.name).read_bytes() == before


def test_names_of_a_public_source_stay(run):
    facts = json.loads((run / "provenance.json").read_text())
    facts["settings"]["source"] = "ham10000"
    write_json(run / "provenance.json", facts)
    table = pd.read_csv(publish.publish(run) / "tables" / "image_quality.csv")
    assert table["id"].tolist() == ["20231", "7", "patient-17"]


def test_the_page_of_a_run_holds_its_tables_picture_plot_and_notebooks(run):
    folder = publish.publish(run)
    text = (folder / "README.md").read_text()
    assert text == publish.results(folder)
    assert "| controlnet 5 | 0.200 (0.100 to 0.300) † | 0.912 |" in text
    assert "| pix2pixhd 5 | 0.200 (0.100 to 0.300) | 0.871 |" in text
    assert "| equal steps | 25 % | 0.800 | 1,321 | +0.030 (+0.010 to +0.050) | yes |" in text
    assert "\n- 5 are 2.\n" in text
    assert "| better (equal epochs) | supported | +0.100 (+0.050 to +0.200) | < 0.001 |" in text
    assert "| real images | 0.800 (0.800 to 0.800) |" in text
    assert "does not say which network" in text and "1. [A stage](notebooks/01_data.ipynb)" in text
    assert (folder / "forest.svg").stat().st_size > 5000 and "](forest.svg)" in text
    assert (
        "[`mine`](mine/README.md): preset `isic`, real images, which are replaced"
        in (publish.FIGURES / "README.md").read_text()
    )


def test_verdicts_have_their_colour_in_the_report(run):
    page = (publish.publish(run) / "index.html").read_text()
    assert f'<td style="color:{VERDICTS["supported"]}">supported</td>' in page
    assert "Could a gain have been shown?" in page and "The worth of synthetic pairs" in page


def test_the_report_begins_with_what_the_run_is_and_what_it_found(run):
    page = (publish.publish(run) / "index.html").read_text()
    order = [
        "run against the paper",
        ">Abstract<",
        "figure3.png",
        "forest.svg",
        ">Table 1",
        ">Notebo",
    ]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert "<td>1,594 / 700 / 100</td>" in page and "quarantine" not in page


def test_too_much_is_refused_and_what_was_there_stays(run, monkeypatch):
    folder = publish.publish(run)
    before = sorted(path.name for path in folder.rglob("*"))
    monkeypatch.setattr(publish, "LARGEST", 5000)
    with pytest.raises(InputError, match="MB are more than"):
        publish.publish(run)
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert [path.name for path in publish.FIGURES.iterdir() if path.is_dir()] == ["mine"]


def test_the_time_of_a_run_is_a_lower_bound_where_sittings_were_not_recorded():
    known, older = {"sittings": 2, "seconds": 7300.0}, {"sittings": 0, "seconds": 90.0}
    assert publish.pages.spent({"resources": {"01_data": known}}) == "2.0 hours"
    stages = {"01_data": known, "02_masks": older}
    assert publish.pages.spent({"resources": stages}) == "at least 2.1 hours"


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(InputError, match="it is not a finished run"):
        publish.publish(tmp_path)


def test_notebooks_of_several_versions_are_refused(run):
    for number, (name, code) in enumerate(
        {"01_data": "0 (abc)", "06_segmentation-01": "0 (old)", "07_figures": "0 (abc)"}.items()
    ):
        facts = {"stage": name, "started": f"2026-01-0{number + 1}", "code": code}
        write_json(run / "logs" / f"{name}.json", facts)
    publish.check_versions(run)  # a share of the grid is no notebook of the report
    path = run / "logs" / "07_figures.json"
    write_json(path, json.loads(path.read_text()) | {"code": "0 (def)"})
    with pytest.raises(InputError, match=r"01_data: 0 \(abc\); 07_figures: 0 \(def\).*-R data"):
        publish.publish(run)
    assert not publish.FIGURES.exists()


def test_a_run_that_is_active_or_half_rerun_is_refused(run):
    table, notebook = run / "tables" / "table1.csv", run / "notebooks" / "01_data.ipynb"
    facts = json.loads((run / "provenance.json").read_text())
    write_json(
        run / "provenance.json", facts | {"sha256": {"tables/table1.csv": file_digest(table)}}
    )
    with run_lock(run), pytest.raises(InputError, match="another run is active"):
        publish.publish(run)
    content = json.loads(notebook.read_text())
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no"}
    content["cells"][1]["outputs"].append(error)
    write_json(notebook, content)
    with pytest.raises(InputError, match="a notebook has failed .*01_data.*cell 2: ValueError: no"):
        publish.publish(run)
    for change in (lambda: table.write_text("method\n"), table.unlink):
        change()
        with pytest.raises(InputError, match="table1.csv: it has changed since .* let ./run_all"):
            publish.publish(run)


@pytest.mark.parametrize(
    "name", sorted(path.parent.name for path in (ROOT / "figures").glob("*/provenance.json"))
)
def test_the_published_page_says_what_the_published_tables_say(name):
    folder = ROOT / "figures" / name
    assert (folder / "README.md").read_text() == publish.results(folder)


def test_every_method_and_network_of_the_settings_has_a_name():
    settings = config.load("quick").flat()
    assert {*settings["methods"], *settings["networks"], "real", "base"} <= set(NAMES)


def test_jobs_of_the_grid_stand_in_one_row_of_the_resources():
    job = {"sittings": 1, "seconds": 60, "cpu_seconds": 30, "memory_mb": 1024}
    names = ("05_image_quality", "06_segmentation", "06_segmentation-01", "06_segmentation-02")
    facts = {"resources": {name: job for name in names}}
    facts["resources"]["06_segmentation-02"] = job | {"sittings": 2, "memory_mb": 2048}
    found = publish.pages.resources(facts)
    assert list(found.index) == [*names[:2], "06_segmentation, 2 jobs of the grid"]
    assert list(found.iloc[2]) == [3, 2, 1, 2]  # sittings, minutes, CPU minutes, GB
    assert list(found.iloc[1]) == [1, 1, 0.5, 1]
    assert publish.pages.resources({}).empty

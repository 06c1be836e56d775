"""The whole study under `smoke`, as a user runs it, and what a second start does."""

import contextlib
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import accelerate
import numpy as np
import pandas as pd
import psutil
import pytest
from prose import MOST_SENTENCES, REMOTE, count_sentences
from whole_study import NAME, RUN, run_all, table

from lesionlib.data import phantom
from lesionlib.engine import files
from lesionlib.engine import settings as config
from lesionlib.engine.files import ROOT
from lesionlib.engine.stages import STAGES
from lesionlib.evaluation.fidelity import KINDS
from lesionlib.generators import jobs as processes
from lesionlib.masks import conditions
from lesionlib.report import notebooks, pages
from lesionlib.segmentation.grid import PLATEAU, Cell, planned_cells

pytestmark = pytest.mark.study
MAKERS = ("controlnet", "pix2pixhd", "pix2pixhd_plus", "gan")


def finite(frame):
    return np.isfinite(frame.select_dtypes("number")).all().all()


def test_the_last_lines_are_the_tables_and_the_report(finished):
    lines = finished.stdout.strip().splitlines()
    assert lines[-1] == f"Report: {RUN / 'report' / 'index.html'}"
    assert any(line.startswith("Table 1") for line in lines)
    assert any(line.startswith("Table 2") for line in lines)


def test_every_image_is_accounted_for(finished):
    curation = table("curation")
    assert len(curation) == config.load("smoke").data.phantoms
    assert (curation["status"] == "used").all() and curation["id"].is_unique
    assert set(curation["split"]) == {"G", "S-train", "S-val", "S-test"}
    exported = {path.stem for path in (RUN / "data" / "s_test_masks").glob("*.png")}
    assert exported == set(curation["id"][curation["split"] == "S-test"])


def test_image_quality_has_a_row_per_image_and_method_in_range(finished):
    quality = table("image_quality")
    n = (table("curation")["split"] == "S-test").sum()
    assert quality.groupby("method").size().to_dict() == dict.fromkeys(MAKERS, n)
    assert finite(quality) and quality["mse"].between(0, 1).all()
    assert quality["ssim"].between(-1, 1).all()
    offset = quality["psnr_255"] - quality["psnr_1"]
    assert np.allclose(offset, 48.1308, atol=1e-3)
    assert np.allclose(quality["psnr_1"], -10 * np.log10(quality["mse"]), atol=1e-3)
    means = table("table1")
    assert set(means["method"]) == set(MAKERS) and (means["seeds"] == 1).all()
    spreads = [name for name in means if name.endswith("_sd")]
    assert finite(means.drop(columns=spreads)) and means[spreads].isna().all(None)
    assert set(table("image_claims")["verdict"]) == {"not tested"}
    assert len(table("image_claims")) == 3


def test_segmentation_has_every_cell_of_the_grid_on_both_test_sets(finished):
    cells = planned_cells(config.load("smoke", {"external_generators": {"gan": ""}}))
    rows = table("segmentation")
    columns = list(vars(cells[0]))
    found = {Cell(*values) for values in rows[columns].itertuples(index=False, name=None)}
    judged = [cell for cell in cells if cell.schedule != PLATEAU]
    assert found == set(judged) and len(rows) == 2 * len(judged)
    assert set(table("curves")["cell"]) == {cell.id for cell in cells}
    assert set(rows["test"]) == {"S-test", "clinic"}
    measured = rows.drop(columns="plateau")
    assert finite(measured) and rows["dice"].between(0, 1).all()
    assert set(table("external")["test"]) == {"clinic"}


def test_the_schedules_do_what_they_say(finished):
    rows = table("table2").query("share == 100 and network == 'unet'")
    steps = rows.pivot(index=["method", "amount"], columns="schedule", values="steps")
    assert steps["steps"].nunique() == 1 and steps["epochs"].nunique() > 1
    assert steps["epochs"].min() == steps["steps"].iloc[0]  # of S-train alone: one training
    learnt = table("learnt").query("network == 'unet'").set_index("schedule")
    assert steps["steps"].iloc[0] <= learnt.loc[PLATEAU, "steps"]


def test_every_comparison_and_verdict_is_there(finished):
    for name in ("table2_comparison", "controls", "headroom", "worth", "subgroups", "claims"):
        assert len(table(name)), name
    claims = table("claims")
    assert set(claims["schedule"]) == {"epochs", "steps"}
    assert set(claims["verdict"]) <= {"supported", "ruled out", "inconclusive"}
    assert {"gan 12", "gan 4"} <= set(table("table2_comparison")["arm"])
    assert set(table("headroom")["share"]) == {50, 100}
    assert {50, 100} <= set(table("worth")["share"])
    assert set(table("headroom")["network"]) == {"unet", "unet_imagenet"}


def test_sets_of_images_are_compared_with_the_floor_of_real_ones(finished):
    sets = {"real", "base", *MAKERS}
    assert set(table("distribution")["images"]) == sets and finite(table("distribution"))
    assert set(table("memorisation")["images"]) == sets | {f"{m}, synthetic set" for m in MAKERS}
    assert (table("diversity")["in pixels"] > 0).all()


def test_mask_fidelity_has_real_images_and_chance(finished):
    fidelity = table("mask_fidelity")
    assert set(fidelity["images"]) == {"real", "base", *MAKERS}
    assert finite(fidelity) and fidelity["dice"].between(0, 1).all()
    both = {(images, masks) for images in ("real", *MAKERS) for masks in KINDS}
    summary = table("fidelity")
    assert set(zip(summary["images"], summary["masks"], strict=True)) == both | {("base", KINDS[0])}
    pairs = fidelity[fidelity["masks"] == KINDS[1]].groupby("images")["dice"].mean()
    means = summary[summary["masks"] == KINDS[1]].set_index("images")["mean"]
    assert np.allclose(pairs.sort_index(), means.sort_index())
    for maker in MAKERS[:3]:  # one quantity, one value, wherever it stands
        manifest = pd.read_csv(RUN / "synthetic" / maker / "manifest.csv")
        assert manifest["mask_fidelity"].mean() == pytest.approx(means[maker], abs=1e-4)


def test_the_status_says_that_every_cell_is_done(finished):
    process = run_all("--status", RUN)
    number = len(planned_cells(config.load("smoke", {"external_generators": {"gan": ""}})))
    assert process.returncode == 0
    assert f"grid: {number} of {number} cells done, 0 running, 0 failed, 0 left" in process.stdout


def test_report_and_figures_are_whole_and_offline(finished):
    index = (RUN / "report" / "index.html").read_text()
    pages = sorted(path.name for path in (RUN / "report").glob("0*.html"))
    assert pages == [f"{stage}.html" for stage in STAGES]
    assert all(f'href="{page}"' in index for page in pages)
    assert "http" not in index
    for page in pages:
        text = (RUN / "report" / page).read_text()
        assert not REMOTE.findall(text) and '<span class="equation"><math' in text, page
    assert all((RUN / "figures" / f"figure{n}.png").stat().st_size > 5000 for n in (1, 2, 3, 4))
    assert (RUN / "provenance.json").exists()


@pytest.mark.skipif(not shutil.which("chromium"), reason="Debian's chromium is not installed")
def test_a_browser_finds_no_error_in_the_report(finished, tmp_path):
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    for page in ("index", "01_data", "06_segmentation"):
        address = (RUN / "report" / f"{page}.html").as_uri()
        process = subprocess.run(
            ["chromium", *options, address], capture_output=True, text=True, timeout=120
        )
        assert process.returncode == 0 and "</html>" in process.stdout
        said = [line for line in process.stderr.splitlines() if ":CONSOLE" in line]
        assert not said, page
        if page == "index":  # the script ran: heads of tables are buttons now
            assert "<button>MSE</button>" in process.stdout


def test_every_picture_of_the_report_says_what_it_shows(finished):
    pages = sorted((RUN / "report").glob("*.html"))
    tags = [tag for page in pages for tag in re.findall("<img[^>]*>", page.read_text())]
    assert len(tags) > 20
    texts = [re.search('alt="([^"]*)"', tag) for tag in tags]
    assert all(text and len(text[1]) > 10 and "No description" not in text[1] for text in texts)


def test_every_executed_notebook_opens_with_its_answer(finished):
    for path in (RUN / "notebooks").glob("*.ipynb"):
        first = "".join(json.loads(path.read_text())["cells"][0]["source"])
        assert "**Answer.** " in first and notebooks.PLACEHOLDER not in first, path
        answer = first.partition("**Answer.** ")[2].partition("\n\n")[0]
        assert 1 <= count_sentences(answer) <= MOST_SENTENCES, path


def test_no_progress_bar_is_left_in_an_executed_notebook(finished):
    for path in (RUN / "notebooks").glob("*.ipynb"):
        assert not re.search(r"\|[^|]*\| *\d+/\d+ \[.*(it/s|s/it)", path.read_text()), path


def test_a_file_of_the_run_says_what_is_behind_it(finished):
    said = run_all("--why", RUN / "tables" / "segmentation.csv").stdout
    assert "made by 06_segmentation (notebooks/06_segmentation.ipynb)" in said
    assert (
        "(as it was written)" in said and "segmentation.seeds: [0]" in said and "torch 2." in said
    )
    behind = said.partition("which are results of")[2]
    assert all(stage in behind for stage in ("01_data", "02_masks", "03_controlnet", "04_pix2"))
    for path, maker in (
        ("figures/figure3.png", "07_figures"),
        ("synthetic/controlnet/images/000000.png", "03_controlnet"),
        ("models/controlnet/diffusion_pytorch_model.safetensors", "03_control"),
    ):
        assert f"made by {maker}" in run_all("--why", RUN / path).stdout, path
    process = run_all("--why", ROOT / "README.md")
    assert process.returncode == 2 and "it is in no run's folder" in process.stderr


def test_every_file_is_as_it_was_written_until_one_is_not(finished):
    process = run_all("--verify", RUN)
    assert process.returncode == 0 and ", 0 missing or changed" in process.stdout
    path = RUN / "models" / "controlnet" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    lost = RUN / "tables" / "table2.csv"
    lost.rename(lost.with_suffix(".away"))
    process = run_all("--verify", RUN)
    path.write_bytes(whole)
    lost.with_suffix(".away").rename(lost)
    assert process.returncode == 1
    assert process.stdout.splitlines()[:2] == [
        f"changed: {path.relative_to(ROOT)}",
        f"missing: {lost.relative_to(ROOT)}",
    ]


def test_a_second_run_in_one_folder_is_told_who_holds_it(finished, external):
    with files.run_lock(RUN):
        process = run_all(*external)
    assert process.returncode == 2
    assert f"another run is active in this folder (process {os.getpid()} on " in process.stderr


def killed(name, moments, arguments):
    """Start a run and kill all its processes at each of the moments, then let it finish.

    A moment is a number of seconds, or a pattern of files, the first of which is waited for.
    Yields (moment, notebooks at work then) for each kill.
    """
    command = ["./run_all.sh", "--preset", "smoke", "--name", name, *map(str, arguments)]
    for moment in moments:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        began = time.monotonic()
        while process.poll() is None:
            if isinstance(moment, str) and any((ROOT / "runs" / name).glob(moment)):
                break
            if not isinstance(moment, str) and time.monotonic() - began > moment:
                break
            time.sleep(0.02)
        ended = process.poll() is not None
        every = (
            []
            if ended
            else [
                psutil.Process(process.pid),
                *psutil.Process(process.pid).children(recursive=True),
            ]
        )
        at_work = set()
        for one in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                line = one.cmdline()
                if "lesionlib.workflow.stage" in line:
                    at_work.add(Path(line[line.index("lesionlib.workflow.stage") + 2]).stem)
                one.kill()
        process.wait()
        yield moment, "ended before" if ended else ", ".join(sorted(at_work)) or "between stages"
    assert run_all(*arguments, name=name).returncode == 0


def results(name):
    """Every table and result of a run as text, without the run's name."""
    folder = ROOT / "runs" / name
    paths = [*folder.glob("tables/*.csv"), *folder.glob("cells/*.csv")]
    return {str(path.relative_to(folder)): path.read_text().replace(name, "") for path in paths}


def differences(one, other):
    """Lines in which the results of two runs differ, without those that agree."""
    found = [
        {file: text.splitlines(keepends=True) for file, text in results(name).items()}
        for name in (one, other)
    ]
    return [
        line
        for file in sorted(set().union(*found))
        for line in difflib.unified_diff(
            *(files.get(file, ["no such file"]) for files in found), file, file, n=0
        )
    ]


def test_killed_at_some_moments_it_ends_with_the_same_tables(finished, external):
    name, moments = (
        "test-killed",
        [
            "data/*.npy",
            "checkpoints/controlnet/checkpoint.pt",
            "synthetic/*/images/000002.png",
            "cells/*-epochs-*.csv",
        ],
    )
    kills = list(killed(name, moments, external))
    assert [one for one in kills if one[1] != "ended before"] == kills
    assert not differences(NAME, name)
    shutil.rmtree(ROOT / "runs" / name)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_tables(finished, external, capsys):
    name, draw = "test-killed-often", np.random.default_rng(0)
    kills = list(killed(name, draw.uniform(4, 30, 20).round(1), external))
    different = differences(NAME, name)
    with capsys.disabled():
        print("\nseconds after the start, notebooks at work when everything was killed")
        for moment, at_work in kills:
            print(f"{moment:5.1f}  {at_work}")
        print("tables in the end equal to those of the uninterrupted run:", not different)
    assert not different
    assert sum(work != "ended before" for _, work in kills) >= 10
    shutil.rmtree(ROOT / "runs" / name)


def test_changes_to_a_generator_are_measured_once_and_sampling_needs_no_training(
    finished, tmp_path
):
    plan, ablation = tmp_path / "plan.yaml", RUN / "ablation"
    plan.write_text(
        "preset: smoke\nsettings: {base_steps: 2, controlnet_steps: 2}\nvariants:\n  controlnet:\n"
        "  - {name: start, kept: true}\n"
        "  - {name: more noise, kept: false, change: {ddim_eta: 1.0}}\n"
        "  pix2pixhd:\n  - {name: start, kept: true, change: {pix2pixhd_steps: 2}}\n"
    )
    command = [sys.executable, "-m", "benchmarks.ablation", str(RUN), str(plan)]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    found = pd.read_csv(plan.with_suffix(".csv"))
    assert found["variant"].tolist() == ["real images", "start", "more noise", "start"]
    assert found[["kid", "mask_fidelity"]].notna().all(axis=None)
    assert len([path for path in ablation.iterdir() if path.is_dir()]) == 2
    before = {path: path.stat().st_mtime_ns for path in ablation.rglob("*")}
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in ablation.rglob("*")}
    made = [np.load(path) for path in sorted(ablation.glob("*.npy"))]
    assert len(made) == 3 and not (made[0] == made[1]).all()


def test_a_second_start_has_nothing_to_do(finished, external):
    again = run_all(*external)
    assert "Nothing to be done" in again.stderr + again.stdout
    assert again.stdout.strip().splitlines()[-1].startswith("Report: ")


def jobs_of_dry_run(*arguments):
    process = run_all("-n", *arguments)
    text = process.stdout + process.stderr
    lines = [line.split() for line in text.split("Job stats:")[-1].splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


@pytest.mark.parametrize(
    "path, stage", [("tables/join.csv", "data"), ("tables/table2.csv", "segmentation")]
)
def test_a_lost_table_is_made_anew(finished, external, path, stage):
    away = (RUN / path).rename(RUN / f"{path}.away")
    found = jobs_of_dry_run(*external)
    away.rename(RUN / path)
    assert found[stage] == 1


def test_a_changed_seed_reruns_its_cells_and_what_follows(finished, external):
    found = jobs_of_dry_run(*external, "--config", "seeds=[1]")
    shares = {name for name in found if name.startswith("segmentation_")}
    assert set(found) == shares | {"segmentation", "figures", "report", "all", "total"}
    assert len(shares) >= 4


def test_a_lost_cell_is_trained_and_the_others_are_read_back(finished, external):
    lost = "unet-controlnet-8-share100-epochs-seed0"
    cells = RUN / "checkpoints" / "cells"
    before = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.csv")}
    kept = next(
        path
        for path in cells.glob("*.csv")
        if json.loads(Path(f"{path}.json").read_text())["cell"] == lost
    )
    for path in (RUN / "cells" / f"{lost}.csv", kept):
        path.unlink()
    assert run_all(*external).returncode == 0
    after = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.csv")}
    assert {name for name in before if before[name] != after[name]} == {kept.name}


def test_a_generator_that_saw_s_stops_the_run_and_says_why(finished, external):
    gan = Path(external[1].partition("=")[2])
    known = table("curation").query("split == 'S-train'")["id"].iloc[0]
    (gan / "trained_on.csv").write_text(f"id\n{known}\n")
    process = run_all(*external, "--until", "image_quality")
    assert process.returncode != 0
    said = f"synthetic set gan: its generator was trained on 1 images of S, {known} among them"
    assert said in process.stderr
    (gan / "trained_on.csv").write_text("id\nanother\n")
    assert run_all(*external).returncode == 0


def test_a_changed_setting_reruns_only_its_stage_and_what_follows(finished, external):
    found = set(jobs_of_dry_run(*external, "--config", "pix2pixhd_steps=9"))
    assert {"pix2pixhd", "image_quality", "figures", "report"} <= found
    assert not {"data", "masks", "controlnet", "external_gan"} & found


def test_sampling_in_shards_changes_no_image(finished, tmp_path, monkeypatch):
    masks, prompts, _ = conditions.load(RUN)
    own = config.load("smoke")
    changed = {"ddim_steps": 2, "sample_batch": 4, "sample_seed": 3}
    own = own.model_copy(update={"sampling": own.sampling.model_copy(update=changed)})
    path = RUN / "data" / "conditions.npy"
    for number in (1, 2):
        for index in range(number):
            state = type("State", (), {"process_index": index, "num_processes": number})
            monkeypatch.setattr(accelerate, "PartialState", state)
            before = len(list(tmp_path.glob(f"{number}/images/*.png")))
            target = RUN, own, str(tmp_path / str(number))
            processes.sample_job(*target, str(path), prompts, "controlnet")
            assert len(list(tmp_path.glob(f"{number}/images/*.png"))) > before
    one, two = (sorted((tmp_path / str(n)).rglob("*.png")) for n in (1, 2))
    assert len(one) == len(two) == 2 * len(masks)
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


@pytest.mark.slow
def test_a_launched_training_in_two_processes_is_what_the_notebook_goes_on_with(finished):
    command = (
        "accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no "
        "--dynamo_backend no"
    )
    name = "test-launch"
    process = run_all("--until", "controlnet", "--config", f"launch={command}", name=name)
    assert process.returncode == 0, process.stderr[-3000:]
    logs = [
        pd.read_csv(ROOT / "runs" / run / "checkpoints" / "controlnet" / "validations.csv")
        for run in (NAME, name)
    ]
    painted = pd.read_csv(ROOT / "runs" / name / "synthetic" / "controlnet" / "manifest.csv")
    shutil.rmtree(ROOT / "runs" / name)
    np.testing.assert_allclose(*(log["held_out_loss"] for log in logs), rtol=1e-3)
    assert len(painted) == max(config.load("smoke")["synthetic_amounts"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config", "imagesize=3"], "did you mean 'image_size'"),
        (["--config", "epochs"], "is not KEY=VALUE"),
        (["--images", "nowhere"], "nowhere: this does not exist. Remedy: correct --images"),
        (
            ["--synthetic", "gan=nowhere"],
            "images: this folder does not exist. Remedy: correct --synth",
        ),
        (["--external", "clinic"], "'clinic' is not NAME=DIR"),
        (["--synthetic", "real=tests"], "setting 'external_generators'"),
        (["--images", "tests"], "without --masks. Remedy: give --images DIR --masks DIR"),
    ],
)
def test_wrong_arguments_are_one_clear_error(arguments, said):
    process = run_all(*arguments, name="test-wrong")
    assert process.returncode == 2 and said in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    assert not (ROOT / "runs" / "test-wrong").exists()


def test_a_damaged_pair_stops_the_run_with_one_clear_message_if_asked_to(tmp_path):
    phantom.write_dataset(tmp_path, 24, 64, workers=1)
    images = tmp_path / "ISIC2018_Task1-2_Training_Input"
    masks = tmp_path / "ISIC2018_Task1_Training_GroundTruth"
    broken = sorted(images.iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:500])
    process = run_all(
        "--images",
        images,
        "--masks",
        masks,
        "--until",
        "data",
        "--config",
        "bad_inputs=stop",
        name="test-broken",
    )
    executed = ROOT / "runs" / "test-broken" / "notebooks" / "01_data.ipynb"
    assert process.returncode != 0 and executed.exists()
    shutil.rmtree(ROOT / "runs" / "test-broken")
    line = r"01_data\.ipynb, cell \d+: " + f"{broken}: the image is corrupt[^\n]*Remedy: "
    assert re.search(line, process.stderr)


def test_names_and_labels_of_inputs_are_text_in_the_pages_never_markup(tmp_path):
    phantom.write_dataset(tmp_path, 24, 64, workers=1)
    images = tmp_path / "ISIC2018_Task1-2_Training_Input"
    masks = tmp_path / "ISIC2018_Task1_Training_GroundTruth"
    evil, names = "<img src=x onerror=alert(1)>", sorted(path.stem for path in images.iterdir())
    (images / f"{evil}.jpg").write_bytes(b"no picture")
    (images / f"{names[3]}.jpg").rename(images / f"{evil}2.jpg")
    (masks / f"{names[3]}_segmentation.png").rename(masks / f"{evil}2_segmentation.png")
    labels = pd.DataFrame({"id": [evil + "2", *names[:3]], "diagnosis": "nevus", "site": evil})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    name = "test-evil"
    process = run_all(
        "--images",
        images,
        "--masks",
        masks,
        "--table",
        tmp_path / "labels.csv",
        "--until",
        "data",
        name=name,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    pages.write_pages(ROOT / "runs" / name)
    page = (ROOT / "runs" / name / "report" / "01_data.html").read_text()
    shutil.rmtree(ROOT / "runs" / name)
    assert "&lt;img src=x onerror" in page and "<img src=x" not in page


def test_a_notebook_run_too_early_names_its_predecessor(tmp_path):
    command = [
        sys.executable,
        "-m",
        "papermill",
        "notebooks/02_masks.ipynb",
        str(tmp_path / "out.ipynb"),
        "-p",
        "run",
        str(tmp_path / "run"),
        "--cwd",
        "notebooks",
        "--no-progress-bar",
    ]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode != 0
    assert "run notebooks/01_data.ipynb first" in process.stderr

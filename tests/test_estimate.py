"""What a run will cost: counts, packing, floating-point operations, messages."""

import itertools
import os
import re
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from whole_study import RUN

from lesionlib.engine import settings as config
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, Log, read_json
from lesionlib.engine.settings import Sampling
from lesionlib.engine.training import Files
from lesionlib.segmentation import training
from lesionlib.workflow import cli, estimate, gpu, probe, status
from lesionlib.workflow.estimate import Job, Machine, packed


def timed(**seconds):
    """A function of a job: its seconds by name."""
    return lambda job: seconds[job.name]


def job(name, *after, width=1):
    return Job(name, "report", after=frozenset(after), width=width)


def end(plan):
    return max(stop for _, stop in plan.values())


def test_jobs_without_order_fill_all_cores():
    jobs = [job(name) for name in "abcdef"]
    assert end(packed(jobs, 2, lambda one: 5.0)) == 15
    assert end(packed(jobs, 6, lambda one: 5.0)) == 5


def test_a_chain_takes_its_sum_and_a_diamond_its_longest_path():
    chain = [job("c", "b"), job("b", "a"), job("a")]
    seconds = timed(a=1.0, b=2.0, c=4.0, d=3.0)
    assert packed(chain, 8, seconds) == {"a": (0, 1), "b": (1, 3), "c": (3, 7)}
    diamond = [job("a"), job("b", "a"), job("d", "a"), job("c", "b", "d")]
    assert end(packed(diamond, 2, seconds)) == 1 + 3 + 4
    assert end(packed(diamond, 1, seconds)) == 1 + 2 + 3 + 4


def test_the_order_of_the_list_is_the_priority_and_wide_jobs_need_their_cores():
    jobs = [job("long"), job("b"), job("c")]
    plan = packed(jobs, 2, timed(long=4.0, b=2.0, c=2.0))
    assert end(plan) == 4 == end(packed(jobs, 2, timed(long=4.0, b=2.0, c=2.0)))  # the optimum
    assert end(packed(jobs[::-1], 2, timed(long=4.0, b=2.0, c=2.0))) == 6
    wide = [job("a", width=2), job("b", width=2), job("c")]
    plan = packed(wide, 3, lambda one: 1.0)
    assert plan == {"a": (0, 1), "c": (0, 1), "b": (1, 2)}
    assert end(packed([job("a", width=64)], 2, lambda one: 1.0)) == 1
    with pytest.raises(ValueError, match="not there"):
        packed([job("a", "nobody")], 2, lambda one: 1.0)


def test_the_jobs_are_those_of_the_snakefile_and_wait_for_the_same_ones():
    command = [sys.executable, "-m", "lesionlib.workflow.cli", "--preset", "smoke"]
    command += ["--name", "test-estimate", "--synthetic", "gan=tests", "--dag"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', said))
    edges = {(names[b], names[a]) for a, b in re.findall(r"(\d+) -> (\d+)", said)}
    settings = config.load("smoke", {"external_generators": {"gan": str(ROOT / "tests")}})
    sizes, _ = estimate.parts(settings)
    jobs = estimate.planned_jobs(settings, sizes, 1.0, 2)
    ours = {(one.name, before) for one in jobs for before in one.after}
    assert {one.name for one in jobs} == set(names.values()) - {"all"}
    assert ours == {(a, b) for a, b in edges if a != "all"}


def test_passes_are_those_of_guidance():
    table = {(1.0, 1.0): [1, 1, 1], (3.0, 1.0): [1, 2, 2], (1.0, 2.0): [2, 2, 1]}
    table[3.0, 2.0] = [2, 3, 2]
    for (text, mask), wanted in table.items():
        sampling = Sampling(guidance=text, control_guidance=mask)
        cases = (False, True), (True, True), (True, False)
        assert [probe.rows(sampling, *case) for case in cases] == wanted


def test_a_card_computes_what_a_hand_does():
    card = gpu.Card("made up", 1e12 / gpu.COMPUTE, 1e30, 1e9, "")
    layer = nn.Conv2d(8, 16, 3, padding=1, bias=False, device="meta")
    x = torch.empty(2, 8, 10, 10, device="meta", requires_grad=True)
    with gpu.Roofline(card) as line:
        y = layer(x)
    once = 2 * (2 * 10 * 10) * 16 * (8 * 3 * 3)
    assert line.flops == once and line.seconds == pytest.approx(max(once / 1e12, gpu.LAUNCH))
    with gpu.Roofline(card) as line:
        y.sum().backward()
    assert line.flops == 2 * once  # gradients of weights and of inputs
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, device="meta")
    with gpu.Roofline(card) as line:
        grouped(torch.empty(2, 8, 10, 10, device="meta")).sum().backward()
    assert line.flops == 2 * 2 * (2 * 10 * 10) * 8 * 9  # not of the inputs, which want none


def test_bytes_and_launches_count_where_they_take_longer():
    slow = gpu.Card("made up", 1e30, 1e6 / gpu.MEMORY, 1e9, "")
    x = torch.empty(1000, device="meta")
    with gpu.Roofline(slow) as line:
        (x + x).view(10, 100)  # a view moves nothing
    assert line.seconds == pytest.approx(3 * 4000 / 1e6) and line.flops == 0
    with gpu.Roofline(gpu.CARDS["h100"]) as line:
        first = x * 2
        second = first * 2
        del first, second
        x * 2
    assert line.seconds == pytest.approx(3 * gpu.LAUNCH) and line.peak == 8000


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_network_is_counted_as_it_is_trained():
    settings = config.load("smoke")
    count = gpu.Count(settings, gpu.CARDS["h100"], None)
    gpu.count_network(count, "unet", "unet", probe.recipe_of("unet", settings.segmentation), 32)
    forward = count.flops["unet image"] * settings.segmentation.batch
    assert 2.5 * forward < count.flops["unet"] < 3.1 * forward  # forward, and twice backward
    gpu.count_network(
        count, "reference", "unet", probe.recipe_of("unet", settings.segmentation), 32
    )
    gpu.count_judged(count)
    assert count.found["judged"] > count.found["reference image"]
    gpu.count_gan(count, "pix2pixhd_plus")
    assert {"pix2pixhd_plus", "pix2pixhd_plus_fine", "pix2pixhd_plus image"} <= set(count.found)
    assert all(seconds > 0 for seconds in count.found.values())


def test_a_training_that_is_tried_stops_after_its_steps_and_leaves_the_loop_as_it_was(tmp_path):
    part = probe.pairs(8, 32)
    recipe = probe.recipe_of("unet", config.load("smoke").segmentation)
    files = Files(tmp_path / "c.pt", tmp_path / "log.csv")

    def train(steps):
        training.train("unet", part, part, recipe, seed=0, steps=steps, files=files, key="k")

    with probe.few_steps() as seconds:
        train(1000)
    assert len(seconds) == probe.STEPS and min(seconds) > 0 and not files.checkpoint.exists()
    train(2)
    assert Log.read(files.log)[-1]["step"] == "2" and len(seconds) == probe.STEPS


def test_the_range_of_s_covers_what_a_plateau_can_ask():
    settings = config.load("quick")
    sizes, told = estimate.parts(settings)
    assert told == "260 procedural images (G 160, S-train 70, S-val 10, S-test 20)"
    low, high = (estimate.grid_work(settings, sizes, share) for share in (estimate.EARLY, 1.0))
    assert low.keys() == high.keys()
    steps = [sum((Counter(w) for w in work.values()), Counter())["unet"] for work in (low, high)]
    assert 0.2 < steps[0] / steps[1] < 0.6
    one = "unet-real_pairs-100-share100-steps-seed1"
    assert high[one] == {"unet": 60, "unet image": 13 * 10 + 20, "measured": 20}
    assert low[one]["unet"] == 23  # 1.5 times a quarter of 60
    assert high["unet-real-0-share100-steps-seed0"] == {}  # the same training as for equal epochs


def units(settings, seconds=1.0):
    """What was tried, made up: a second for everything."""
    works = itertools.chain(*(one.work for one in planned(settings)))
    sizes = dict.fromkeys(("base", "controlnet", "latents", *settings.design.methods), 1e6)
    found = dict.fromkeys([*works, "kernel"], seconds)
    return {"seconds": found, "parameters": sizes, "memory": 1500.0, "gpu": 0}


def planned(settings):
    return estimate.planned_jobs(settings, estimate.parts(settings)[0], 1.0, 2)


def test_the_report_adds_up():
    settings = config.load("quick")
    one = estimate.Estimate(settings, Machine(1), units(settings))
    plans, lines = one.plans(), estimate.report(one).splitlines()
    for plan, jobs in zip(plans, one.ends, strict=True):
        total = sum(each.seconds(one.found["seconds"]) for each in jobs)
        assert end(plan) == pytest.approx(total)  # one core does one after the other
    assert lines[0].startswith("Estimate of quick on ") and ", 1 at a time; 260" in lines[0]
    stages = [line.split()[0] for line in lines[1:9]]
    assert stages == [*(f"0{n}" + line[2:] for n, line in enumerate(stages[:7], 1)), "report"]
    assert "in all about" in lines[9] and "memory 1.5 GB for the largest job" in lines[9]
    assert "from a plateau at step 15 to none within most_steps = 60" in lines[10]
    two = estimate.Estimate(settings, Machine(2), units(settings))
    assert end(plans[1]) / 2 <= end(two.plans()[1]) < end(plans[1])
    fixed = config.load("quick", {"epochs": 3})
    told = estimate.report(estimate.Estimate(fixed, Machine(2), units(fixed)))
    assert " to " not in told and "S*" not in told


def test_cores_and_cards_are_read_from_the_command_line():
    assert Machine.here(["--cores", "3"]).cores == Machine.here(["-c3"]).cores == 3
    assert Machine.here([]).cores >= 1 and Machine.here(["--cores", "all"]).card is None
    four = Machine.here([], "h100:4")
    assert four.card.flops == 989e12 and four.beside(config.load("paper")) == 4
    assert Machine(16).beside(config.load("paper")) == 2  # eight threads each
    for wrong in ("h1000", "h100:many"):
        with pytest.raises(InputError, match="no card that is known. Remedy: one of h100, h200"):
            Machine.here([], wrong)


def test_the_command_tries_keeps_and_says_it(monkeypatch, tmp_path, capsys):
    settings = config.load("smoke", name="test-estimate")
    monkeypatch.setattr(status, "KEPT", tmp_path)
    asked = []

    def tried(given, works, beside):
        asked.append((len(works), beside))
        return units(settings)

    monkeypatch.setattr(probe, "tried", tried)
    options = ["--preset", "smoke", "--name", "test-estimate", "--cores", "2"]
    assert cli.main([*options, "--estimate"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Estimate of smoke on ") and "2 at a time" in said
    assert asked == [(1 + 2 + 3 + 2 + 4, 2)]
    more = config.load("smoke", {"seeds": [0, 1, 2], "most_steps": 9}, "other")
    assert status.kept_file(settings).exists() and status.kept_file(more).exists()
    for told in ({"batch": 32}, {"networks": ["unet"]}):  # what was not tried
        assert not status.kept_file(config.load("smoke", told)).exists()
    for wrong, said in (
        (["--nonsense"], "there is no such option"),
        (["--images", "nowhere"], "nowhere: this does not exist"),
        (["--gpu", "h1000"], "one of h100, h200"),
    ):
        assert cli.main([*options, "--estimate", *wrong]) == 2
        assert said in capsys.readouterr().err


def test_without_pix2pixhd_there_is_no_job_of_it_and_without_images_they_are_assumed():
    alone = planned(config.load("quick", {"methods": ["controlnet"]}))
    assert not any("pix2pixhd" in (one.name, *one.after) for one in alone)
    sizes, told = estimate.parts(config.load("isic", {"images": "/nowhere", "masks": "/nowhere"}))
    assert sum(sizes.values()) == estimate.ASSUMED and "the source is not at hand" in told


def test_the_parts_are_those_of_the_file_that_the_run_reads(tmp_path):
    path = tmp_path / "split.csv"
    rows = "a.jpg;G\nb;G\nc;S-train\nd;S-val\ne;S-test\n"
    settings = config.load("quick", {"split": str(path)})
    path.write_text(f"Image_ID;Split\n{rows}")
    sizes, told = estimate.parts(settings)
    assert list(sizes.values()) == [2, 1, 1, 1] and told.startswith("5 ")
    for text, said in ((rows + "a;S-val\n", "'a' is in more than one"), ("a;G\n", "is in S-train")):
        path.write_text(f"id;split\n{text}")
        with pytest.raises(InputError, match=said):
            estimate.parts(settings)


def test_a_run_says_it_at_the_start_and_counts_down(monkeypatch, tmp_path, capsys):
    settings = config.load("quick").model_copy(update={"run": str(tmp_path)})
    monkeypatch.setattr(status, "KEPT", tmp_path)
    estimate.write_json(status.kept_file(settings), units(settings, 60.0))
    now = [time.time()]
    told = estimate.Countdown(settings, ["--cores", "1"], now[0], lambda: now[0])
    whole = [end(plan) for plan in told.one.plans()]
    minutes = [f"{seconds / 60:.0f}" for seconds in whole]
    assert told.left() == (f"the run: about {' to '.join(minutes)} min left", False)
    (tmp_path / "logs").mkdir()
    begun = tmp_path / "logs" / "01_data.txt"  # before the countdown has looked
    begun.touch()
    os.utime(begun, (now[0], now[0]))
    now[0] += 60
    one = whole[0] / 60 - 1
    assert told.left()[0].startswith(f"the run: about {one:.0f} ")
    (tmp_path / "logs" / "01_data.tsv").touch()
    text, news = told.left()
    data = told.one.ends[0][[each.name for each in told.one.ends[0]].index("data")]
    one = (whole[0] - data.seconds(told.one.found["seconds"])) / 60
    assert news and text.startswith(f"the run: about {one:.0f} ")
    os.utime(begun, (now[0], now[0]))  # it begins anew
    assert told.left() == (f"the run: about {' to '.join(minutes)} min left", False)
    monkeypatch.setattr(status, "EVERY", 60)
    with status.reported(settings, partial(cli.countdown, [], time.time())):
        time.sleep(2)
    assert "Estimate of quick" in capsys.readouterr().err


@pytest.mark.study
def test_counts_are_those_of_a_finished_run(finished):
    compare_with_records(RUN)


def compare_with_records(run):
    """Assert that what is counted for a finished run is what its records say it did."""
    known = read_json(run / "provenance.json")["settings"]
    settings = config.load(known["preset"], {key: known[key] for key in config.KEYS})
    split = Counter(pd.read_csv(run / "data" / "index.csv")["split"].dropna())
    sizes = {part: split[part] for part in estimate.split.PARTS}
    records = [read_json(path) for path in (run / "checkpoints" / "cells").glob("*.json")]
    counted = estimate.grid_work(settings, sizes, 1.0)
    assert {record["cell"] for record in records} == {
        name for name, some in counted.items() if some
    }
    batch = settings.segmentation.batch
    for record in records:  # all of them trained as long as without a plateau
        steps = record["steps"] * max(2, min(batch, record["pairs"])) / batch
        network = record["cell"].partition("-")[0]
        assert counted[record["cell"]][network] == pytest.approx(steps)
    work = estimate.diffusion_work(settings, sizes) + estimate.gan_work(settings, sizes)
    validations = pd.read_csv(run / "checkpoints" / "controlnet" / "validations.csv")
    made = len(validations) * settings.validation.validation_samples
    for pattern in ("synthetic/controlnet*", "generated/controlnet*", "*/base"):
        made += sum(len(list(one.glob("images/*.png"))) for one in run.glob(pattern))
    asked = 8 * settings.sampling.prompt_samples + 18  # three diagnoses, five attributes
    assert work["decoded"] == made + asked
    assert trained_steps(run, "controlnet") == work["controlnet"]
    for name in ("pix2pixhd", "pix2pixhd_plus"):
        stages = {"": ""} if not settings.pix2pixhd.enhancers else {"": "/coarse", "_fine": ""}
        for ending, folder in stages.items():
            assert trained_steps(run, name + folder) == work[name + ending]
        sets = [run / kind / name / "images" for kind in ("synthetic", "generated")]
        assert sum(len(list(one.glob("*.png"))) for one in sets) == work[f"{name} image"]


def trained_steps(run, name) -> int:
    """The last step of a training's checkpoint."""
    path = run / "checkpoints" / name / "checkpoint.pt"
    return torch.load(path, weights_only=True)["step"]


def time_of(run) -> float:
    """Seconds from the start of a finished run's first stage to its report."""
    started = [read_json(path)["started"] for path in (run / "logs").glob("*.json")]
    began = min(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z") for text in started)
    return (run / "report" / "index.html").stat().st_mtime - began.timestamp()


@pytest.mark.slow
def test_the_estimate_of_quick_is_within_30_percent_of_what_it_takes(capsys):
    """To be run on a quiet machine: `./run_all.sh --test -m slow tests/test_estimate.py`."""
    name = "test-estimate-quick"
    settings = config.load("quick", name=name)
    machine = Machine.here()
    one = estimate.Estimate(settings, machine, estimate.units(settings, machine))
    low, high = (end(plan) for plan in one.plans())
    assert subprocess.run(["./run_all.sh", "--name", name], cwd=ROOT).returncode == 0
    took = time_of(ROOT / "runs" / name)
    with capsys.disabled():
        print(f"\nestimated {low:.0f} to {high:.0f} s, taken {took:.0f} s")
    assert 0.7 * low < took < 1.3 * high and np.isfinite(took)

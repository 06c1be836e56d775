"""The notebooks in a real JupyterLab in a real browser: Debian's Chromium, driven by playwright.

Everything happens in a copy of the repository without runs, so that nothing here is written to.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import requests
from whole_study import RUN

from lesionlib.engine import code
from lesionlib.engine.files import ROOT, read_json, write_json
from lesionlib.engine.stages import STAGES
from lesionlib.workflow import processes

CHROMIUM = shutil.which("chromium")
if not CHROMIUM:
    pytest.skip("Debian's chromium is not installed", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

TOKEN = "playground"
PATIENCE = 300_000  # milliseconds, for a machine that has other things to do
OWN = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
PIXELS = """shown => {
    const canvas = document.createElement("canvas");
    canvas.width = shown.naturalWidth ?? shown.width;
    canvas.height = shown.naturalHeight ?? shown.height;
    canvas.getContext("2d").drawImage(shown, 0, 0);
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.height, canvas.width, Array.from(data)];
}"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the code and the small base, without any run."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("lesionlib", "models", "config", "notebooks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def lab(clone, tmp_path_factory):
    """The address of a JupyterLab in the clone; it and its kernels are ended in every case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {name: tmp_path_factory.mktemp(name) for name in OWN}
    settings = {
        "ServerApp": {"ip": "127.0.0.1", "port": port, "allow_root": True, "root_dir": str(clone)},
        "IdentityProvider": {"token": TOKEN},
    }
    place = places["JUPYTER_CONFIG_DIR"]
    write_json(place / "jupyter_lab_config.json", settings)
    news = "lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    write_json(place / news, {"fetchNews": "false", "checkForUpdates": False})
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {name: str(place) for name, place in places.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser"],
        cwd=clone,
        env=environment | {"PYTHONPATH": str(clone)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield _answering(f"http://127.0.0.1:{port}", process)
    finally:
        processes.end(process)


def _answering(address: str, process) -> str:
    """The address, as soon as the server answers there."""
    last = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < last and process.poll() is None:
        try:
            requests.get(f"{address}/api", timeout=5).raise_for_status()
            return address
        except requests.RequestException:
            time.sleep(0.3)
    pytest.fail("JupyterLab did not start")


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        with driver.chromium.launch(**options) as browser:
            yield browser


@contextmanager
def opened(chromium, lab, name: str):
    """A page with a notebook, whose kernel is ended afterwards; fails on errors in its console."""
    said, context = [], chromium.new_context(viewport={"width": 1280, "height": 1800})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda one: said.append(one.url) if not _here(one.url, lab) else None)
    try:
        page.goto(f"{lab}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token={TOKEN}")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        page.get_by_text("| Idle", exact=False).wait_for()  # the kernel has answered
        yield page
        assert not said
    finally:
        context.close()
        token = {"token": TOKEN}
        for session in requests.get(f"{lab}/api/sessions", token).json():
            requests.delete(f"{lab}/api/sessions/{session['id']}", params=token)


def _here(url: str, lab: str) -> bool:
    return url.startswith((lab, lab.replace("http", "ws"), "data:", "blob:"))


def give(notebook, **parameters):
    """Write parameters into a notebook, as a user would."""
    found = read_json(notebook)
    cell = next(cell for cell in found["cells"] if code.lists_parameters(cell))
    cell["source"] += [f"\n{name} = {value!r}" for name, value in parameters.items()]
    write_json(notebook, found)


def pixels(picture) -> np.ndarray:
    """What a picture or a canvas on the page really shows: (H, W, 3)."""
    height, width, values = picture.evaluate(PIXELS)
    return np.reshape(values, (height, width, 4))[..., :3]


def circle(page, canvas, column: float, row: float, radius: float):
    """Paint a circle's outline with the mouse; the place in shares of the canvas."""
    box = canvas.bounding_box()
    turn = np.linspace(0, 2 * np.pi, 24)
    x = box["x"] + box["width"] * (column + radius * np.cos(turn))
    y = box["y"] + box["height"] * (row + radius * np.sin(turn))
    page.mouse.move(x[0], y[0])
    page.mouse.down()
    for place in zip(x, y, strict=True):
        page.mouse.move(*place)
    page.mouse.up()


def paint_lesion(page) -> list[np.ndarray]:
    """Run the playground, paint a mask in the lower right, press the button: all its pictures."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    canvas = page.locator(".lesion-canvas canvas")
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    pictures = page.locator("img.widget-image")
    assert all(pixels(one).std() == 0 for one in pictures.all())  # grey placeholders
    circle(page, canvas, 0.7, 0.7, 0.2)
    page.get_by_role("button", name="Fill", exact=True).click()
    page.get_by_role("button", name="Paint lesions").click()
    page.get_by_text("Painted in").wait_for()
    return [pixels(one) for one in pictures.all()]


def is_photographic(picture: np.ndarray) -> bool:
    return picture.std() > 5 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 500


def check_tools(page):
    """The tools of the canvas, and a stroke that leaves it and comes back."""
    canvas = page.locator(".lesion-canvas canvas")
    painted = pixels(canvas)
    page.get_by_role("button", name="Clear", exact=True).click()
    assert not pixels(canvas).any()
    page.get_by_role("button", name="Undo", exact=True).click()
    assert (pixels(canvas) == painted).all()
    page.get_by_role("button", name="Erase", exact=True).click()
    circle(page, canvas, 0.7, 0.7, 0.1)
    assert pixels(canvas).sum() < painted.sum()
    page.get_by_role("button", name="Paint", exact=True).click()
    circle(page, canvas, 0.0, 0.3, 0.2)
    column = pixels(canvas)[:, 0, 0]
    assert (
        column[round(0.1 * 64)] == column[round(0.5 * 64)] == 255 and column[round(0.3 * 64)] == 0
    )


def test_a_lesion_is_painted_without_any_run(chromium, lab, clone):
    with opened(chromium, lab, "playground") as page:
        pictures = paint_lesion(page)
        assert len(pictures) == 3 and all(map(is_photographic, pictures))
        assert page.get_by_text("in the lower right").is_visible()
        page.get_by_role("button", name="Keep this pair").click()
        page.get_by_text("Kept:").wait_for()
        check_tools(page)
    kept = clone / "runs" / "kept" / "small"
    mask = cv2.imread(str(kept / "masks" / "000000.png"), cv2.IMREAD_GRAYSCALE)
    rows, columns = np.nonzero(mask)
    assert np.allclose((rows.mean(), columns.mean()), 0.7 * 64, atol=1.5) and len(rows) > 500
    image = cv2.imread(str(kept / "images" / "000000.png"), cv2.IMREAD_GRAYSCALE)
    assert image[mask > 0].mean() < image[mask == 0].mean() - 20  # the lesion is where it was asked


@pytest.mark.study
def test_a_lesion_is_painted_by_every_generator_of_a_run(chromium, lab, clone, finished):
    give(clone / "notebooks" / "playground.ipynb", run=str(RUN))
    with opened(chromium, lab, "playground") as page:
        pictures = paint_lesion(page)
        assert len(pictures) == 5 and all(one.std() > 5 for one in pictures)
        assert page.get_by_text("fidelity", exact=False).count() >= 3
        state = page.locator("img.widget-image").first
        page.locator(".noUi-handle").last.press("ArrowLeft")
        before = pictures[0]
        for _ in range(PATIENCE // 500):
            if (pixels(state) != before).any():
                break
            page.wait_for_timeout(500)
        assert (pixels(state) != before).any()


def run_cell(page, number: int):
    """Run a cell of code by hand; returns it when it is done."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
    cell.locator(".jp-InputPrompt").click()
    page.keyboard.press("Shift+Enter")
    done = re.compile(r"\[\d+\]")
    cell.locator(".jp-InputPrompt", has_text=done).wait_for()
    return cell


@pytest.mark.study
@pytest.mark.parametrize("name", STAGES)
def test_a_notebook_loads_its_run(chromium, lab, clone, finished, name):
    give(clone / "notebooks" / f"{name}.ipynb", run=str(RUN), preset="smoke")
    with opened(chromium, lab, name) as page:
        run_cell(page, 0)  # the parameters
        said = run_cell(page, 1).locator(".jp-OutputArea").inner_text()
        assert str(RUN) in said and "Traceback" not in said

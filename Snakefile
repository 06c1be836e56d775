"""The order of the study: each rule runs one notebook with papermill (see docs/running.md)."""

import json
from pathlib import Path

from lesionlib.data import catalogue
from lesionlib.engine import settings as presets
from lesionlib.engine.code import code_digest, notebook_digest
from lesionlib.engine.files import resolve
from lesionlib.engine.provenance import files_state
from lesionlib.engine.stages import STAGES
from lesionlib.segmentation.grid import Cell, control_sets, jobs, plateau_cell, planned_cells, repeats

settings = presets.load(
    config.get("preset", "quick"),
    {key: value for key, value in config.items() if key not in ("preset", "name", "folder")},
    config.get("name", ""),
)
data, design, jobs_of_run = settings.data, settings.design, settings.jobs
RUN = config.get("folder", settings.run)  # the run's folder, or a link to it with a plain name
CELLS = planned_cells(settings)
CONTROLS = control_sets(design.arms, design.mask_mode)
OWN = {  # names of each generator's sets, one for each generator seed
    method: list(repeats(method, settings.training.generator_seeds).values())
    for method in design.methods
}
GANS = [name for method in OWN if method != "controlnet" for name in OWN[method]] or ["pix2pixhd"]
METHODS = [*sum(OWN.values(), []), *design.external_generators]  # an external generator is one more
PAINTED = [  # those with images for the masks of S-test
    *sum(OWN.values(), []),
    *(n for n, folder in design.external_generators.items() if (resolve(folder) / "generated").is_dir()),
]
GPU = {"gpu": jobs_of_run.job_gpus} if jobs_of_run.job_gpus else {}  # resources of jobs that train or sample
EVERY_SET = expand(RUN + "/synthetic/{method}/manifest.csv", method=METHODS)
EARLY, LATE = list(STAGES)[:5], list(STAGES)[5:]  # pages beside the grid, and with the report
if not set(design.methods) - {"controlnet"}:
    EARLY.remove("04_pix2pixhd")
TEMPLATES = sorted(map(str, Path("lesionlib/report/templates").glob("*")))


# Each rule starts a kernel with a bounded number of threads and without progress bars. Warnings and
# a failed cell go to the terminal, everything else to the log.
PAPERMILL = (
    "export OMP_NUM_THREADS={threads} LESIONLIB_QUIET=1 HF_HUB_DISABLE_TELEMETRY=1 "
    "PYDEVD_DISABLE_FILE_VALIDATION=1; "
    "exec python -m lesionlib.workflow.stage {input.notebook} {log.notebook} --text {log.text} "
    "--facts {log.facts} --values {params.values:q} --inputs {input} --outputs {output}"
)

# Of other jobs: warnings go to the terminal, and the last line of one that failed to `cli`.
AFTERWARDS = (
    "&& failed= || failed=yes; grep -E '^(WARNING|NOTE)' {log} >&2 || true; "
    'if [ "$failed" ]; then mkdir -p {RUN}/logs/failed; tail -n 1 {log} > '
    "{RUN}/logs/failed/{rule}.txt; exit 1; fi"
)


def notebook(stage):
    """A notebook as input: its markdown may change without rerunning anything."""
    return ancient(f"notebooks/{stage}.ipynb")


def code(stage):
    """Digest of the stage's code cells and of all that they reach: a change reruns it."""
    return notebook_digest(f"notebooks/{stage}.ipynb")


def literally(value):
    """A parameter whose braces are not wildcards: Snakemake leaves alone what a function returns."""
    return lambda wildcards: value


def values(stage, **more):
    """The notebook's parameters: run, preset, and what is overridden in the groups it reads."""
    read = {key for key, (group, _) in presets.KEYS.items() if group in STAGES[stage]}
    own = {key: value for key, value in settings.overrides().items() if key in read}
    every = {"run": settings.run, "preset": settings.preset, "overrides": own} | more
    return literally(json.dumps(every))


def groups(stage):
    """The settings that a stage reads: when one of them changes, it is run again."""
    read = {name: getattr(settings, name).model_dump(mode="json") for name in STAGES[stage]}
    return literally(json.dumps(read))


def logs(stage):
    """The executed notebook is a log: it is kept after a failure, with the traceback."""
    return {
        "notebook": f"{RUN}/notebooks/{stage}.ipynb",
        "text": f"{RUN}/logs/{stage}.txt",
        "facts": f"{RUN}/logs/{stage}.json",
    }


def spent(stage):
    """Time and memory of a stage, measured by Snakemake."""
    return f"{RUN}/logs/{stage}.tsv"


localrules:
    all,


rule all:
    input:
        f"{RUN}/report/index.html",
        f"{RUN}/provenance.json",
        [f"{RUN}/cells/{cell.id}.csv" for cell in CELLS],
        EVERY_SET,
        lambda wildcards: [  # a lost table is made anew, though what follows from it is there
            *rules.data.output,
            *rules.masks.output,
            *rules.image_quality.output,
            *rules.segmentation.output,
        ],


rule data:
    "Notebook 01: images, masks, tables, prompts, split."
    input:
        notebook=notebook("01_data"),
    output:
        f"{RUN}/data/images.npy",
        f"{RUN}/data/masks.npy",
        f"{RUN}/data/index.csv",
        f"{RUN}/tables/curation.csv",
        f"{RUN}/tables/quarantine.csv",
        f"{RUN}/tables/join.csv",
        f"{RUN}/tables/disagreements.csv",
        f"{RUN}/tables/near_duplicates.csv",
        f"{RUN}/tables/split_audit.csv",
        f"{RUN}/data/originals.npz",
        expand(RUN + "/data/external/{name}/index.csv", name=data.external_tests),
    log:
        **logs("01_data"),
    benchmark:
        spent("01_data")
    params:
        code=code("01_data"),
        values=values("01_data"),
        settings=groups("01_data"),
        files=catalogue.files_read("01_data", settings),
    shell:
        PAPERMILL


rule masks:
    "Notebook 02: masks and prompts of the synthetic images; the reference segmenter."
    input:
        rules.data.output,
        notebook=notebook("02_masks"),
    output:
        f"{RUN}/data/conditions.npy",
        f"{RUN}/data/conditions.csv",
        f"{RUN}/tables/mask_distances.csv",
        f"{RUN}/tables/reference_segmenter.csv",
        f"{RUN}/models/reference_segmenter/model.safetensors",
    log:
        **logs("02_masks"),
    benchmark:
        spent("02_masks")
    params:
        code=code("02_masks"),
        values=values("02_masks"),
        settings=groups("02_masks"),
        files=catalogue.files_read("02_masks", settings),
    threads: 1
    priority: 1000  # the generators wait for it
    shell:
        PAPERMILL


rule controlnet:
    "Notebook 03: base, ControlNet, synthetic set, S-test images (with and without control)."
    input:
        rules.data.output,
        rules.masks.output,
        notebook=notebook("03_controlnet"),
    output:
        f"{RUN}/models/base/model_index.json" if settings.base.is_trained else [],
        expand(
            RUN + "/{file}",
            file=[
                name.format(m)
                for m in OWN.get("controlnet", ["controlnet"])
                for name in (
                    "models/{}/diffusion_pytorch_model.safetensors",
                    "synthetic/{}/manifest.csv",
                    "generated/{}/manifest.csv",
                )
            ],
        ),
        f"{RUN}/generated/base/manifest.csv",
        f"{RUN}/generated/controlnet_diversity/manifest.csv",
        expand(RUN + "/synthetic/{name}/manifest.csv", name=CONTROLS),
        f"{RUN}/tables/prompt_recognition.csv",
        f"{RUN}/models/attribute_classifier/model.safetensors",
    log:
        **logs("03_controlnet"),
    benchmark:
        spent("03_controlnet")
    params:
        code=code("03_controlnet"),
        values=values("03_controlnet"),
        settings=groups("03_controlnet"),
        ablation=files_state("config/ablation"),
        base=files_state(settings.base.path, settings.controlnet.model),
    threads: jobs_of_run.threads
    resources:
        **GPU,
    priority: 1000  # long, and others depend on it
    shell:
        PAPERMILL


rule pix2pixhd:
    "Notebook 04: the baseline and Pix2PixHD+, their synthetic sets and S-test images."
    input:
        rules.data.output,
        rules.masks.output,
        notebook=notebook("04_pix2pixhd"),
    output:
        expand(RUN + "/{kind}/{name}/manifest.csv", kind=["synthetic", "generated"], name=GANS),
    log:
        **logs("04_pix2pixhd"),
    benchmark:
        spent("04_pix2pixhd")
    params:
        code=code("04_pix2pixhd"),
        values=values("04_pix2pixhd"),
        settings=groups("04_pix2pixhd"),
        ablation=files_state("config/ablation"),
        weights=files_state(settings.pix2pixhd.vgg),
    threads: jobs_of_run.threads
    resources:
        **GPU,
    priority: 1000  # long, and others depend on it
    shell:
        PAPERMILL


# Pairs of external generators (--synthetic NAME=DIR): further arms beside the paper's two.
for name, folder in design.external_generators.items():

    rule:
        name:
            f"external_{name}"
        input:
            rules.data.output,
            rules.masks.output,
        output:
            f"{RUN}/synthetic/{name}/manifest.csv",
            [f"{RUN}/generated/{name}/manifest.csv"] if name in PAINTED else [],
        params:
            code=code_digest("lesionlib.generators.external_generators:read"),
            files=catalogue.pairs_state(folder),
            values=literally([settings.run, name, folder, data.fit]),
        log:
            f"{RUN}/logs/external_{name}.txt",
        shell:
            "LESIONLIB_QUIET=1 python -m lesionlib.generators.external_generators {params.values:q} > {log} 2>&1 "
            + AFTERWARDS


rule image_quality:
    "Notebook 05: Table 1, sets of images, mask fidelity, copies, diversity."
    input:
        rules.data.output,
        rules.masks.output,
        EVERY_SET,
        expand(RUN + "/generated/{method}/manifest.csv", method=[*PAINTED, "base"]),
        f"{RUN}/generated/controlnet_diversity/manifest.csv",
        f"{RUN}/models/attribute_classifier/model.safetensors",
        notebook=notebook("05_image_quality"),
    output:
        f"{RUN}/tables/image_quality.csv",
        f"{RUN}/tables/table1.csv",
        f"{RUN}/tables/table1_comparison.csv",
        f"{RUN}/tables/mask_fidelity.csv",
        f"{RUN}/tables/fidelity.csv",
        f"{RUN}/tables/distribution.csv",
        f"{RUN}/tables/memorisation.csv",
        f"{RUN}/tables/diversity.csv",
        f"{RUN}/tables/image_claims.csv",
    log:
        **logs("05_image_quality"),
    benchmark:
        spent("05_image_quality")
    params:
        code=code("05_image_quality"),
        values=values("05_image_quality"),
        settings=groups("05_image_quality"),
        weights=files_state(settings.evaluation.features),
    threads: 1
    shell:
        PAPERMILL


def plateaus(cells):
    """Results of the trainings from which the length of these cells follows, on S-train alone."""
    networks = dict.fromkeys(Cell.parse(name).network for name in cells)
    needed = [plateau_cell(network, settings.segmentation) for network in networks]
    return [f"{RUN}/cells/{c.id}.csv" for c in needed if c in CELLS and c.id not in cells]


# Notebook 06, once for each job of the grid. A rerun loads the cells that are current. Jobs that
# fill the table first have the highest priority.
for number, (needed, cells) in enumerate(jobs(CELLS, jobs_of_run.cells_per_job), 1):

    rule:
        name:
            f"segmentation_{number:02d}"
        input:
            rules.data.output,
            expand(RUN + "/synthetic/{name}/manifest.csv", name=needed),
            plateaus(cells),
            notebook=notebook("06_segmentation"),
        output:
            [f"{RUN}/cells/{cell}.csv" for cell in cells],
        log:
            **logs(f"06_segmentation-{number:02d}"),
        benchmark:
            spent(f"06_segmentation-{number:02d}")
        params:
            code=code("06_segmentation"),
            values=values("06_segmentation", cells=" ".join(cells)),
            settings=groups("06_segmentation"),
        threads: jobs_of_run.threads
        resources:
            **GPU,
        priority: max(1, 900 - number)
        shell:
            PAPERMILL


rule segmentation:
    "Notebook 06 over the whole grid: Table 2."
    input:
        rules.data.output,
        [f"{RUN}/cells/{cell.id}.csv" for cell in CELLS],
        notebook=notebook("06_segmentation"),
    output:
        f"{RUN}/tables/segmentation.csv",
        f"{RUN}/tables/table2.csv",
        f"{RUN}/tables/table2_comparison.csv",
        f"{RUN}/tables/claims.csv",
        f"{RUN}/tables/segmentation_images.csv",
        f"{RUN}/tables/arms.csv",
        f"{RUN}/tables/controls.csv",
        f"{RUN}/tables/curves.csv",
        f"{RUN}/tables/learnt.csv",
        f"{RUN}/tables/headroom.csv",
        f"{RUN}/tables/worth.csv",
        f"{RUN}/tables/subgroups.csv",
        f"{RUN}/tables/external.csv",
    log:
        **logs("06_segmentation"),
    benchmark:
        spent("06_segmentation")
    params:
        code=code("06_segmentation"),
        values=values("06_segmentation"),
        settings=groups("06_segmentation"),
    threads: 1
    shell:
        PAPERMILL


rule figures:
    "Notebook 07: figures 1 to 4, both tables next to the paper's."
    input:
        rules.image_quality.output,
        rules.segmentation.output,
        rules.masks.output,
        EVERY_SET,
        notebook=notebook("07_figures"),
    output:
        expand(RUN + "/figures/figure{n}.png", n=[1, 2, 3, 4]),
    log:
        **logs("07_figures"),
    benchmark:
        spent("07_figures")
    params:
        code=code("07_figures"),
        values=values("07_figures"),
        settings=groups("07_figures"),
    shell:
        PAPERMILL


rule pages:
    "The executed notebooks 01 to 05 as pages, while the grid goes on."
    input:
        rules.image_quality.output,
        TEMPLATES,
    output:
        [f"{RUN}/report/{stage}.html" for stage in EARLY],
    params:
        code=code_digest("lesionlib.report.pages:write_pages"),
        values=literally([settings.run, *EARLY]),
    log:
        f"{RUN}/logs/pages.txt",
    shell:
        "python -m lesionlib.report.pages {params.values:q} > {log} 2>&1 " + AFTERWARDS


rule report:
    "The other notebooks as pages, the report, and provenance."
    input:
        rules.figures.output,
        rules.pages.output,
        TEMPLATES,
    output:
        f"{RUN}/report/index.html",
        f"{RUN}/provenance.json",
    params:
        code=code_digest("lesionlib.report.pages:main"),
        values=literally([settings.run, *LATE, "--settings", json.dumps(settings.flat())]),
    log:
        f"{RUN}/logs/report.txt",
    shell:
        "python -m lesionlib.report.pages {params.values:q} > {log} 2>&1 " + AFTERWARDS

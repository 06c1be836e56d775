"""The order of the study: each rule runs one notebook with papermill (see README)."""

import json

from lesionlib.engine import settings
from lesionlib.data import catalogue
from lesionlib.engine.files import resolve
from lesionlib.segmentation.grid import control_sets, jobs, planned_cells
from lesionlib.report.notebooks import STAGES, stage_parameters
from lesionlib.engine.provenance import code_digest, notebook_digest

cfg = settings.load(
    config.get("preset", "quick"),
    {key: value for key, value in config.items() if key not in ("preset", "name")},
    config.get("name", ""),
)
RUN = cfg["run"]
CELLS = planned_cells(cfg)
CONTROLS = control_sets(cfg["arms"], cfg["mask_mode"])
METHODS = [*cfg["methods"], *cfg["others"]]  # somebody's generator is one more
PAINTED = [  # those with images for the masks of S-test
    *cfg["methods"],
    *(name for name, where in cfg["others"].items() if (resolve(where) / "generated").is_dir()),
]
GPU = {"gpu": cfg["job_gpus"]} if cfg["job_gpus"] else {}  # what a training asks a cluster for
SOURCE = {key: cfg[key] for key in ("images", "masks", "table", "isic_root")}
EVERY_SET = expand(RUN + "/synthetic/{method}/manifest.csv", method=METHODS)


def state(where):
    """Digest of the files of somebody's pairs: it changes when they do."""
    folders = catalogue.pair_folders(where)
    return catalogue.source_state("folders", *folders, table=str(resolve(where)))


# A kernel per rule, its threads bounded, its progress bars off; what the executed notebook has
# to say (warnings, the failed cell) goes to the terminal, all else to the log.
PAPERMILL = (
    "export OMP_NUM_THREADS={threads} LESIONLIB_QUIET=1 HF_HUB_DISABLE_TELEMETRY=1 "
    "PYDEVD_DISABLE_FILE_VALIDATION=1; "
    "exec python -m lesionlib.workflow.stage {input.notebook} {log.notebook} --text {log.text} "
    "--facts {log.facts} --values {params.values:q} --inputs {input} --outputs {output}"
)


def notebook(stage):
    """A notebook as input: its markdown may change without rerunning anything."""
    return ancient(f"notebooks/{stage}.ipynb")


def code(stage):
    """Digest of the stage's code cells and of the modules they use: a change reruns it."""
    return notebook_digest(f"notebooks/{stage}.ipynb")


def values(stage, **more):
    """The stage's parameters, as YAML for papermill."""
    return json.dumps(stage_parameters(stage, cfg) | more)


def logs(stage):
    """The executed notebook is a log: it survives a failure, with the traceback in it."""
    return {
        "notebook": f"{RUN}/notebooks/{stage}.ipynb",
        "text": f"{RUN}/logs/{stage}.txt",
        "facts": f"{RUN}/logs/{stage}.json",
    }


localrules:
    all,


rule all:
    input:
        f"{RUN}/report/index.html",
        f"{RUN}/provenance.json",
        [f"{RUN}/cells/{cell.id}.csv" for cell in CELLS],
        EVERY_SET,


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
        expand(RUN + "/data/external/{name}/index.csv", name=cfg["external"]),
    log:
        **logs("01_data"),
    params:
        code=code("01_data"),
        values=values("01_data"),
        source=catalogue.source_state(cfg["source"], **SOURCE),
        external={name: state(where) for name, where in cfg["external"].items()},
    shell:
        PAPERMILL


rule masks:
    "Notebook 02: masks and prompts of the synthetic images; the judge of masks."
    input:
        rules.data.output,
        notebook=notebook("02_masks"),
    output:
        f"{RUN}/data/conditions.npy",
        f"{RUN}/data/conditions.csv",
        f"{RUN}/tables/mask_distances.csv",
        f"{RUN}/models/reference_segmenter/model.safetensors",
    log:
        **logs("02_masks"),
    params:
        code=code("02_masks"),
        values=values("02_masks"),
    threads: 1
    shell:
        PAPERMILL


rule controlnet:
    "Notebook 03: base, ControlNet, synthetic set, S-test images (with and without control)."
    input:
        rules.data.output,
        rules.masks.output,
        notebook=notebook("03_controlnet"),
    output:
        [] if cfg["base_model"] else f"{RUN}/models/base/model_index.json",
        f"{RUN}/models/controlnet/diffusion_pytorch_model.safetensors",
        f"{RUN}/synthetic/controlnet/manifest.csv",
        f"{RUN}/generated/controlnet/manifest.csv",
        f"{RUN}/generated/base/manifest.csv",
        f"{RUN}/generated/controlnet_diversity/manifest.csv",
        expand(RUN + "/synthetic/{name}/manifest.csv", name=CONTROLS),
        f"{RUN}/tables/prompt_recognition.csv",
        f"{RUN}/models/attribute_classifier/model.safetensors",
    log:
        **logs("03_controlnet"),
    params:
        code=code("03_controlnet"),
        values=values("03_controlnet"),
    threads: cfg["threads"]
    resources:
        **GPU,
    priority: 1  # the longest, and others wait for it
    shell:
        PAPERMILL


rule pix2pixhd:
    "Notebook 04: the baseline, its synthetic set and S-test images."
    input:
        rules.data.output,
        rules.masks.output,
        notebook=notebook("04_pix2pixhd"),
    output:
        f"{RUN}/synthetic/pix2pixhd/manifest.csv",
        f"{RUN}/generated/pix2pixhd/manifest.csv",
    log:
        **logs("04_pix2pixhd"),
    params:
        code=code("04_pix2pixhd"),
        values=values("04_pix2pixhd"),
    threads: cfg["threads"]
    resources:
        **GPU,
    priority: 1  # the longest, and others wait for it
    shell:
        PAPERMILL


# Pairs of other generators (--synthetic NAME=DIR): one more arm beside the two of the paper.
for name, where in cfg["others"].items():

    rule:
        name:
            f"elsewhere_{name}"
        input:
            rules.data.output,
            rules.masks.output,
        output:
            f"{RUN}/synthetic/{name}/manifest.csv",
            [f"{RUN}/generated/{name}/manifest.csv"] if name in PAINTED else [],
        params:
            code=code_digest("elsewhere"),
            files=state(where),
            values=[RUN, name, where, cfg["fit"]],
        log:
            f"{RUN}/logs/elsewhere_{name}.txt",
        shell:
            "LESIONLIB_QUIET=1 python -m lesionlib.generators.external_generators {params.values:q} > {log} 2>&1 "
            "|| {{ tail -n 5 {log} >&2; exit 1; }}"


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
        f"{RUN}/tables/distribution.csv",
        f"{RUN}/tables/memorisation.csv",
        f"{RUN}/tables/diversity.csv",
        f"{RUN}/tables/image_claims.csv",
    log:
        **logs("05_image_quality"),
    params:
        code=code("05_image_quality"),
        values=values("05_image_quality"),
    threads: 1
    shell:
        PAPERMILL


# Notebook 06, once for each share of the grid. A rerun loads the cells that are up to date.
for number, (needed, cells) in enumerate(jobs(CELLS, cfg["cells_per_job"]), 1):

    rule:
        name:
            f"segmentation_{number:02d}"
        input:
            rules.data.output,
            expand(RUN + "/synthetic/{name}/manifest.csv", name=needed),
            notebook=notebook("06_segmentation"),
        output:
            [f"{RUN}/cells/{cell}.csv" for cell in cells],
        log:
            **logs(f"06_segmentation-{number:02d}"),
        params:
            code=code("06_segmentation"),
            values=values("06_segmentation", cells=" ".join(cells)),
        threads: cfg["threads"]
        resources:
            **GPU,
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
        f"{RUN}/tables/low_data.csv",
        f"{RUN}/tables/subgroups.csv",
        f"{RUN}/tables/external.csv",
    log:
        **logs("06_segmentation"),
    params:
        code=code("06_segmentation"),
        values=values("06_segmentation"),
    threads: 1
    shell:
        PAPERMILL


rule figures:
    "Notebook 07: figures 1 to 4, both tables beside the paper's."
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
    params:
        code=code("07_figures"),
        values=values("07_figures"),
    shell:
        PAPERMILL


rule report:
    "The executed notebooks as linked pages, and where everything comes from."
    input:
        rules.figures.output,
    output:
        f"{RUN}/report/index.html",
        f"{RUN}/provenance.json",
    params:
        code=code_digest("report"),
        settings=json.dumps(cfg),
        stages=STAGES,
    log:
        f"{RUN}/logs/report.txt",
    shell:
        "python -m lesionlib.report.pages {RUN} {params.settings:q} > {log} 2>&1 "
        "|| {{ tail -n 5 {log} >&2; exit 1; }}"

"""The study's stages in order, each a notebook, and the groups of settings that it reads.

The order of work itself is the Snakefile's. A stage is run again when one of its groups changes,
and `report.run.Run` gives a notebook no other group.
"""

STAGES = {
    "01_data": ("data",),
    "02_masks": ("data", "design", "masks", "augmentation", "reference"),
    "03_controlnet": ("data", "design", "augmentation", "base", "training", "controlnet",
                      "validation", "sampling", "classifier"),
    "04_pix2pixhd": ("data", "design", "augmentation", "base", "training", "controlnet",
                     "pix2pixhd"),
    "05_image_quality": ("data", "design", "reference", "training", "sampling", "evaluation"),
    "06_segmentation": ("data", "design", "training", "evaluation", "segmentation"),
    "07_figures": ("data", "design"),
}  # fmt: skip

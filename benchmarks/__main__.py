"""./run_all.sh --bench: speed of the study's code against named references, in one run."""

import pandas as pd

from benchmarks import curation, generators, masks, segmentation, slurm


def main():
    """Measure everything and print one table."""
    rows = pd.DataFrame(
        masks.rows() + curation.rows() + generators.rows() + segmentation.rows() + slurm.rows(),
        columns=["name", "ours", "reference", "unit"],
    )
    rows["ratio"] = rows["ours"] / rows["reference"]
    print(rows.to_string(index=False, float_format="{:.1f}".format))


if __name__ == "__main__":
    main()

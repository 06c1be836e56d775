"""The grid of Table 2 and its jobs."""

import pytest

from lesionlib.grid import Cell, grid, jobs


def test_jobs_share_the_grid_evenly_and_keep_their_cells():
    cells = grid(["unet", "dcsaunet"], ["controlnet", "pix2pixhd"], [1, 2, 3], [0, 1, 2])
    shares = jobs(cells, 21)
    assert len(cells) == 42 and [len(share) for share in shares] == [21, 21]
    assert sorted(sum(shares, [])) == sorted(cell.id for cell in cells)
    changed = grid(["unet", "dcsaunet"], ["controlnet", "pix2pixhd"], [1, 2, 3], [0, 1, 9])
    for before, after in zip(shares, jobs(changed, 21), strict=True):
        moved = set(after) - set(before)
        assert moved and all(name.endswith("seed9") for name in moved)


def test_names_round_trip():
    cell = Cell("unet", "real", 0, 2)
    assert cell.id == "unet-real-0-seed2" and Cell.parse(cell.id) == cell
    with pytest.raises(ValueError, match="is no cell"):
        Cell.parse("unet")

"""The grid of Table 2 and its jobs."""

import pytest

from lesionlib.grid import Cell, grid, jobs


def test_jobs_share_the_grid_evenly_and_wait_for_one_generator_only():
    cells = grid(["unet", "dcsaunet"], ["controlnet", "pix2pixhd"], [1, 2, 3], [0, 1, 2])
    shares = jobs(cells, 9)
    assert len(cells) == 42
    assert [(method, len(names)) for method, names in shares] == [
        ("real", 6), ("controlnet", 9), ("controlnet", 9), ("pix2pixhd", 9), ("pix2pixhd", 9)]
    assert sorted(n for _, names in shares for n in names) == sorted(cell.id for cell in cells)
    assert all(Cell.parse(name).method == method for method, names in shares for name in names)


def test_a_changed_seed_moves_no_other_cell_to_another_job():
    grids = [grid(["unet"], ["controlnet"], [1, 2, 3], seeds) for seeds in ([0, 1], [0, 9])]
    for (_, before), (_, after) in zip(*(jobs(cells, 3) for cells in grids), strict=True):
        assert {n for n in before if n not in after} == {n for n in before if "seed1" in n}


def test_names_round_trip():
    cell = Cell("unet", "real", 0, 2)
    assert cell.id == "unet-real-0-seed2" and Cell.parse(cell.id) == cell
    with pytest.raises(ValueError, match="is no cell"):
        Cell.parse("unet")

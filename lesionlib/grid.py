"""The grid of Table 2: which network is trained on which data with which seed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One training: S-train alone (`method` real, `amount` 0) or with synthetic pairs."""

    network: str
    method: str
    amount: int
    seed: int

    @property
    def id(self) -> str:
        """The cell's name, also of its result file."""
        return f"{self.network}-{self.method}-{self.amount}-seed{self.seed}"

    @classmethod
    def parse(cls, name: str) -> "Cell":
        """The cell of a name; raises ValueError if it is none."""
        try:
            network, method, amount, seed = name.rsplit("-", 3)
            return cls(network, method, int(amount), int(seed.removeprefix("seed")))
        except ValueError:
            raise ValueError(
                f"'{name}' is no cell; names look like unet-controlnet-100-seed0"
            ) from None


def grid(networks, methods, amounts, seeds) -> list[Cell]:
    """All cells in a stable order: network, then S alone and method by amount, then seed."""
    arms = [("real", 0), *((method, amount) for method in methods for amount in amounts)]
    return [Cell(network, *arm, seed) for network in networks for arm in arms for seed in seeds]


def jobs(cells: list[Cell], per_job: int) -> list[tuple[str, list[str]]]:
    """Methods and cell names of jobs of at most `per_job` cells that take about as long.

    A job has cells of one method, so that it need not wait for the other generator.
    """
    found = []
    for method in dict.fromkeys(cell.method for cell in cells):
        names = [cell.id for cell in cells if cell.method == method]
        number = -(-len(names) // per_job)
        found += [(method, names[i::number]) for i in range(number)]
    return found

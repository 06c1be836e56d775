"""The error that users see: what is wrong, in which file or setting, and what to do about it."""


class InputError(Exception):
    """An unusable file or setting (`where`), the `problem` with it, and the `remedy`."""

    def __init__(self, where, problem: str, remedy: str):
        self.where, self.problem, self.remedy = str(where), problem, remedy
        super().__init__(f"{where}: {problem}. Remedy: {remedy}")

    def __reduce__(self):  # so that worker processes can raise it in their parent
        return type(self), (self.where, self.problem, self.remedy)


class Interrupted(InputError):
    """A training that was told to stop, and has written its checkpoint: it has not failed."""


def say(lines):
    """Print lines, such as notes and WARNINGS, if there are any."""
    for line in lines:
        print(line, flush=True)


def require(path, notebook: str):
    """Return `path` if it exists; else raise InputError, which names the notebook that makes it."""
    if not path.exists():
        raise InputError(
            path,
            "this result of an earlier stage does not exist",
            f"run notebooks/{notebook}.ipynb first with the same `run`, or all with ./run_all.sh",
        )
    return path

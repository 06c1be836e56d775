"""The one kind of error that users see: what is wrong, in which file, and what to do."""


class InputError(Exception):
    """A file or setting that the study cannot use; says which, why, and the remedy."""

    def __init__(self, where, problem: str, remedy: str):
        self.where, self.problem, self.remedy = str(where), problem, remedy
        super().__init__(f"{where}: {problem}. Remedy: {remedy}")

    def __reduce__(self):  # lets a worker process hand it to its parent
        return type(self), (self.where, self.problem, self.remedy)


def require(path, notebook: str):
    """Return `path` if it exists; else say which notebook makes it."""
    if not path.exists():
        raise InputError(
            path,
            "this result of an earlier stage does not exist",
            f"run notebooks/{notebook}.ipynb first with the same `run`, or all with ./run_all.sh",
        )
    return path

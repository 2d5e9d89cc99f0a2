"""The message for a user's mistake."""

import click


class UserError(click.ClickException):
    """Something in the input is wrong, and the user can put it right.

    Args:
        where: the file, parameter key or row that is wrong.
        found: what was found there.
        expected: what should have been there.
        fix: the next thing to do.
    """

    def __init__(self, where: str, found: str, expected: str, fix: str):
        self.parts = where, found, expected, fix
        super().__init__(f"{where}\n  found:    {found}\n  expected: {expected}\n  to do:    {fix}")

    def __reduce__(self):
        """An error of another process arrives whole."""
        return UserError, self.parts


def warn(message: str) -> None:
    """Print a warning on the console."""
    click.secho(f"  WARNING: {message}", fg="yellow", bold=True)


def no_cuda(torch: str) -> UserError:
    """The error where `model.device` is cuda and PyTorch, of version `torch`, finds no such device."""
    found, expected = f"no CUDA device that PyTorch {torch} can use", "a GPU, its driver and a CUDA build of torch"
    fix = "set model.device to auto or cpu, or install the CUDA build (README, 'On a GPU')"
    return UserError("model.device = cuda", found, expected, fix)

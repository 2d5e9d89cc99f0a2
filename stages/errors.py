"""Errors that are the user's to fix: shown as one message, without a traceback."""

import functools
import sys

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
        super().__init__(f"{where}\n  found:    {found}\n  expected: {expected}\n  to do:    {fix}")


def stage_main(function):
    """Wrap a stage's `main`: a user's mistake ends it with one message, Ctrl-C with one line."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            click.echo(
                "Stopped. What was finished is kept; run the same command again to go on.", err=True
            )
            sys.exit(130)

    return wrapped

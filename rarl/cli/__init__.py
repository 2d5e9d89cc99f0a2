"""The command `rarl`: what people type beside `dvc repro`.

A command's module is imported when the command is called, so that `rarl --help` starts at once and numeric libraries
are pinned (`rarl/pinning.py`) before anything loads them.
"""

from importlib import import_module

import click
from click.shell_completion import CompletionItem


class Commands(click.Group):
    """A group whose commands are known by name and description, and imported when they are called.

    Args:
        modules: name of a command -> (module with its `main`, what it does, in a line).
    """

    def __init__(self, modules: dict[str, tuple[str, str]], **settings):
        super().__init__(**settings)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.modules:
            return None
        command = import_module(self.modules[name][0]).main
        command.name = name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in self.modules.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=what) for name, (_, what) in self.modules.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


main = Commands(
    # In the order of a user's day.
    {
        "download": ("rarl.cli.download", "Fetch a release of images and questions."),
        "profile": ("rarl.cli.switch_profile", "Switch params.yaml to the paper's settings, or back."),
        "memory": ("rarl.cli.memory", "Plan the memory of the trainings."),
        "compare": ("rarl.cli.compare", "Compare experiments: scores, intervals, paired tests."),
        "ask": ("rarl.cli.ask", "Ask a model a question about an image."),
        "merge": ("rarl.cli.merge", "Merge an adapter into whole weights."),
        "rate": ("rarl.cli.rate", "Rate the models' answers in the browser."),
        "study": ("rarl.cli.study", "Studies of the reasoning reward and of a judge's threshold."),
        "bench": ("rarl.cli.bench", "Time a step against stock TRL and transformers."),
        "portable": ("rarl.cli.portable", "Compare bits with emulated processors."),
    },
    name="rarl",
    help="Reasoning-aware reinforcement learning for small medical vision-language models.\n\n"
    "`dvc repro` runs the pipeline; these commands are what it leaves to people.",
)

"""The command `rarl`: what people type in addition to `dvc repro`.

A command's module is imported when the command is called. `rarl --help` therefore starts at once, and
`rarl/processes/pinning.py` can pin numeric libraries before anything loads them.
"""

from importlib import import_module

import click
from click.shell_completion import CompletionItem


class Commands(click.Group):
    """A group that lists its commands, name -> (module, one line of help), without importing them.

    The module has the command as `main`, or under the name after a colon.
    """

    def __init__(self, modules: dict[str, tuple[str, str]], **settings):
        super().__init__(**settings)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in their given order."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in self.modules:
            return None
        module, _, attribute = self.modules[name][0].partition(":")
        command = getattr(import_module(module), attribute or "main")
        command.name = name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write name and help of each command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in self.modules.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin with `incomplete`."""
        found = [CompletionItem(name, help=what) for name, (_, what) in self.modules.items()]
        found = [item for item in found if item.value.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


main = Commands(
    # In the order of a user's day.
    {
        "download": ("rarl.cli.download", "Fetch a release of images and questions."),
        "profile": ("rarl.cli.switch_profile", "Switch params.yaml to the paper's settings, or back."),
        "rival": ("rarl.cli.rival", "Add a model of others to the comparison."),
        "plan": ("rarl.cli.plan", "Estimate time, memory, disk and judges' cost of a run."),
        "memory": ("rarl.cli.memory", "Estimate the memory that training needs."),
        "watch": ("rarl.cli.watch", "Watch a training from a second terminal."),
        "diff": ("rarl.cli.diff", "What moved between two revisions, and is it beyond noise?"),
        "compare": ("rarl.cli.compare", "Compare experiments: scores, intervals, paired tests."),
        "ask": ("rarl.cli.ask", "Ask a model a question about an image."),
        "merge": ("rarl.cli.merge", "Merge an adapter into its base."),
        "serve": ("rarl.cli.serve", "Serve the base and its adapters with vLLM."),
        "publish": ("rarl.cli.publish", "Push a model and its card to the Hugging Face Hub."),
        "rate": ("rarl.cli.rate", "Rate the models' answers in the browser."),
        "annotate": ("rarl.cli.annotate", "Write or approve the reasoning to learn from, in the browser."),
        "study": ("rarl.cli.study", "Studies of the rewards, the judges and the intervals."),
        "rehearse": ("rarl.cli.rehearse", "Run every part once at a base's real size, with random weights."),
        "bench": ("rarl.cli.bench", "Time a step against stock TRL and transformers."),
        "portable": ("rarl.cli.portable", "Compare bits with those of emulated processors."),
    },
    name="rarl",
    help="Reasoning-aware RL for small medical models: commands beside `dvc repro`.",
)

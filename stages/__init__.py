"""DVC's entry points: one module per stage of `dvc.yaml`. The library is the package `rarl`."""

import sys
from importlib.abc import MetaPathFinder

#: Commands that were modules of this package, and their present names.
COMMANDS = {name: name for name in ("ask", "bench", "compare", "download", "merge", "portable", "profile", "rate")}
COMMANDS |= {"training": "memory", "reward_study": "study reward", "threshold_study": "study threshold"}


class _Moved(MetaPathFinder):
    """Names the new place of a module that was in this package; asked only for modules that are not found."""

    def find_spec(self, name, path=None, target=None):
        package, _, module = name.partition(".")
        if package != __name__ or not module:
            return None
        command = COMMANDS.get(module.split(".")[0])
        now = f"`rarl {command}`" if command else "in the package `rarl`, if it still exists"
        raise ModuleNotFoundError(f"{name} is no stage; it is now {now}", name=name)


sys.meta_path.append(_Moved())

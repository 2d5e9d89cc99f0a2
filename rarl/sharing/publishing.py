"""Publish a trained model on the Hugging Face Hub: the folder that is pushed, and the push."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from rarl.errors import UserError
from rarl.params import Params
from rarl.records import read_json, write_json
from rarl.rivals import FILE as RIVAL
from rarl.sharing.model_card import NOT_CLINICAL, base_name
from rarl.sharing.model_folder import find, is_adapter, measured, merge
from rarl.sharing.model_index import eval_results, with_results

#: What an adapter's folder has, and nothing else is copied from it.
ADAPTER_FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors")


def check_repository(repository: str) -> None:
    """Raise a UserError if `repository` is not a valid name on the hub, such as `user/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    where, fix = f"--to {repository}", "name a repository of your account, such as --to me/rarl-qwen2-vl-2b"
    found = "no account before the name" if repository.count("/") != 1 else None
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        found = found or str(error)
    if found:
        raise UserError(where, found, "user/name, of letters, digits, `-`, `_` and `.`, 96 characters at most", fix)


def prepare(name: str, folder: Path, repository: str, params: Params, merged: bool, scored: bool) -> list[str]:
    """Write the folder that is pushed, and return notes for the person who pushes it.

    Args:
        name: a trained model, by its name in `data/models` or its folder.
        folder: an empty folder.
        repository: on the hub; the model's name in the card's metadata.
        params: of the pipeline.
        merged: whether to push whole weights rather than the adapter.
        scored: whether the card has the model's measured scores.

    Raises:
        UserError: the model is not trained, a file is missing, or its scores are missing or stale.
    """
    from huggingface_hub import ModelCard

    source = find(name)
    if (source / RIVAL).is_file():
        fix = "name one that was trained: sft, grpo or rarl"
        raise UserError(f"model {name}", "a rival, which others have trained", "a model that was trained here", fix)
    adapter = is_adapter(source)
    results = eval_results(measured(source), params) if scored else []
    pointer = read_json(source / "base.json")
    local = pointer["sha256"] is not None
    if adapter and not merged:
        for file in ADAPTER_FILES:
            if not (source / file).is_file():
                raise UserError(str(source / file), "no such file", "an adapter with its card", "run `dvc repro`")
            shutil.copyfile(source / file, folder / file)
        write_json(folder / "base.json", pointer | {"source": base_name(pointer)})
    else:
        merge(name, folder, params)
    file = folder / "README.md"
    card = ModelCard(with_results(file.read_text(encoding="utf-8"), repository.partition("/")[2], results))
    if local:  # the hub would link to a repository of that name
        card.data.base_model = None
    card.save(file)
    return list(_notes(base_name(pointer), local and adapter and not merged, card.data))


def _notes(base: str, incomplete: bool, card) -> Iterator[str]:
    """Yield notes; `incomplete` says that the base, which is not on the hub, is needed too."""
    yield NOT_CLINICAL
    if "phantom" in (card.tags or []):
        yield "PHANTOM RESULT: trained and scored on synthetic images, and the card says so."
    unknown = "that of the base, which is not known here: check that it allows this"
    yield f"Base: {base}. Licence: {unknown if card.license == 'other' else card.license}."
    yield "The terms of the training data apply, too."
    if incomplete:
        yield "The base is a folder on this machine, and no one can use the adapter without it; see --merged."


def describe(folder: Path, notes: list[str]) -> str:
    """Return the files with their sizes, the card's metadata and the notes, as text for the terminal."""
    from huggingface_hub import metadata_load
    from huggingface_hub.utils import yaml_dump

    files = [f"{path.stat().st_size:>15,} bytes  {path.name}" for path in sorted(folder.iterdir())]
    data = metadata_load(folder / "README.md")
    (index,) = data.pop("model-index", [{"results": []}])
    scores = [
        f"{result['dataset']['name']}: {metric['value']} {metric['name']}"
        for result in index["results"]
        for metric in result["metrics"]
    ]
    parts = {"Files": files, "Metadata of the card": yaml_dump(data).splitlines(), "Scores": scores or ["none"]}
    parts["Notes"] = notes
    return "\n\n".join("\n".join([f"{name}:", *(f"  {line}" for line in lines)]) for name, lines in parts.items())


def push(folder: Path, repository: str, public: bool) -> str:
    """Push a folder to the hub, to a repository that is created if it does not exist; returns the commit's address.

    The token is that of `hf auth login` or of the variable HF_TOKEN.

    Raises:
        UserError: no login, no network, a refused name, or a public repository without `public`.
    """
    from huggingface_hub import HfApi, errors

    api, where = HfApi(), f"--to {repository}"
    login = "log in with `hf auth login`, with a token that may write"
    try:
        api.whoami()
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.repo_info(repository).private:
            fix = "make it private on its page, or add --public"
            raise UserError(where, "it exists already and is public", "a private repository", fix)
        return api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload model and card"
        ).commit_url
    except errors.LocalTokenNotFoundError:
        raise UserError(where, "no login on this machine", "a token of the hub", login) from None
    except errors.OfflineModeIsEnabled:
        raise UserError(where, "HF_HUB_OFFLINE is set", "access to the hub", "unset it, and run again") from None
    # HTTPError is the root of the client's network errors; it raises the others for refused metadata and uploads.
    except (errors.HTTPError, ConnectionError, RuntimeError, ValueError) as error:
        raise _refused(where, error, login) from None


def _refused(where: str, error: Exception, login: str) -> UserError:
    """Return the message for an error of the hub or the network."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or str(error).partition("\n")[0] or type(error).__name__
    if status == 401:
        return UserError(where, f"the hub does not accept the login: {said}", "a valid token", login)
    if status is not None and status < 500 and status != 429:
        fix = f"name a repository under your own account or organisation, or {login}"
        return UserError(where, f"the hub refuses it: {said}", "a name under which this token may write", fix)
    fix = "check the network and HF_ENDPOINT, and run the same command again"
    return UserError(where, f"the push failed: {said}", "access to the hub", fix)

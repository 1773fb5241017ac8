"""`jrm push`: a trained model to the Hugging Face hub, with a card whose code loads it from there."""

import argparse
from pathlib import Path

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.files import read_json, read_text

# What a model is made of. What else lies in a run's folder is the run's: checkpoints, optimizer, settings, paths.
_SUFFIXES = (".json", ".jinja", ".safetensors", ".txt", ".md")
_OF_THE_RUN = ("jrm_train.json", "trainer_state.json")
CARD = "README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="what jrm train wrote: a model, or LoRA adapters of one")
    parser.add_argument("name", metavar="OWNER/NAME", help="the repository on the hub; made if it is not there")
    parser.add_argument("--private", action="store_true", help="only its owner sees a repository that is made")


def run(options: argparse.Namespace) -> int:
    from huggingface_hub import CommitOperationAdd, HfApi

    from jrm_plugin.evaluation.model_card import renamed

    folder, name = options.folder, options.name
    if name.count("/") != 1:
        raise JRMError(f"the repository must be named owner/name, not {name!r}.")
    files = _files_of_model(folder)
    content = {file.name: str(file) for file in files}
    if CARD in content:
        content[CARD] = renamed(read_text(folder / CARD), name).encode()
    with as_jrm_error(f"{folder} cannot be pushed to {name}"):
        api = HfApi(library_name="jrm-plugin")
        api.create_repo(name, private=options.private, exist_ok=True)
        commit = api.create_commit(
            name,
            [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in content.items()],
            commit_message="A reward model of jrm-plugin",
        )
    print(f"{len(files)} files were pushed: {commit.repo_url}")
    return 0


def _files_of_model(folder: Path) -> list[Path]:
    if not (folder / "jrm_processor.json").is_file():
        raise JRMError(f"{folder} is no folder of a JRM: it has no jrm_processor.json.")
    adapters = folder / "adapter_config.json"
    if adapters.is_file() and Path(base := str(read_json(adapters).get("base_model_name_or_path"))).is_absolute():
        raise JRMError(
            f"{folder} holds adapters of {base}, which only this machine has: train them over a model of the hub."
        )
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _SUFFIXES)
    return [path for path in files if path.name not in _OF_THE_RUN]

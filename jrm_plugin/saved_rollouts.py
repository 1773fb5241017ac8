"""Rollouts kept in a folder for people to look at: their images, and what the model thinks of them."""

import threading
import uuid
from pathlib import Path
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.files import check_writable, write_image
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.runs import append_records


class SavedRollouts:
    """Keeps one of every `save_images` scored rollouts in `save_folder`.

    Every process makes a folder of its own in it, with PNG files and a `metadata.jsonl`: the form of the image folders
    of `datasets`, so that `load_dataset("imagefolder", data_dir=save_folder)` reads them all. A line has `file_name`,
    `source_images_file_names`, `instruction`, `response` (the text that the policy wrote), `mu_<dimension>`,
    `sigma_<dimension>`, and what the adapter knows besides, such as `reward` and `step`. A text answer has a line and
    no file of its own. Threads may share one.

    Args:
        save_images: of so many rollouts the first is kept, in each process.
        save_folder: made if it is not there.

    Raises:
        JRMError: the folder cannot be written.
    """

    def __init__(self, save_images: int, save_folder: str | Path):
        self.folder, self._every, self._seen = Path(save_folder), save_images, 0
        self._lock = threading.Lock()
        self._name = uuid.uuid4().hex[:12]
        check_writable(self.folder / self._name)

    def __reduce__(self) -> tuple[type, tuple[int, Path]]:
        return SavedRollouts, (self._every, self.folder)  # another process has a folder of its own

    def save(self, sample: Sample, score: RewardScore, response: str, **more: Any) -> str | None:
        """Keeps a rollout if it is its turn.

        Returns:
            The path of its image in the folder; None if nothing was kept, or if it is a text.

        Raises:
            JRMError: a file cannot be written.
        """
        with self._lock:
            number, self._seen = self._seen, self._seen + 1
        if number % self._every:
            return None
        folder = self.folder / self._name
        line: dict[str, Any] = {}
        if sample.response_images:
            line["file_name"] = write_image(folder / f"{number:07d}.png", load_image(sample.response_images[0])).name
        if sample.prompt_images:
            line["source_images_file_names"] = [
                write_image(folder / f"{number:07d}_source_{place}.png", load_image(image)).name
                for place, image in enumerate(sample.prompt_images)
            ]
        line |= {"instruction": sample.prompt_text, "response": response}
        line |= {f"mu_{name}": mu for name, mu in score.mu.items()}
        line |= {f"sigma_{name}": sigma for name, sigma in score.sigma.items()}
        with self._lock:
            append_records(folder / "metadata.jsonl", [line | more])
        return f"{self._name}/{line['file_name']}" if "file_name" in line else None


def check_saving(save_images: int | None, save_folder: str | Path | None) -> None:
    """Raises a `JRMError` where a number of rollouts and a folder do not belong together."""
    if save_images is not None and (type(save_images) is not int or save_images < 1):
        raise JRMError(
            f"save_images must be a whole number of at least 1 (one of so many is kept), not {save_images!r}."
        )
    if (save_images is None) != (save_folder is None):
        raise JRMError("save_images and save_folder belong together: one of how many images is kept, and where.")


def saved_rollouts(save_images: int | None, save_folder: str | Path | None) -> SavedRollouts | None:
    """Where rollouts are to be kept, or None if they are not to be.

    Raises:
        JRMError: only one of both is given, or what `SavedRollouts` raises.
    """
    check_saving(save_images, save_folder)
    return None if save_images is None or save_folder is None else SavedRollouts(save_images, save_folder)

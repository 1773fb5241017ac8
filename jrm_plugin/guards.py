"""Signs that a policy exploits its reward, or that a reward is noise: what they are, for all adapters."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from jrm_plugin.errors import JRMError
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.images import image_size, load_image
from jrm_plugin.records.samples import Sample, StoredImage
from jrm_plugin.records.scores import RewardScore


def is_unedited(sample: Sample) -> bool:
    """Whether the picture to be scored is one of its source images, pixel for pixel; other tasks have none.

    An image that cannot be read is none of them; scoring says what is wrong with it.
    """
    if sample.task != "edit":
        return False
    edited = sample.response_images[0]
    try:
        return any(_equal(edited, source) for source in sample.prompt_images)
    except JRMError:
        return False


def _equal(one: StoredImage, other: StoredImage) -> bool:
    if one is other:
        return True
    return image_size(one) == image_size(other) and load_image(one).tobytes() == load_image(other).tobytes()


def members_of(groups: Iterable[Hashable], count: int) -> list[list[int]]:
    """The positions of each group's candidates, of `count` candidates."""
    members = defaultdict(list)
    for number, group in zip(range(count), groups, strict=True):
        members[group].append(number)
    return list(members.values())


def is_decided(
    scores: Sequence[RewardScore], dimension: str, threshold: float, calibration: Calibration | None = None
) -> bool:
    """Whether some candidate of a group beats some other one with a win probability of at least `threshold`.

    The probability is that of paper eq. 4, at the calibration's temperature. Where no pair is decided, the spread of
    the scores is within the model's own uncertainty, and dividing by it, as GRPO does, would make advantages of noise.
    """
    import torch  # slow to import, and rows are read without it

    from jrm_plugin.kernels import win_probability

    temperature = 1.0 if calibration is None else calibration.temperature_of(dimension)
    mu_G, sigma_G = (
        torch.tensor([getattr(score, name)[dimension] for score in scores], dtype=torch.float64, device="cpu") / scale
        for name, scale in (("mu", temperature), ("sigma", 1.0))
    )
    first, second = torch.triu_indices(len(scores), len(scores), offset=1)
    log_sigma_G = sigma_G.log()
    wins = win_probability(mu_G[first], log_sigma_G[first], mu_G[second], log_sigma_G[second])
    return bool((wins.maximum(1 - wins) >= threshold).any())

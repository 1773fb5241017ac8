"""Where the reward token looks: at images, and at the regions that critiques name (paper figure 3)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jrm_plugin.evaluation.metrics import mean_with_interval
from jrm_plugin.evaluation.pairs import samples_of
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.preferences import PreferencePair

if TYPE_CHECKING:
    from jrm_plugin.scoring.scorer import RewardScorer

# What is measured of a sample; the last three where critiques name regions of its one edited image.
SHARES = ("images", "edited", "inside", "area", "inside_less_area")
_CELLS = 8  # a token's square is divided into so many by so many, of which a region covers some


class Attention:
    """What a model attends to in the samples of pairs.

    Attributes:
        maps: of the first samples, for each image the share of the attention that each of its tokens gets, `[rows,
            columns]`; see `RewardScorer.attention`.
        shares: by name of `SHARES`, the mean of each pair's samples, NaN where there is none.
    """

    def __init__(self, maps: Sequence[list[np.ndarray]], shares: Mapping[str, np.ndarray]):
        self.maps, self.shares = maps, shares

    def summary(self) -> dict[str, Any]:
        """The mean of each share over pairs, with its interval; None where no pair has one."""
        return {name: _mean(share_G) for name, share_G in self.shares.items()}

    def less(self, other: "Attention") -> dict[str, Any]:
        """The same of the differences to another model on the same pairs."""
        return {name: _mean(share_G - other.shares[name]) for name, share_G in self.shares.items()}


def read_attention(
    scorer: "RewardScorer", pairs: Sequence[PreferencePair], *, shown: int, progress: bool = False
) -> Attention:
    """The attention of the reward token in both samples of every pair.

    Args:
        scorer: whose.
        pairs: whose samples are read, one after another.
        shown: of how many samples the maps are kept.
        progress: show a bar.

    The shares: `images`, of all attention what falls on image tokens; `edited`, on those of the edited image; `inside`,
    of the edited image's what falls into the regions that the sample's critiques name, and `area`, their share of that
    image, what a look that prefers nothing would give them.
    """
    critiques = [of_side for pair in pairs for of_side in (pair.chosen_critiques, pair.rejected_critiques)]
    samples = samples_of(pairs)
    maps, rows = [], []
    for position, images in scorer.attention(samples, progress=progress):
        images = [image.numpy().astype(np.float64) for image in images]
        if position < shown:
            maps.append(images)
        edited = images[len(samples[position].prompt_images) :]
        rows.append(_shares(images, edited, regions_of(critiques[position])))
    with np.errstate(invalid="ignore"):
        by_pair = np.array(rows).reshape(len(pairs), 2, len(SHARES))
        present = ~np.isnan(by_pair)
        mean = np.where(present, by_pair, 0).sum(1) / present.sum(1)
    return Attention(maps, dict(zip(SHARES, mean.T, strict=True)))


def regions_of(critiques: Mapping[str, Critique]) -> list[EditRegion]:
    return [region for critique in critiques.values() for region in critique.edit_region]


def _shares(images: Sequence[np.ndarray], edited: Sequence[np.ndarray], regions: Sequence[EditRegion]) -> list[float]:
    shares = [float(sum(image.sum() for image in images)), float(sum(image.sum() for image in edited))]
    if len(edited) != 1 or not regions or not shares[1]:
        return [*shares, np.nan, np.nan, np.nan]
    covered = coverage(edited[0].shape, regions)
    inside, area = float((edited[0] * covered).sum() / shares[1]), float(covered.mean())
    return [*shares, inside, area, inside - area]


def coverage(grid: tuple[int, int], regions: Sequence[EditRegion]) -> np.ndarray:
    """How much of each token's square lies in one of the regions, `[rows, columns]`, to 1/64."""
    rows, columns = grid
    y = (np.arange(rows * _CELLS) + 0.5) / (rows * _CELLS) * 1000
    x = (np.arange(columns * _CELLS) + 0.5) / (columns * _CELLS) * 1000
    inside = np.zeros((len(y), len(x)), dtype=bool)
    for region in regions:
        x1, y1, x2, y2 = region.bbox_2d
        inside |= ((y >= y1) & (y <= y2))[:, None] & ((x >= x1) & (x <= x2))
    return inside.reshape(rows, _CELLS, columns, _CELLS).mean((1, 3))


def _mean(share_G: np.ndarray) -> dict[str, Any] | None:
    share_G = share_G[~np.isnan(share_G)]
    return mean_with_interval(share_G) if len(share_G) else None

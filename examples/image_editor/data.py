"""What the editor sees: pictures as tensors, instructions as words, and triples of source, instruction and target.

Targets are wrong on purpose in three of ten cases, so that there is something left for reinforcement learning.

Shape suffixes: N triples, B pictures, C channels, H height, W width, T words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jrm_plugin.synthetic.preferences import PLACES, pick, spoil
from jrm_plugin.synthetic.shape_edits import BACKGROUNDS, COLOURS, KINDS, SHAPES, Edit, carry_out, draw_edit
from jrm_plugin.synthetic.shape_reader import draw_scene, read_instruction, read_scene

SIDE = 48  # pixels of a picture's side
WORDS = ("<pad>", "make", "the", "remove", "move", "add", "a", "to", "at", *COLOURS, *SHAPES, *PLACES)
LONGEST = 7  # words: "add a red circle at the middle"

RIGHT = 0.7  # share of targets that are what was asked for
BLURRED = 0.1  # share of targets that are blurred
WRONG = {"ignored": 0.25, "wrong_object": 0.25, "wrong_value": 0.25, "partial": 0.125, "over_edit": 0.125}


@dataclass(frozen=True)
class Triples:
    """N edits: pictures `[N, 48, 48, 3]` of uint8, and what was asked for."""

    source_NHWC: np.ndarray
    target_NHWC: np.ndarray
    instructions: list[str]
    kinds: list[str]

    def __len__(self) -> int:
        return len(self.instructions)

    def rows(self, chosen: np.ndarray) -> "Triples":
        """Those of these numbers, in their order."""
        texts = ([column[k] for k in chosen] for column in (self.instructions, self.kinds))
        return Triples(self.source_NHWC[chosen], self.target_NHWC[chosen], *texts)


def draw_triples(
    count: int,
    seed: int,
    *,
    heldout: bool,
    right: float = RIGHT,
    blurred: float = BLURRED,
    kinds: Sequence[str] = KINDS,
) -> Triples:
    """Edits of ShapeEdits of some kinds; a target is what was asked for with probability `right`, else a failure."""
    rng = np.random.default_rng([seed, int(heldout)])
    edits: list[Edit] = []
    targets = []
    while len(edits) < count:
        edit = draw_edit(rng, heldout=heldout, outcomes=[("none", "clean")])
        if edit.kind in kinds:
            failure = "none" if rng.random() < right else pick(rng, WRONG)
            if edit.kind == "remove" and failure == "wrong_value":  # there is no value to get wrong
                failure = "wrong_object"
            target = _target(edit, failure, rng)
            targets.append(spoil(target, "blur" if rng.random() < blurred else "clean", rng))
            edits.append(edit)
    sources = np.stack([edit.source for edit in edits])
    return Triples(sources, np.stack(targets), [edit.instruction for edit in edits], [edit.kind for edit in edits])


def _target(edit: Edit, failure: str, rng: np.random.Generator) -> np.ndarray:
    """The picture after the edit.

    An object at a new place stands in the middle of its cell. ShapeEdits puts it up to a pixel beside that, which
    nobody can foresee: an editor that learns from such pictures paints the mean of nine outlines.
    """
    scene = read_scene(edit.source)
    result = carry_out(sorted(scene.items.values()), read_instruction(edit.instruction, scene), failure, rng)
    background = scene.background
    if result.new_background:
        background = pick(rng, [name for name in BACKGROUNDS if name != background])
    return draw_scene(scene._replace(background=background, items={item.place: item for item in result.items}))


def word_ids(instructions: Sequence[str]) -> torch.Tensor:
    """`[B, T]`: the number of each word in `WORDS`, 0 behind the last."""
    ids_BT = torch.zeros(len(instructions), LONGEST, dtype=torch.long)
    for row, instruction in enumerate(instructions):
        words = [WORDS.index(word) for word in instruction.split()]
        ids_BT[row, : len(words)] = torch.tensor(words)
    return ids_BT


def to_tensor(pictures_BHWC: np.ndarray) -> torch.Tensor:
    """`[B, 3, 48, 48]` in -1 to 1 of pictures of uint8."""
    return torch.from_numpy(np.ascontiguousarray(pictures_BHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1


_PALETTE = np.array([*COLOURS.values(), *BACKGROUNDS.values()])


def to_pictures(x_BCHW: torch.Tensor) -> np.ndarray:
    """Pictures `[B, 48, 48, 3]` of uint8; every pixel has the nearest of ShapeEdits' eight colours.

    This is the editor's decoder: reward and oracle see what comes out of it.
    """
    levels = ((x_BCHW.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    distance = ((levels[..., None, :] - _PALETTE) ** 2).sum(-1)
    return _PALETTE[distance.argmin(-1)].astype(np.uint8)

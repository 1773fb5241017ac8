"""Whether a converted folder scores as the weights that it was made of: transformers' own class and the bare head.

The other projects' classes need versions of transformers that cannot be installed beside ours.
"""

import copy
import gc
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import linear
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedConfig

from jrm_plugin.errors import JRMError
from jrm_plugin.model import backbone
from jrm_plugin.model.foreign.names import EMBEDDINGS, HeadNames, is_head, naming, to_theirs
from jrm_plugin.model.foreign.weights import Weights
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import EncodedSequence, JRMProcessor
from jrm_plugin.records.samples import Sample

TOLERANCE = 1e-4
_INSTRUCTIONS = ("make the sky blue", "  Replace {the} cat's hat by two crowns,\n and leave the rest. ")


def verify(
    folder: Path, weights: Weights, config: PreTrainedConfig, head: HeadNames, rope_positions: str, task: str
) -> float:
    """The largest difference in mu and log sigma over a few fixed samples.

    Args:
        folder: the converted one.
        weights: the other project's, by its names.
        config: of the backbone.
        head: where the heads are among them.
        rope_positions, task: as the other project has them.

    Raises:
        JRMError: the difference is more than `TOLERANCE`.
    """
    config = copy.deepcopy(config)
    config.get_text_config().vocab_size = weights[to_theirs(EMBEDDINGS, naming(weights))].shape[0]
    processor = JRMProcessor.from_pretrained(folder)
    samples = [processor.encode(sample) for sample in _samples(task)]
    theirs = _their_scores(samples, weights, config, head, rope_positions, processor.reward_token_id)
    gc.collect()  # of two models of 17 GB, one at a time
    ours = _our_scores(samples, folder, config.dtype, processor)
    difference = (ours - theirs).abs().max().item()
    if not difference <= TOLERANCE:
        raise JRMError(
            f"the converted model scores otherwise than the weights that it was made of, by up to {difference:.2g} on "
            f"{len(samples)} samples; nothing was written."
        )
    return difference


def _samples(task: str) -> list[Sample]:
    gradient = Image.linear_gradient("L")
    pictures = [Image.merge("RGB", (gradient, gradient.rotate(turn), gradient.rotate(180))) for turn in (0, 90)]
    pictures[1] = pictures[1].resize((160, 96))
    source = pictures[0] if task == "edit" else None
    return [Sample.edit(source, text, picture) for text, picture in zip(_INSTRUCTIONS, pictures[::-1], strict=True)]


@torch.inference_mode()
def _their_scores(
    samples: list[list[EncodedSequence]],
    weights: Weights,
    config: PreTrainedConfig,
    head: HeadNames,
    rope_positions: str,
    reward_token_id: int,
) -> torch.Tensor:
    """mu and log sigma, `[sequences, 2]`."""
    tensors = {key: tensor.read() for key, tensor in weights.items()}
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict={key: tensor for key, tensor in tensors.items() if not is_head(key)},
        dtype=config.dtype,
    )
    model.eval()
    rows = []
    for sequences in samples:
        for prefix, sequence in zip(head.prefixes, sequences, strict=True):
            ids = torch.tensor([sequence.prompt])
            hidden = model.model(
                input_ids=ids,
                mm_token_type_ids=(ids == backbone.image_token_id(config)).int(),
                pixel_values=torch.cat([image.pixel_values for image in sequence.images]),
                image_grid_thw=torch.stack([image.grid_thw for image in sequence.images]),
                **({"position_ids": torch.arange(ids.shape[1])[None]} if rope_positions == "1d" else {}),
            ).last_hidden_state[ids == reward_token_id]
            score = hidden.float()
            for k, name in enumerate(head.linears):
                place = ".".join(filter(None, (prefix, name)))
                weight, bias = tensors[f"{place}.weight"].float(), tensors.get(f"{place}.bias")
                score = linear(score.relu() if k else score, weight, None if bias is None else bias.float())
            rows.append(torch.cat([score, torch.zeros(1, 2 - score.shape[1])], -1))
    return torch.cat(rows)


@torch.inference_mode()
def _our_scores(
    samples: list[list[EncodedSequence]], folder: Path, dtype: torch.dtype, processor: JRMProcessor
) -> torch.Tensor:
    model = JRMForRewardModeling.from_pretrained(folder, dtype=dtype).eval()
    outputs = [model(**processor.collate(sequences)) for sequences in samples]
    mu, log_sigma = (torch.cat([getattr(output, name) for output in outputs]) for name in ("mu_SD", "log_sigma_SD"))
    return torch.stack([mu.flatten(), log_sigma.flatten()], -1)

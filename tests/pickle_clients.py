"""How trainers ask servers that take pickles, written anew from what their public code does; no line is theirs.

Each gives the bytes that it sends and reads the bytes that come back.
"""

import io
import json
import pickle
from collections.abc import Sequence

import httpx
import numpy as np
import torch
from PIL import Image


def jpegs(images_NHWC: np.ndarray) -> list[bytes]:
    """As all of them encode images: Pillow's JPEG with its default quality."""
    encoded = []
    for image in images_NHWC:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG")
        encoded.append(buffer.getvalue())
    return encoded


def as_arrays(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy().transpose(0, 2, 3, 1)


def batches(values: Sequence, size: int = 64) -> list[np.ndarray]:
    return np.array_split(values, int(np.ceil(len(values) / size)))


def flow_grpo(url: str, images: torch.Tensor, prompts: Sequence[str], metadata: dict | None) -> list[float]:
    """A remote reward of flow_grpo: the prompts of a batch are an array; it reads `outputs` and no status."""
    scores: list[float] = []
    for image_batch, prompt_batch in zip(batches(as_arrays(images)), batches(prompts), strict=True):
        data = {"images": jpegs(image_batch), "prompts": prompt_batch}
        if metadata is not None:  # for edits, beside what it sends
            data["metadata"] = metadata
        response = httpx.post(url + "/flow_grpo", content=pickle.dumps(data), timeout=120)
        scores += pickle.loads(response.content)["outputs"]
    return scores


def verl_omni(url: str, image_CHW: torch.Tensor, prompt: str) -> float:
    """verl-omni's `http_scorer_client`: one uint8 image, empty metadata; an error is a pickle with its own status."""
    (encoded,) = jpegs(image_CHW.permute(1, 2, 0).numpy()[None])
    payload = pickle.dumps({"images": [encoded], "prompts": [prompt], "metadata": {}})
    response = httpx.post(url + "/flow_grpo", content=payload, timeout=120)
    answer = pickle.loads(response.content)
    if response.status_code != 200 or "error" in answer:
        raise RuntimeError(f"HTTP {response.status_code}: {answer['error']}")
    return float(answer["scores"][0])


def edit_r1(
    url: str,
    ref_images: Sequence[Image.Image],
    images: torch.Tensor,
    prompts: Sequence[str],
    metadatas: Sequence,
    mode: str = "logits_non_cot",
) -> list[float]:
    """Edit-R1: sources and edits as JPEG, in batches; the prompts and the metadata of all with each batch."""
    scores: list[float] = []
    sources = np.array([np.array(image) for image in ref_images])
    for image_batch, source_batch in zip(batches(as_arrays(images)), batches(sources), strict=True):
        data = {"ref_images": jpegs(source_batch), "images": jpegs(image_batch), "prompts": prompts}
        data["metadatas"] = metadatas
        response = httpx.post(f"{url}/mode/{mode}", content=pickle.dumps(data), timeout=360)
        scores += pickle.loads(response.content)["scores"]
    return scores


def omnigen2_rl(url: str, input_images: Sequence[Sequence], output_image: Sequence, meta_datas: Sequence) -> dict:
    """OmniGen2-RL: Pillow's images as they are, to the root of the server, after a ping."""
    assert httpx.get(url + "/ping").status_code == 200
    data = {"input_images": input_images, "output_image": output_image, "meta_datas": meta_datas, "server_type": "vlm"}
    headers = {"Content-Type": "application/octet-stream"}
    return pickle.loads(httpx.post(url + "/", content=pickle.dumps(data), headers=headers, timeout=600).content)


def instruction(text: str) -> str:
    """As OmniGen2-RL writes what belongs to an image."""
    return json.dumps({"instruction": text})

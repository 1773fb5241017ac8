"""An editor for self-correction that calls an image-editing pipeline of diffusers."""

from typing import Any

import torch

from jrm_plugin.correction.editing import EditRequest
from jrm_plugin.errors import JRMError


class DiffusersEditor:
    """Edits with an image-editing pipeline of diffusers, such as Qwen-Image-Edit or FLUX.1 Kontext.

    The pipeline is called with `image=`, `prompt=` (`EditRequest.prompt`: instruction and critique), `generator=` (on
    the CPU, so that a seed means the same everywhere) and `options`; the first of its `images` is taken.

    Args:
        pipeline: a pipeline, or a hub name or folder for `DiffusionPipeline.from_pretrained`.
        image: what the pipeline edits: `edited`, the image that is to be mended, or `source`, to start over from it
            (all of them in a list where there are several).
        device, dtype: of a pipeline that is loaded by name, dtype as the name of a torch dtype; by default the GPU in
            bfloat16 if there is one, else the CPU in float32.
        options: further arguments of each call, such as `num_inference_steps`.

    Raises:
        JRMError: diffusers is not installed and a pipeline is to be loaded, it cannot be loaded, or `image` or `dtype`
            is none of those.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        image: str = "edited",
        device: str | None = None,
        dtype: str | None = None,
        options: dict[str, Any] | None = None,
    ):
        if image not in ("edited", "source"):
            raise JRMError(f"image of the diffusers editor must be edited or source, not {image!r}.")
        self.pipeline = _load(pipeline, device, dtype) if isinstance(pipeline, str) else pipeline
        self.image, self.options = image, options or {}

    def __call__(self, request: EditRequest):
        image = request.image
        if self.image == "source":
            if not request.sources:
                raise JRMError("the image was made from text alone, so there is no source to start over from.")
            image = request.sources[0] if len(request.sources) == 1 else list(request.sources)
        generator = torch.Generator().manual_seed(request.seed)
        return self.pipeline(image=image, prompt=request.prompt, generator=generator, **self.options).images[0]


def _load(name: str, device: str | None, dtype: str | None):
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise JRMError(f"to load the editor {name}, install diffusers: pip install diffusers.") from error
    on_gpu = torch.cuda.is_available()
    precision = getattr(torch, dtype or ("bfloat16" if on_gpu else "float32"), None)
    if not isinstance(precision, torch.dtype):
        raise JRMError(f"dtype of the diffusers editor must name a torch dtype such as bfloat16, not {dtype!r}.")
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            name, torch_dtype=precision, trust_remote_code=False, use_safetensors=True
        )
        pipeline = pipeline.to(device or ("cuda" if on_gpu else "cpu"))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise JRMError(f"the editor {name} cannot be loaded by diffusers: {reason}.") from error
    pipeline.set_progress_bar_config(disable=True)  # one bar for the run is enough
    return pipeline

"""The editor: SD3's transformer, small and in pixel space, by which rectified flow turns noise into the edited picture.

Between the edited picture x0 and noise ε lie x_t = (1 - t) x0 + t ε, with t from 1 (noise) to 0. The model predicts x0
of x_t, the source and the instruction; from it follows the velocity dx/dt = ε - x0 = (x_t - x0) / t.

Shape suffixes: B pictures, C channels, H height, W width, T words.
"""

import torch
from torch import nn

from examples.image_editor.data import LONGEST, SIDE, WORDS
from jrm_plugin.extras import require

TEXT = 64  # numbers a word


class Editor(nn.Module):
    """The source is stacked onto the channels of x_t, and a patch is a place of ShapeEdits' grid.

    x0 is predicted as source + change, where the change is 0 in the beginning: a patch holds 768 numbers of noise,
    which do not fit through the width of the model, but what an edit changes does.
    """

    def __init__(self, *, width: int = 96, layers: int = 4, heads: int = 4, patch: int = 16):
        super().__init__()
        require("diffusers", "The image editor", install="jrm-plugin[editor]")
        from diffusers import SD3Transformer2DModel  # takes seconds to import

        self.words = nn.Embedding(len(WORDS), TEXT, padding_idx=0)
        self.order = nn.Parameter(0.5 * torch.randn(LONGEST, TEXT))
        self.pooled = nn.Linear(LONGEST * TEXT, TEXT)
        self.transformer = SD3Transformer2DModel(
            sample_size=SIDE,
            patch_size=patch,
            in_channels=6,
            out_channels=3,
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            caption_projection_dim=width,
            joint_attention_dim=TEXT,
            pooled_projection_dim=TEXT,
            pos_embed_max_size=SIDE // patch,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)

    def clean(
        self, x_BCHW: torch.Tensor, source_BCHW: torch.Tensor, ids_BT: torch.Tensor, t_B: torch.Tensor
    ) -> torch.Tensor:
        """The predicted edited picture x0, `[B, 3, 48, 48]`."""
        words_BTE = self.words(ids_BT) + self.order
        pooled_BE = self.pooled(words_BTE.flatten(1))
        both_BCHW = torch.cat([x_BCHW, source_BCHW], dim=1)
        (change_BCHW,) = self.transformer(both_BCHW, words_BTE, pooled_BE, 1000 * t_B, return_dict=False)
        return source_BCHW + change_BCHW

    def velocity(
        self, x_BCHW: torch.Tensor, source_BCHW: torch.Tensor, ids_BT: torch.Tensor, t_B: torch.Tensor
    ) -> torch.Tensor:
        """dx/dt = (x - x0) / t, `[B, 3, 48, 48]`."""
        return (x_BCHW - self.clean(x_BCHW, source_BCHW, ids_BT, t_B)) / t_B[:, None, None, None]

    def add_lora(self, rank: int) -> None:
        """Freezes the weights, and adds to each matrix of the blocks the product of two factors, which learn."""
        from peft import LoraConfig

        self.requires_grad_(False)
        blocks = self.transformer.transformer_blocks.named_modules(prefix="transformer_blocks")
        matrices = [name for name, module in blocks if isinstance(module, nn.Linear)]
        self.transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=matrices))


class WithoutLoRA:
    """The editor as it was before its LoRA factors, with the same weights."""

    def __init__(self, editor: Editor):
        self._editor = editor

    def velocity(
        self, x_BCHW: torch.Tensor, source_BCHW: torch.Tensor, ids_BT: torch.Tensor, t_B: torch.Tensor
    ) -> torch.Tensor:
        """As `Editor.velocity`."""
        self._editor.transformer.disable_adapters()
        try:
            return self._editor.velocity(x_BCHW, source_BCHW, ids_BT, t_B)
        finally:
            self._editor.transformer.enable_adapters()

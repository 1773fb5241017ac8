"""The reward model: a vision-language backbone, one reward token, and a small head that scores its hidden state.

Shape suffixes: B sequences, S samples, L length, H hidden, D dimensions, V vocabulary, T critique tokens of the batch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_utils import set_zero3_state
from transformers.utils import ModelOutput

from jrm_plugin.errors import JRMError
from jrm_plugin.kernels import check_reward_token_counts, pool_reward_tokens
from jrm_plugin.model.backbone import SDPA_OR_FLEX, BackboneParts, check_backbone_family, rotary_inputs, token_types
from jrm_plugin.model.checkpoint import built_in_folder, load_checked, load_config, named
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.cross_entropy import fused_token_losses, token_losses
from jrm_plugin.model.sharding import whole

if TYPE_CHECKING:
    from jrm_plugin.model.processing import JRMProcessor


@dataclass
class JRMOutput(ModelOutput):
    """What one forward pass gives.

    `mu_SD`, `log_sigma_SD`: the Gaussian score of every sample and dimension, float32 (paper eq. 2 and 4).
    `hidden_BH`: the reward token's hidden state of every sequence, the paper's shared representation h (eq. 1).
    `reward_tokens_B`: reward tokens found in every sequence; the scores of one that has not one of them are NaN.
    `critique_loss_T`: the cross-entropy of every critique token, float32 (paper eq. 6); absent without labels.
    """

    mu_SD: torch.Tensor | None = None
    log_sigma_SD: torch.Tensor | None = None
    hidden_BH: torch.Tensor | None = None
    reward_tokens_B: torch.Tensor | None = None
    critique_loss_T: torch.Tensor | None = None

    def check(self) -> None:
        """Raises a ValueError that names the first sequence without exactly one reward token; waits for the device."""
        check_reward_token_counts(self.reward_tokens_B)


class Float32Linear(nn.Linear):
    """A linear map in float32, also where DeepSpeed or FSDP computes with a copy of all weights in fewer bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.float(), self.bias.float())


class RewardHead(nn.Module):
    """`[B, H]` hidden states to `(mu, log_sigma)`, each `[B, D]`: one RankNet-style MLP per dimension, in float32.

    Paper section 3.2 (eq. 2) and appendix B.1; each MLP ends in two outputs, mu and log sigma.
    """

    def __init__(self, config: JRMConfig):
        super().__init__()
        self.bound = config.log_sigma_bound
        hidden = config.get_text_config().hidden_size
        self.heads = nn.ModuleList(self._mlp(hidden, config) for _ in config.dimensions)

    @staticmethod
    def _mlp(width: int, config: JRMConfig) -> nn.Sequential:
        layers: list[nn.Module] = []
        for k, next_width in enumerate(config.reward_head_widths):
            layers += [Float32Linear(width, next_width), ACT2FN[config.reward_head_activation]]
            if k == 0:
                layers.append(nn.Dropout(config.reward_head_dropout))
            width = next_width
        return nn.Sequential(*layers, Float32Linear(width, 2))

    def forward(self, hidden_BH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Scores are compared with each other: rounding them to bfloat16 would tie candidates that are not equal.
        with torch.autocast(hidden_BH.device.type, enabled=False):
            score_BD2 = torch.stack([head(hidden_BH.float()) for head in self.heads], dim=1)
        mu_BD, log_sigma_BD = score_BD2.unbind(-1)
        if self.bound is not None:
            centre, half_range = self.bound
            log_sigma_BD = centre + half_range * torch.tanh(log_sigma_BD)
        return mu_BD, log_sigma_BD


class JRMForRewardModeling(PreTrainedModel):
    """Joint Reward Modeling (paper section 3.2) over a Hugging Face image-text-to-text backbone.

    Start one from a pretrained backbone with [`~JRMForRewardModeling.from_backbone`]; load a trained one with
    `from_pretrained(folder)`. A weight that is missing, unexpected or misshapen is an error that names it.
    """

    config_class = JRMConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["reward_head"]
    # The loss is made in `jrm_plugin.losses`, from the per-token losses that `forward` returns.
    accepts_loss_kwargs = False

    def __init__(self, config: JRMConfig):
        super().__init__(config)
        self.backbone = AutoModelForImageTextToText.from_config(config.backbone_config)
        self._no_split_modules = self.backbone._no_split_modules
        # Of tied embeddings peft trains both ends together only if the outermost model names them.
        tied = self.backbone._tied_weights_keys.items()
        self._tied_weights_keys = {f"backbone.{end}": f"backbone.{source}" for end, source in tied}
        self.reward_head = RewardHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        # The backbone initialises its own modules; what is left is the head, in torch's default initialisation.
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        dimension_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        packing: dict[str, torch.Tensor] | None = None,
        fused_cross_entropy: bool = False,
        **_: Any,
    ) -> JRMOutput:
        """Scores sequences as [`JRMProcessor`] makes them.

        Args:
            input_ids, attention_mask: `[B, L]`, one reward token in each row.
            pixel_values, image_grid_thw: the patches and grids of all images, in the order of their placeholders.
            dimension_ids: `[B]`, absent in the `joint` layout. In `per_dimension`, the dimension of each sequence;
                the D sequences of a sample stand next to each other.
            labels: `[B, L]`, critique tokens where they stand and -100 elsewhere; gives `critique_loss_T`.
            packing: the plan of [`packing.pack`], by which what sequences share is computed once; `pixel_values` are
                then those of the distinct images.
            fused_cross_entropy: see `critique_loss`.

        The scores of a sequence without a reward token, or with more than one, are NaN. Nothing is raised here, because
        a GPU would have to be waited for: call the output's `check` where the scores are read.
        """
        hidden_BLH, hidden_BH, count_B = self.hidden_states(
            input_ids, attention_mask, pixel_values, image_grid_thw, packing
        )
        mu_SD, log_sigma_SD = self.scores(hidden_BH, dimension_ids)
        return JRMOutput(
            mu_SD=mu_SD,
            log_sigma_SD=log_sigma_SD,
            hidden_BH=hidden_BH,
            reward_tokens_B=count_B,
            critique_loss_T=None if labels is None else self.critique_loss(hidden_BLH, labels, fused_cross_entropy),
        )

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        packing: dict[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Final hidden states of all tokens `[B, L, H]` and of reward tokens `[B, H]`, and how many of these `[B]`."""
        if packing is not None:
            hidden_BLH = self._packed_states(input_ids, attention_mask, pixel_values, image_grid_thw, packing)
        else:
            hidden_BLH = self.backbone.model(
                input_ids=input_ids,
                attention_mask=None if self._needs_no_mask(attention_mask) else attention_mask,
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                **token_types(self.config.backbone_config, input_ids),
                **rotary_inputs(self.config.rope_positions, attention_mask),
                use_cache=False,
            ).last_hidden_state
        pooled_BKH, count_B = pool_reward_tokens(hidden_BLH, input_ids, self.config.reward_token_id, return_counts=True)
        return hidden_BLH, pooled_BKH.squeeze(1), count_B

    def _packed_states(
        self,
        id_BL: torch.Tensor,
        mask_BL: torch.Tensor,
        pixel_values: torch.Tensor | None,
        grid_thw: torch.Tensor | None,
        packing: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Final hidden states of all tokens, `[B, L, H]`, each computed where the plan lets it stand."""
        parts = BackboneParts(self.backbone)
        token_RS = packing["token_RS"]
        position_3BL = parts.batch_positions(id_BL, mask_BL, grid_thw, self.config.rope_positions)
        embedding_RSH = parts.embed(id_BL.flatten()[token_RS])
        features_FDH = None
        row_F, place_F, feature_F = packing["image_3F"]
        if pixel_values is not None:
            features_FDH = parts.image_features(pixel_values, grid_thw[packing["image_I"]])[feature_F]
        hidden_RSH = parts.decode(
            embedding_RSH,
            position_3NS=position_3BL.flatten(1)[:, token_RS],
            mask=parts.tree_mask(embedding_RSH, packing.get("end_RS")),
            image_index=(row_F, place_F),
            image_features_FDH=features_FDH,
        )
        return parts.norm(hidden_RSH).flatten(0, 1)[packing["place_BL"]]

    def _needs_no_mask(self, mask_BL: torch.Tensor) -> bool:
        """Whether all padding stands behind its sequence, where the causal order alone keeps it from being seen.

        torch's attention is faster without a mask. Others, such as FlashAttention, leave padding out by it.
        """
        attention = self.backbone.config.get_text_config()._attn_implementation
        return attention in ("sdpa", SDPA_OR_FLEX) and bool((mask_BL[:, 0] == 1).all() and (mask_BL.diff() <= 0).all())

    def scores(
        self, hidden_BH: torch.Tensor, dimension_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """mu and log sigma of every sample, `[S, D]` each, from the reward tokens' hidden states.

        With `dimension_ids` `[B]` each sequence is scored in its own dimension: `[S * D, H]` to `[S, D]`.
        """
        mu, log_sigma = self.reward_head(hidden_BH)
        if dimension_ids is None:
            return mu, log_sigma
        own = dimension_ids.unsqueeze(1)
        return tuple(x.gather(1, own).view(-1, len(self.config.dimensions)) for x in (mu, log_sigma))

    def critique_loss(self, hidden_BLH: torch.Tensor, labels_BL: torch.Tensor, fused: bool = False) -> torch.Tensor:
        """-log p of every critique token given all before it (paper eq. 6), `[T]` float32.

        The hidden states that predict a critique token are selected before they are projected to the vocabulary, so
        no `[B, L, V]` tensor is ever made; `fused`, no `[T, V]` one either (`cross_entropy`).
        """
        target_BL = labels_BL[:, 1:]
        is_critique_BL = target_BL != -100
        hidden_TH, target_T = hidden_BLH[:, :-1][is_critique_BL], target_BL[is_critique_BL]
        losses = fused_token_losses if fused else token_losses
        return losses(self.get_output_embeddings(), hidden_TH, target_T)

    @torch.no_grad()
    def generate(self, **inputs: Any) -> torch.Tensor:
        """The backbone's own `generate`, for critiques: the language head continues after the reward token."""
        return self.backbone.generate(**inputs, **token_types(self.config.backbone_config, inputs["input_ids"]))

    @classmethod
    def from_backbone(
        cls, name_or_path: str | Path, *, processor: "JRMProcessor", config: dict[str, Any] | None = None, **kwargs: Any
    ) -> "JRMForRewardModeling":
        """A reward model over a pretrained backbone, with a fresh reward token and head.

        Args:
            name_or_path: a hub name or local folder of one of `backbone.FAMILIES`.
            processor: from `JRMProcessor.from_backbone(name_or_path, ...)`; names the dimensions and the reward token.
            config: further fields of [`JRMConfig`] (`reward_head_widths`, `log_sigma_bound`, ...).
            kwargs: go to the backbone's `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, ...).

        The rows of tokens that the processor added start as the mean of the backbone's trained rows. Call
        `torch.manual_seed` before for a reproducible head.
        """
        backbone_config = load_config(name_or_path, **{k: v for k, v in kwargs.items() if k == "revision"})
        check_backbone_family(backbone_config.model_type)
        kwargs.setdefault("dtype", torch.float32)
        load = AutoModelForImageTextToText.from_pretrained
        backbone, _ = load_checked(load, name_or_path, config=backbone_config, **kwargs)
        vocabulary = len(processor.tokenizer)
        if backbone.get_input_embeddings().num_embeddings < vocabulary:
            backbone.resize_token_embeddings(vocabulary, mean_resizing=False)
        for embeddings in (backbone.get_input_embeddings(), backbone.get_output_embeddings()):
            with torch.no_grad(), whole(embeddings.weight):
                old = embeddings.weight[: min(processor.added_token_ids)]
                embeddings.weight[processor.added_token_ids] = old.float().mean(0).to(old.dtype)
        model = cls._over(backbone, processor, config or {})
        model.name_or_path = named(name_or_path)  # adapters name the model that they adapt
        return model

    @classmethod
    def _over(cls, backbone: PreTrainedModel, processor: "JRMProcessor", fields: dict) -> "JRMForRewardModeling":
        backbone.config.name_or_path = ""  # it would save where the backbone lay on this machine
        config = JRMConfig(
            backbone_config=backbone.config,
            dimensions=processor.dimensions,
            reward_token_id=processor.reward_token_id,
            dtype=backbone.dtype,
            **fields,
        )
        with torch.device("meta"), set_zero3_state():  # of no weight of it is anything kept, or divided
            model = cls(config)
        model.backbone = backbone
        # As after saving and loading: a hub model's own sampling options must not change greedy critiques.
        backbone.generation_config = GenerationConfig.from_model_config(backbone.config)
        model.reward_head = RewardHead(config).to(backbone.device)
        return model

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> "JRMForRewardModeling":
        """Loads what `save_pretrained` wrote, or a built-in model by name.

        Raises:
            JRMError: the folder is no JRM checkpoint, or a weight is missing, unexpected or misshapen.
        """
        folder = built_in_folder(name_or_path)
        wants_info = kwargs.pop("output_loading_info", False)
        config = kwargs.pop("config", None)
        if config is None:
            config = load_config(folder, **{k: v for k, v in kwargs.items() if k in ("revision", "token")})
        if config.model_type != JRMConfig.model_type:
            raise JRMError(
                f"{folder} holds a model of type {config.model_type!r}, not a JRM checkpoint; "
                "train one from it with `jrm train`, or give a folder that `jrm train` wrote."
            )
        model, info = load_checked(super().from_pretrained, folder, config=config, **kwargs)
        model.name_or_path = named(name_or_path)
        return (model, info) if wants_info else model


AutoModel.register(JRMConfig, JRMForRewardModeling)

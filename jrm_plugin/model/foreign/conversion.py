"""Checkpoints of other projects into JRM folders, and back.

The weights go through one tensor at a time, so that a checkpoint need not fit into memory.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.files import check_new_folder, new_folder, read_text
from jrm_plugin.model import backbone
from jrm_plugin.model.checkpoint import (
    CONFIG_FILE,
    find_file,
    load_config,
    load_image_processor,
    load_tokenizer,
    read_object,
)
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.foreign import LAYOUTS
from jrm_plugin.model.foreign.layout import Layout, Settings
from jrm_plugin.model.foreign.names import EMBEDDINGS, LM_HEAD, HeadNames, is_head, naming, to_ours, to_theirs
from jrm_plugin.model.foreign.prompts import templates
from jrm_plugin.model.foreign.verification import verify
from jrm_plugin.model.foreign.weights import (
    ADAPTER_FILES,
    LazyTensor,
    Weights,
    find_weights,
    first_rows,
    merged,
    read_weights,
    with_rows,
    write_weights,
)
from jrm_plugin.model.loading import check_belong_together
from jrm_plugin.model.lora import ADAPTER_FILE
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import REWARD_TOKEN, JRMProcessor

AUTO = "auto"
SETTINGS_FILE = "model_config.json"  # what EditReward's training writes once a run
# Modules between the hidden state and the head, by the beginnings of their names (HPSv3++).
_BETWEEN = ("film_gen", "cond_encoder", "cap_encoder")


def convert(
    source: Path,
    target: Path,
    name: str = AUTO,
    *,
    base: str | None = None,
    prompts: Sequence[Path] = (),
    constant: str | None = None,
    overall_rule: str | None = None,
    verified: bool = False,
) -> list[str]:
    """Makes a JRM folder of another project's checkpoint.

    Args:
        source: its folder, or its file of weights.
        target: the folder to be made.
        name: of the layout, one of `LAYOUTS`, or `auto`.
        base: folder or hub name of the model that it was trained from, for what is not beside the weights: config,
            tokenizer, chat template and image processor; for LoRA adapters the weights as well.
        prompts: files of the project's code that hold its prompts; they are read and not run.
        constant: the name of the prompt of a single head.
        overall_rule: how the overall score comes of the dimensions'; by default as the run's settings say, or the mean.
        verified: whether scores of the folder are compared with those of transformers' own class before it is in its
            place; both models are loaded for that, one after the other.

    Returns:
        What was made, as sentences.

    Raises:
        JRMError: something is missing or does not fit, or cannot be represented by a JRM.
    """
    check_new_folder(target)
    if not source.exists():
        raise JRMError(f"{source} is not there; give the folder, or the file of weights, of a checkpoint.")
    folder = source if source.is_dir() else source.parent
    places: list[str | Path] = [place for place in (folder, folder / "tokenizer") if place.is_dir()]
    places += [] if base is None else [base]
    settings = _settings(folder)
    config = _config(places, base)
    weights = _read(source, base)
    layout = _layout(name, weights, config.model_type, settings, constant)
    _check_representable(weights, settings)
    processor, tokens = _processor(layout, places, config, prompts)
    head = HeadNames.of(weights, layout.heads)

    names = naming(weights)
    if mixed := [key for key in weights if not is_head(key) and to_theirs(to_ours(key), names) != key]:
        raise JRMError(
            f"{source} mixes two ways to name weights, as in {mixed[0]}; save it with one version of transformers."
        )
    ours = head.to_ours(weights) | {to_ours(key): tensor for key, tensor in weights.items() if not is_head(key)}
    if EMBEDDINGS not in ours:
        raise JRMError(f"{source} has no {to_theirs(EMBEDDINGS, names)}, the embeddings of tokens.")
    rows, kept = len(processor.tokenizer), processor.reward_token_id + 1
    _check_rows(ours, kept, tokens, source, is_lora=(folder / ADAPTER_FILE).is_file())
    had_lm_head = LM_HEAD in ours
    if (
        had_lm_head
        and config.tie_word_embeddings
        and not torch.equal(ours.pop(LM_HEAD).read(), ours[EMBEDDINGS].read())
    ):
        raise JRMError(
            f"{source} has an lm_head of its own, and its config ties it to the embeddings; it is another's."
        )
    for key in (EMBEDDINGS, LM_HEAD):
        if key in ours:
            ours[key] = with_rows(ours[key], kept, rows)

    config.get_text_config().vocab_size = rows
    config.dtype = ours[EMBEDDINGS].dtype
    jrm_config = JRMConfig(
        backbone_config=config,
        dimensions=layout.dimensions,
        reward_token_id=processor.reward_token_id,
        reward_head_widths=head.widths(weights),
        reward_head_dropout=0.05,
        rope_positions=layout.rope_positions(config.model_type),
        overall_rule=overall_rule or settings.get("pooling_strategy") or "mean",
        writes_critiques=False,
        trained_tasks=[layout.task],
        trained_source_images=layout.source_images,
        converted_from={
            "layout": layout.name,
            "names": names,
            "lm_head": had_lm_head,
            "head": head.record(),
            "file": layout.file,
        },
        dtype=config.dtype,
        architectures=[JRMForRewardModeling.__name__],
    )
    with torch.device("meta"):
        model = JRMForRewardModeling(jrm_config)
    _check_weights(model, ours, source, names)
    check_belong_together(model, processor)
    with new_folder(target) as staging:
        jrm_config.save_pretrained(staging)
        processor.save_pretrained(staging)
        write_weights(staging / "model.safetensors", ours)
        sentences = _summary(layout, jrm_config, processor, head, target)
        if verified:
            difference = verify(staging, weights, config, head, jrm_config.rope_positions, layout.task)
            sentences.append(f"Its scores are those of transformers' own class: no difference above {difference:.1g}.")
    return sentences


def convert_back(source: Path, target: Path, name: str) -> list[str]:
    """Writes the weights of a converted JRM folder, trained further or not, as the other project's code loads them.

    Args:
        source: the JRM folder.
        target: the folder to be made.
        name: of the layout that it was converted from.

    Returns:
        What was made, as sentences.

    Raises:
        JRMError: the folder was not converted from this layout, or its weights do not fit it any more.
    """
    check_new_folder(target)
    config = load_config(source)
    if (source / ADAPTER_FILE).is_file():
        raise JRMError(
            f"{source} holds LoRA adapters: load it and save the model and its processor, then convert that."
        )
    record = getattr(config, "converted_from", None)
    if config.model_type != JRMConfig.model_type or not isinstance(record, dict):
        raise JRMError(
            f"{source} was not made by jrm convert: the prompts of {name} stand in its own code, and a model that was "
            "trained with others has other scores there."
        )
    if record.get("layout") != name:
        raise JRMError(f"{source} was converted from {record.get('layout')}, and cannot be written as {name}.")
    weights = read_weights(find_weights(source))
    with as_jrm_error(f"{source / CONFIG_FILE}, converted_from, cannot be used"):
        head, had_lm_head, names = HeadNames.from_record(record["head"]), record["lm_head"], record["names"]
        file = target / Path(record["file"]).name
    rows = config.reward_token_id + 1
    theirs: dict[str, LazyTensor] = {}
    for key, tensor in weights.items():
        if key.startswith("backbone."):
            cut = key in (EMBEDDINGS, LM_HEAD)
            theirs[to_theirs(key, names)] = first_rows(tensor, rows) if cut else tensor
    if had_lm_head and LM_HEAD not in weights:  # tied, of which we keep one
        theirs[to_theirs(LM_HEAD, names)] = theirs[to_theirs(EMBEDDINGS, names)]
    theirs |= head.to_theirs(weights)
    with new_folder(target) as staging:
        write_weights(staging / file.name, theirs)
    return [
        f"{file}: {len(theirs)} weights with the names of {name}, without the rows of the tokens that JRM has added.",
        "Config, tokenizer and prompts the code of that project takes from its base model and from itself.",
    ]


# --- what is read -----------------------------------------------------------------------------------------------------


def _settings(folder: Path) -> Settings:
    if not (folder / SETTINGS_FILE).is_file():
        return {}
    content = read_object(folder / SETTINGS_FILE)
    settings = content.get("model_config", content)
    return settings if isinstance(settings, dict) else {}


def _config(places: Sequence[str | Path], base: str | None) -> PreTrainedConfig:
    """The backbone's config."""
    for place in places:
        if find_file(place, CONFIG_FILE) is not None:
            return load_config(place)
    raise JRMError(
        f"there is no {CONFIG_FILE} beside the weights, which do not say what model they are of; give the model that "
        "they were trained from, a folder or hub name, with --base."
        if base is None
        else f"the base {base} has no {CONFIG_FILE}; give the folder or hub name of a model."
    )


def _read(source: Path, base: str | None) -> Weights:
    """The weights by their names; LoRA adapters merged into those of the base."""
    adapters = source / ADAPTER_FILE
    if not adapters.is_file():
        return read_weights(find_weights(source))
    if base is None or not Path(base).is_dir():
        raise JRMError(f"{source} holds LoRA adapters: give the folder of the model that they adapt with --base.")
    content = read_object(adapters)
    r, alpha = content.get("r"), content.get("lora_alpha")
    if content.get("peft_type") != "LORA" or not all(isinstance(n, int) and n > 0 for n in (r, alpha)):
        raise JRMError(f"{adapters} must be of LoRA adapters with r and lora_alpha, whole numbers above 0.")
    if wrong := [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if content.get(key)]:
        raise JRMError(f"{adapters} has {wrong[0]}; only plain LoRA can be merged.")
    scale = alpha / r**0.5 if content.get("use_rslora") else alpha / r
    low_rank, others = (read_weights(source / file) for file in ADAPTER_FILES)
    base_weights = read_weights(find_weights(Path(base)))
    merged_weights = merged(
        {to_ours(key): tensor for key, tensor in base_weights.items()},
        low_rank,
        others,
        scale,
        lambda key: key if is_head(key) else to_ours(key),
    )
    names = naming(base_weights)
    return {key if is_head(key) else to_theirs(key, names): tensor for key, tensor in merged_weights.items()}


def _layout(name: str, weights: Weights, family: str, settings: Settings, constant: str | None) -> Layout:
    if name == AUTO:
        if not any(map(is_head, weights)):
            raise JRMError(
                "the weights have no reward head of a known layout (rm_heads.head_0 … of EditReward, rm_head of HPSv3)."
            )
        is_hpsv3 = family == "qwen2_vl" and any(key.startswith("rm_head.") for key in weights)
        name = "hpsv3" if is_hpsv3 else "editreward"
    layout = LAYOUTS[name](weights.keys(), settings, constant)
    if family not in layout.families:
        raise JRMError(
            f"{layout.title} was built on {', '.join(layout.families)}, not on {family}; say another --from."
        )
    return layout


def _check_representable(weights: Weights, settings: Settings) -> None:
    between = sorted({key.split(".")[0] for key in weights if key.startswith(_BETWEEN)})
    if between:
        raise JRMError(
            f"the checkpoint has {', '.join(between)} between the hidden state and the head (FiLM, as HPSv3++ has), "
            "which a JRM has no place for; it cannot be converted."
        )
    if settings.get("use_special_tokens") is False:
        raise JRMError(
            f"the checkpoint was trained without a reward token (reward_token {settings.get('reward_token')}), and a "
            "JRM scores the hidden state of one; it cannot be converted."
        )


def _processor(
    layout: Layout, places: Sequence[str | Path], config: PreTrainedConfig, prompts: Sequence[Path]
) -> tuple[JRMProcessor, int]:
    """The processor, and how many tokens the tokenizer has with the reward token and without ours."""
    rubrics = {layout.task: templates(layout, prompts)}
    tokenizer = _tokenizer(places)
    tokens = len(tokenizer) + (REWARD_TOKEN not in tokenizer.get_vocab())
    place = next((place for place in places if find_file(place, "preprocessor_config.json") is not None), None)
    if place is None:
        raise JRMError(_nowhere("preprocessor_config.json", "image processor"))
    images = load_image_processor(place)
    if pixels := layout.pixels.get(config.model_type):
        images.size = {"shortest_edge": pixels, "longest_edge": pixels}
    processor = JRMProcessor(
        tokenizer,
        images,
        image_token=tokenizer.convert_ids_to_tokens(backbone.image_token_id(config)),
        dimensions=layout.dimensions,
        order="images_first",
        sequences="per_dimension",
        rubrics=rubrics,
    )
    for dimension, text in rubrics[layout.task].items():
        if spelled := [token for token in processor.tokenizer.get_added_vocab() if token in text]:
            raise JRMError(
                f"the prompt for {dimension} spells the token {spelled[0]}, which a JRM would read as plain text; it "
                "cannot be converted."
            )
    return processor, tokens


def _tokenizer(places: Sequence[str | Path]) -> PreTrainedTokenizerBase:
    place = next((place for place in places if find_file(place, "tokenizer_config.json") is not None), None)
    if place is None:
        raise JRMError(_nowhere("tokenizer_config.json", "tokenizer"))
    tokenizer = load_tokenizer(place)
    tokenizer.chat_template = next(filter(None, map(_chat_template, places)), None) or tokenizer.chat_template
    return tokenizer


def _chat_template(place: str | Path) -> str | None:
    """The template of a folder: in a file of its own, the processor's (as it was earlier), or the tokenizer's."""
    if (file := find_file(place, "chat_template.jinja")) is not None:
        return read_text(file)
    for name in ("chat_template.json", "tokenizer_config.json"):
        file = find_file(place, name)
        template = None if file is None else read_object(file).get("chat_template")
        if isinstance(template, str):
            return template
    return None


def _nowhere(file: str, what: str) -> str:
    return (
        f"there is no {file}, beside the weights or in the base: give the model that they were trained from, a folder "
        f"or hub name, with --base, for its {what}."
    )


# --- what is checked --------------------------------------------------------------------------------------------------


def _check_rows(ours: Weights, kept: int, tokens: int, source: Path, *, is_lora: bool) -> None:
    """The embeddings end with the reward token: these projects cut them to the tokenizer."""
    rows = ours[EMBEDDINGS].shape[0]
    if LM_HEAD in ours and ours[LM_HEAD].shape[0] != rows:
        raise JRMError(
            f"{source} has {rows} rows of embeddings and {ours[LM_HEAD].shape[0]} of lm_head; it is damaged."
        )
    if kept != tokens:
        raise JRMError(f"the tokenizer has tokens behind the reward token {REWARD_TOKEN}, {tokens - kept} of them.")
    if rows == kept or (is_lora and rows > kept):
        return
    if rows < kept:
        raise JRMError(
            f"{source} has embeddings of {rows} tokens and none of the reward token, which is token {kept - 1} of the "
            "tokenizer: it was trained without one (reward_token last or mean), or the tokenizer is another model's."
        )
    raise JRMError(
        f"{source} has embeddings of {rows} tokens, and the reward token is token {kept - 1}, not the last: it has "
        "several reward tokens (as VideoAlign has), of which a JRM knows one, or the tokenizer is another model's."
    )


def _check_weights(model: JRMForRewardModeling, ours: Weights, source: Path, names: str) -> None:
    """Raises a [`JRMError`] that names what does not fit by the other project's names."""
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        expected.pop(LM_HEAD, None)
    found = {key: tensor.shape for key, tensor in ours.items()}
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshapen": sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key]),
    }
    if not any(wrong.values()):
        return
    parts = []
    for kind, keys in wrong.items():
        shown = [
            to_theirs(key, names) + (f" {list(found[key])}, not {list(expected[key])}" if kind == "misshapen" else "")
            for key in keys[:12]
        ]
        if keys:
            parts.append(f"{kind}: {', '.join(shown)}" + (f" and {len(keys) - 12} more" if len(keys) > 12 else ""))
    raise JRMError(
        f"the weights in {source} are not those of its config ({'; '.join(parts)}); the checkpoint is damaged, or the "
        "base is another model."
    )


def _summary(layout: Layout, config: JRMConfig, processor: JRMProcessor, head: HeadNames, target: Path) -> list[str]:
    sentences = [
        f"{target}: {layout.title} over {config.backbone_config.model_type}, scores {', '.join(config.dimensions)} of "
        f"{layout.task} samples.",
        f"overall is the {config.overall_rule} of the dimensions, and its sigma is ours; rotary positions are "
        f"{config.rope_positions}; images have {processor.min_pixels:,} to {processor.max_pixels:,} pixels.",
        "It writes no critiques.",
    ]
    if head.outputs == 1:
        sentences.append("It has no sigma of its own: sigma is 1 everywhere and means nothing.")
    return sentences

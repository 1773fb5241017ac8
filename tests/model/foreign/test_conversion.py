"""Checkpoints of other projects become JRM folders with the same scores, and go back bit for bit."""

import json
import shutil
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from foreign_peers import HPSV3_END, PREFERENCE, REWARD_TOKEN, settings
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from jrm_plugin.errors import JRMError
from jrm_plugin.model.checkpoint import built_in_folder, load_config
from jrm_plugin.model.foreign import conversion
from jrm_plugin.model.foreign.conversion import convert, convert_back
from jrm_plugin.model.loading import load, start_from
from jrm_plugin.model.lora import lora_config
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer

PEERS = [("editreward", "qwen2_5_vl"), ("editreward", "qwen3_vl"), ("hpsv3", "qwen2_vl")]
INSTRUCTIONS = ["make the red circle blue", "  {move} the square 50% left,\n then right "]


def picture(seed: int, width: int = 40, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample_of(peer, instruction: str, seed: int = 0) -> tuple[Sample, list[Image.Image]]:
    if peer.name == "hpsv3":
        return Sample.generation(instruction, picture(seed)), [picture(seed)]
    return Sample.edit(picture(seed), instruction, picture(seed + 1)), [picture(seed), picture(seed + 1)]


@pytest.fixture(scope="module", params=PEERS, ids="-".join)
def peer(request, make_peer):
    return make_peer(*request.param)


@pytest.fixture(scope="module")
def converted(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert(peer.write(folder / "theirs"), folder / "ours", base=str(peer.base), prompts=peer.prompts)
    return folder / "ours"


def test_scores_are_the_peers_end_to_end(peer, converted):
    scorer = RewardScorer.from_pretrained(converted, device="cpu")
    for k, instruction in enumerate(INSTRUCTIONS):
        sample, images = sample_of(peer, instruction, 3 * k)
        score, theirs = scorer.score(sample), peer.scores(images, instruction)
        assert len(theirs) == len(scorer.dimensions)
        for name, (mu, log_sigma) in zip(scorer.dimensions, theirs, strict=True):
            assert score.mu[name] == pytest.approx(mu, abs=1e-5)
            assert score.sigma[name] == pytest.approx(np.exp(log_sigma), rel=1e-5)


def test_and_back_bit_for_bit(peer, converted, tmp_path):
    convert_back(converted, tmp_path / "back", peer.name)
    (file,) = (tmp_path / "back").iterdir()
    assert file.name == ("HPSv3.safetensors" if peer.name == "hpsv3" else "model.safetensors")
    back = load_file(file)
    assert back.keys() == peer.weights.keys()
    for name, weight in peer.weights.items():
        assert back[name].dtype == weight.dtype and torch.equal(back[name], weight), name


def test_and_back_after_it_was_loaded_and_saved(two_heads, tmp_path):
    converted_from(two_heads, two_heads.weights, tmp_path / "ours")
    model, processor = load(tmp_path / "ours")
    with torch.no_grad():  # as training would
        model.backbone.get_input_embeddings().weight[:5] += 1
        model.reward_head.heads[1][5].bias += 1
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    convert_back(tmp_path / "trained", tmp_path / "back", "editreward")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == two_heads.weights.keys()
    changed = {name for name in back if not torch.equal(back[name], two_heads.weights[name])}
    assert changed == {"model.language_model.embed_tokens.weight", "rm_heads.head_1.5.bias"}


def test_an_lm_head_that_is_tied_comes_back(hpsv3, tmp_path):
    weights = hpsv3.weights | {"lm_head.weight": hpsv3.weights[EMBEDDINGS].clone()}
    assert "backbone.lm_head.weight" not in converted_from(hpsv3, weights, tmp_path / "ours")
    convert_back(tmp_path / "ours", tmp_path / "back", "hpsv3")
    back = load_file(tmp_path / "back" / "HPSv3.safetensors")
    assert back.keys() == weights.keys() and torch.equal(back["lm_head.weight"], weights[EMBEDDINGS])
    weights["lm_head.weight"] += 1
    with pytest.raises(JRMError, match="has an lm_head of its own, and its config ties it"):
        converted_from(hpsv3, weights, tmp_path / "again")


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hpsv3(make_peer):
    return make_peer("hpsv3", "qwen2_vl")


@pytest.fixture(scope="module")
def two_heads(make_peer):
    return make_peer("editreward", "qwen2_5_vl")


def converted_from(peer, weights, target, source=None, **options):
    """The weights of the folder that is made of these."""
    source = source or target.with_name(f"{target.name}-theirs")
    if weights is not None:
        source.mkdir(exist_ok=True)
        save_file(weights, source / "model.safetensors")
    options = {"base": str(peer.base), "prompts": peer.prompts} | options
    convert(source, target, options.pop("name", "auto"), **options)
    return load_file(target / "model.safetensors")


def write_shards(folder, weights):
    names = {name: f"model-0000{k % 2 + 1}-of-00002.safetensors" for k, name in enumerate(weights)}
    for file in {*names.values()}:
        save_file({name: weights[name] for name in names if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


FILES = {
    "a bare pth": lambda folder, weights: torch.save(weights, folder / "model.pth"),
    "a pth with more": lambda folder, weights: torch.save({"model": weights}, folder / "final_model.pth"),
    "shards": write_shards,
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_weights_in_any_files(hpsv3, tmp_path, write):
    (tmp_path / "theirs").mkdir()
    write(tmp_path / "theirs", hpsv3.weights)
    expected = converted_from(hpsv3, hpsv3.weights, tmp_path / "expected")
    weights = converted_from(hpsv3, None, tmp_path / "ours", tmp_path / "theirs")
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_file_by_its_path_where_a_folder_holds_two(hpsv3, tmp_path):
    hpsv3.write(tmp_path)
    torch.save(hpsv3.weights, tmp_path / "model.pth")
    with pytest.raises(JRMError, match=r"holds model.pth and HPSv3.safetensors; give the file that is meant"):
        convert(tmp_path, tmp_path / "ours", base=str(hpsv3.base), prompts=hpsv3.prompts)
    converted_from(hpsv3, None, tmp_path / "ours", tmp_path / "HPSv3.safetensors")


class Hostile:
    def __reduce__(self):
        return print, ("this must not run",)


def test_no_pickle_runs(hpsv3, tmp_path, capsys):
    torch.save({"model": Hostile()}, tmp_path / "model.pth")
    with pytest.raises(JRMError, match="model.pth of .* cannot be used"):
        convert(tmp_path, tmp_path / "ours", base=str(hpsv3.base), prompts=hpsv3.prompts)
    assert "must not run" not in capsys.readouterr().out


def test_a_backbone_in_bfloat16_and_its_head_in_float32(two_heads, tmp_path):
    weights = {k: v if k.startswith("rm_") else v.bfloat16() for k, v in two_heads.weights.items()}
    converted_from(two_heads, weights, tmp_path / "ours")
    convert_back(tmp_path / "ours", tmp_path / "back", "editreward")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(back[name].dtype == weights[name].dtype and torch.equal(back[name], weights[name]) for name in weights)
    scorer = RewardScorer.from_pretrained(tmp_path / "ours", device="cpu", dtype=torch.bfloat16)
    assert scorer.model.reward_head.heads[0][0].weight.dtype == torch.float32


def test_files_beside_the_weights_are_taken_before_the_bases(hpsv3, backbone_folder, tmp_path):
    """A tokenizer that holds the reward token already, in a folder of its own, and a template as processors had it."""
    hpsv3.write(tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(hpsv3.base)
    tokenizer.add_special_tokens({"extra_special_tokens": [REWARD_TOKEN]}, replace_extra_special_tokens=False)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(tmp_path / "theirs" / "tokenizer")
    (tmp_path / "theirs" / "chat_template.json").write_text(json.dumps({"chat_template": template + "{# theirs #}"}))
    for file in ("config.json", "preprocessor_config.json"):
        shutil.copy(hpsv3.base / file, tmp_path / "theirs")
    converted_from(hpsv3, None, tmp_path / "ours", tmp_path / "theirs", base=None)
    processor = JRMProcessor.from_pretrained(tmp_path / "ours")
    assert processor.tokenizer.chat_template.endswith("{# theirs #}")
    assert processor.min_pixels == processor.max_pixels == 256 * 28 * 28


def test_a_config_as_transformers_wrote_it_when_the_peers_trained(hpsv3, tmp_path):
    hpsv3.write(tmp_path / "theirs")
    config = json.loads((hpsv3.base / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for name in ("model_type", "layer_types", "dtype", "use_sliding_window"):
        text.pop(name, None)
    text |= {"rope_theta": rope["rope_theta"], "vocab_size": 151936, "torch_dtype": "float32"}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat = config | text | {"transformers_version": "4.45.2", "architectures": ["Qwen2VLRewardModelBT"]}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(flat))
    converted_from(hpsv3, None, tmp_path / "ours", tmp_path / "theirs")
    sample, images = sample_of(hpsv3, "a red circle")
    score = RewardScorer.from_pretrained(tmp_path / "ours", device="cpu").score(sample)
    assert score.mu["human_preference"] == pytest.approx(hpsv3.scores(images, "a red circle")[0][0], abs=1e-5)


def test_the_rule_of_the_overall_score_is_the_runs_or_what_is_said(two_heads, tmp_path):
    two_heads.write(tmp_path / "theirs")
    settings(tmp_path / "theirs", pooling_strategy="min", rm_head_type="ranknet_multi_head", use_special_tokens=True)
    for rule, options in (("min", {}), ("sum", {"overall_rule": "sum"})):
        converted_from(two_heads, None, tmp_path / rule, tmp_path / "theirs", **options)
        assert load_config(tmp_path / rule).overall_rule == rule


def test_lora_adapters_are_merged_into_the_base(two_heads, tmp_path):
    """Adapters by peft, and beside them what else was trained: the heads, and the rows of tokens."""
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(two_heads.base)
    plain = {k: v for k, v in two_heads.weights.items() if not k.startswith("rm_")}
    base.resize_token_embeddings(len(plain["lm_head.weight"]), mean_resizing=False)
    base.load_state_dict(plain)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    others = {f"base_model.model.{k}": v for k, v in two_heads.weights.items() if k.startswith(("rm_", "lm_head"))}
    name = "model.language_model.embed_tokens.weight"
    others[f"base_model.model.{name}"] = two_heads.weights[name]
    torch.save(others, tmp_path / "theirs" / "non_lora_state_dict.pth")
    ours = converted_from(two_heads, None, tmp_path / "ours", tmp_path / "theirs")
    merged = model.merge_and_unload().state_dict()
    expected = converted_from(two_heads, {**two_heads.weights, **merged}, tmp_path / "expected")
    assert ours.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(ours[key], expected[key], atol=1e-6, rtol=1e-5)
    changed = "backbone.model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(ours[changed], two_heads.weights[changed.removeprefix("backbone.")], atol=1e-3)


# --- other heads ------------------------------------------------------------------------------------------------------


def test_a_single_head_asks_for_its_prompt(two_heads, tmp_path):
    weights = {k.replace("rm_heads.head_0", "rm_head"): v for k, v in two_heads.weights.items() if "head_1" not in k}
    with pytest.raises(JRMError, match="single head.* give --constant INSTRUCTION_EDIT_OVERALL or"):
        converted_from(two_heads, weights, tmp_path / "ours")
    converted_from(two_heads, weights, tmp_path / "ours", constant="INSTRUCTION_EDIT_OVERALL")
    scorer = RewardScorer.from_pretrained(tmp_path / "ours", device="cpu")
    peer = replace(two_heads, weights=weights, templates=(PREFERENCE,), heads=("rm_head",))
    sample, images = sample_of(peer, "make it red")
    assert scorer.score(sample).mu["human_preference"] == pytest.approx(
        peer.scores(images, "make it red")[0][0], abs=1e-5
    )


def test_a_head_that_both_dimensions_share(two_heads, tmp_path):
    weights = {k.replace("rm_heads.head_0", "rm_head"): v for k, v in two_heads.weights.items() if "head_1" not in k}
    (tmp_path / "theirs").mkdir()
    settings(tmp_path / "theirs", rm_head_type="ranknet_share_head")
    ours = converted_from(two_heads, weights, tmp_path / "ours", tmp_path / "theirs")
    assert torch.equal(ours["reward_head.heads.0.5.weight"], ours["reward_head.heads.1.5.weight"])
    convert_back(tmp_path / "ours", tmp_path / "back", "editreward")
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == weights.keys()
    ours["reward_head.heads.0.5.weight"] += 1
    save_file(ours, tmp_path / "ours" / "model.safetensors")
    with pytest.raises(
        JRMError, match=r"rm_head\.5\.weight is one weight of both dimensions, which were trained apart"
    ):
        convert_back(tmp_path / "ours", tmp_path / "again", "editreward")


def test_a_head_of_one_linear_map_without_sigma(hpsv3, tmp_path):
    weights = {k: v for k, v in hpsv3.weights.items() if not k.startswith("rm_")}
    weights["rm_head.weight"] = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    ours = converted_from(hpsv3, weights, tmp_path / "ours")
    head = {k: v for k, v in ours.items() if k.startswith("reward_head")}
    assert {k: list(v.shape) for k, v in head.items()} == {
        "reward_head.heads.0.0.weight": [2, 32],
        "reward_head.heads.0.0.bias": [2],
    }
    score = RewardScorer.from_pretrained(tmp_path / "ours", device="cpu").score(sample_of(hpsv3, "red")[0])
    assert score.sigma["human_preference"] == 1
    convert_back(tmp_path / "ours", tmp_path / "back", "hpsv3")
    back = load_file(tmp_path / "back" / "HPSv3.safetensors")
    assert back.keys() == weights.keys() and torch.equal(back["rm_head.weight"], weights["rm_head.weight"])


# --- what is refused --------------------------------------------------------------------------------------------------

EMBEDDINGS = "model.embed_tokens.weight"
WRONG = {
    "missing": (
        lambda w: w.pop("model.layers.1.self_attn.q_proj.bias"),
        r"missing: model\.layers\.1\.self_attn\.q_proj\.bias",
    ),
    "unexpected": (lambda w: w.update({"model.extra": torch.zeros(2)}), r"unexpected: model\.extra"),
    "misshapen": (
        lambda w: w.update({"visual.patch_embed.proj.weight": torch.zeros(2, 2)}),
        r"misshapen: visual\.patch_embed\.proj\.weight \[2, 2\], not \[32, 3, 2, 14, 14\]",
    ),
    "half a head": (lambda w: w.pop("rm_head.3.bias"), r"lacks weights of its head: rm_head\.3\.bias"),
    "more of a head": (lambda w: w.update({"rm_head.1.scale": torch.zeros(2)}), r"no place for: rm_head\.1\.scale"),
    "FiLM": (
        lambda w: w.update({"film_gen.0.weight": torch.zeros(2)}),
        r"film_gen between .* \(FiLM, as HPSv3\+\+ has\)",
    ),
    "no reward token": (lambda w: w.update({EMBEDDINGS: w[EMBEDDINGS][:-1].clone()}), "none of the reward token"),
    "several reward tokens": (
        lambda w: w.update({EMBEDDINGS: torch.cat([w[EMBEDDINGS], w[EMBEDDINGS][:2]])}),
        "several reward tokens",
    ),
    "four outputs": (lambda w: w.update({"rm_head.5.weight": torch.zeros(4, 16)}), "has 4 outputs"),
    "two namings": (
        lambda w: w.update({"model.visual.x": torch.zeros(2)}),
        r"mixes two ways to name weights, as in model\.v",
    ),
    "no head": (lambda w: [w.pop(k) for k in [*w] if k.startswith("rm_")], "no reward head of a known layout"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_weights_that_do_not_fit_are_named_as_the_peer_names_them(hpsv3, tmp_path, change, message):
    change(weights := dict(hpsv3.weights))
    with pytest.raises(JRMError, match=message):
        converted_from(hpsv3, weights, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


PROMPTS = {
    "no file": ([], r"prompts of HPSv3 are in its code .* give its hpsv3/dataset/data_collator_qwen.py with --prompts"),
    "another file": (["x = 1"], r"hold no text INSTRUCTION; give HPSv3's"),
    "no slot": (['INSTRUCTION = "judge"', HPSV3_END], r"INSTRUCTION must have one slot \{text_prompt\} and no other"),
    "two texts": (
        ['INSTRUCTION = "{text_prompt}"', 'INSTRUCTION = "a {text_prompt}"'],
        "INSTRUCTION is another text in",
    ),
    "an f-string": (['INSTRUCTION = f"{text_prompt}"', HPSV3_END], "hold no text INSTRUCTION"),
    "two rewards": (
        ['INSTRUCTION = "{text_prompt}"', HPSV3_END.replace("END", "<|Reward|>")],
        r"has 2 times the reward token <\|Reward\|>",
    ),
    "an added token": (['INSTRUCTION = "<|im_end|>{text_prompt}"', HPSV3_END], r"spells the token <\|im_end\|>"),
    "no Python": (["INSTRUCTION = = 1"], "cannot be read as Python"),
}


@pytest.mark.parametrize(("texts", "message"), PROMPTS.values(), ids=PROMPTS)
def test_prompts_that_cannot_be_used(hpsv3, tmp_path, texts, message):
    files = [tmp_path / f"{k}.py" for k in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    with pytest.raises(JRMError, match=message):
        converted_from(hpsv3, hpsv3.weights, tmp_path / "ours", prompts=files)


def test_what_a_base_is_for_is_said(hpsv3, tmp_path):
    hpsv3.write(tmp_path / "theirs")
    for file, message in (
        ("config.json", r"no config.json beside the weights.* with --base"),
        ("tokenizer_config.json", r"no tokenizer_config.json.* with --base, for its tokenizer"),
        ("preprocessor_config.json", r"no preprocessor_config.json.* with --base, for its image processor"),
    ):
        with pytest.raises(JRMError, match=message):
            converted_from(hpsv3, None, tmp_path / "ours", tmp_path / "theirs", base=None)
        for name in (file, "tokenizer.json", "chat_template.jinja"):
            shutil.copy(hpsv3.base / name, tmp_path / "theirs")


def test_only_what_was_converted_goes_back(hpsv3, tiny, tmp_path):
    with pytest.raises(JRMError, match="was not made by jrm convert"):
        convert_back(built_in_folder("jrm-tiny"), tmp_path / "back", "editreward")
    converted_from(hpsv3, hpsv3.weights, tmp_path / "ours")
    with pytest.raises(JRMError, match="was converted from hpsv3, and cannot be written as editreward"):
        convert_back(tmp_path / "ours", tmp_path / "back", "editreward")


# --- a converted checkpoint works everywhere --------------------------------------------------------------------------


def test_a_converted_checkpoint_scores_ranks_and_trains_further(two_heads, critiques, tmp_path, caplog):
    converted_from(two_heads, two_heads.weights, tmp_path / "ours")
    scorer, plain = (RewardScorer.from_pretrained(tmp_path / "ours", device="cpu", engine=e) for e in (None, "plain"))
    group = [Sample.edit(picture(0), "make it red", picture(k)) for k in (1, 2, 3)]
    for one, other in zip(scorer.score(group), plain.score(group), strict=True):
        assert one.mu == pytest.approx(other.mu, abs=1e-5)
    assert scorer.engine.features.misses == 4 and len(scorer.rank(group)) == 3
    with pytest.raises(JRMError, match="writes no critiques"):
        scorer.critique(group)
    assert not caplog.messages
    scorer.score(Sample.edit([picture(0), picture(1)], "make it red", picture(2)))
    assert "trained on at most 1 source images" in caplog.text
    model, processor = start_from(tmp_path / "ours")
    output = model(**processor(group[:1], [critiques]))  # with region tags, which the peer did not know
    assert output.critique_loss_T.isfinite().all()
    adapted = peft.get_peft_model(model, lora_config(processor, r=2))
    assert adapted(**processor(group[:1])).mu_SD.isfinite().all()


def test_verification_finds_a_wrong_weight(two_heads, tmp_path, monkeypatch):
    write = conversion.write_weights

    def wrong(file, weights):
        name = "backbone.model.language_model.layers.0.mlp.up_proj.weight"
        tensor = weights[name]
        write(file, {**weights, name: replace(tensor, read=lambda: tensor.read() * 1.01)})

    source = two_heads.write(tmp_path / "theirs")
    options = {"base": str(two_heads.base), "prompts": two_heads.prompts, "verified": True}
    assert "no difference above" in convert(source, tmp_path / "ours", **options)[-1]
    monkeypatch.setattr(conversion, "write_weights", wrong)
    with pytest.raises(JRMError, match="scores otherwise than the weights .* nothing was written"):
        convert(source, tmp_path / "wrong", **options)
    assert not (tmp_path / "wrong").exists()

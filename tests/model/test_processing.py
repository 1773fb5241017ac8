"""From samples to sequences: what stands where, what text can become, and what is refused."""

import json
import re
from functools import cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ByT5Tokenizer

from jrm_plugin.errors import JRMError
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import REWARD_TOKEN, JRMProcessor
from jrm_plugin.records.critiques import REGION_TAGS, Critique, EditRegion
from jrm_plugin.records.samples import DIMENSIONS, TASKS, Sample

EDGE = 16  # pixels of a token's edge in the tiny Qwen3-VL, in both directions
RUBRICS = {task: {name: f"judge {task} {name}" for name in DIMENSIONS} for task in TASKS}
FOLLOWING, QUALITY = DIMENSIONS
# Both kinds of tokenizer: `jrm-tiny`'s, and Qwen's own class with added tokens that are not special.
TOKENIZER_OF = pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"], ids=["tiny", "qwen"])


@pytest.fixture(scope="session")
def processor_of(backbone_folder):
    def make(family="qwen3_vl", order="images_first", sequences="joint", **layout):
        layout = {"rubrics": RUBRICS, "max_pixels": 64 * 64} | layout
        processor = JRMProcessor.from_backbone(backbone_folder(family), order=order, sequences=sequences, **layout)
        processor.image_processor.size["shortest_edge"] = EDGE * EDGE  # no image is scaled up
        return processor

    return make


@pytest.fixture(scope="session")
def shared_processor_of(processor_of):
    return cache(processor_of)


def image(tokens, height=EDGE):
    """An image that takes this many tokens of the tiny Qwen3-VL."""
    return Image.new("RGB", (EDGE * tokens, height), (tokens * 20, 100, 200))


def written(processor, ids):
    """A sequence as text, with `[n]` for an image of n tokens."""
    text = processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    shown = re.sub(
        r"<\|vision_start\|>((<\|image_pad\|>)+)<\|vision_end\|>",
        lambda found: f"[{len(found[1]) // len('<|image_pad|>')}]",
        text,
    )
    assert "image_pad" not in shown
    return shown


# --- the layout -------------------------------------------------------------------------------------------------------

HEAD, TAIL = "<|im_start|>user\n", "<|Reward|><|im_end|>\n<|im_start|>assistant\n"
BOTH = "judge edit instruction_following\njudge edit visual_quality\n"
ONE = ["judge edit instruction_following\n", "judge edit visual_quality\n"]


@pytest.mark.parametrize(
    ("order", "sequences", "turns"),
    [
        ("images_first", "joint", ["[2][3][1]" + BOTH + "make it red"]),
        ("rubric_first", "joint", [BOTH + "make it red[2][3][1]"]),
        ("images_first", "per_dimension", ["[2][3][1]" + rubric + "make it red" for rubric in ONE]),
        ("rubric_first", "per_dimension", [rubric + "make it red[2][3][1]" for rubric in ONE]),
    ],
)
def test_the_order_of_an_edit_with_several_sources(processor_of, order, sequences, turns):
    processor = processor_of(order=order, sequences=sequences)
    sample = Sample.edit([image(2), image(3)], "make it red", image(1))
    encoded = processor.encode(sample)
    assert [written(processor, sequence.prompt) for sequence in encoded] == [HEAD + turn + TAIL for turn in turns]
    assert [[i.tokens for i in sequence.images] for sequence in encoded] == [[2, 3, 1]] * len(turns)
    assert [sequence.dimension for sequence in encoded] == ([None] if sequences == "joint" else [0, 1])
    assert processor.sequences_per_sample == len(turns)


@pytest.mark.parametrize(
    ("sample", "images_first", "rubric_first"),
    [
        (Sample.generation("draw it", image(1)), "[1]{}draw it", "{}draw it[1]"),
        (Sample.text_response(image(2), "what is it?", "a cat"), "[2]{}what is it?\na cat", "{}what is it?[2]\na cat"),
        (Sample.text_response(None, "what is it?", "a cat"), "{}what is it?\na cat", "{}what is it?\na cat"),
    ],
)
def test_the_order_of_other_tasks(processor_of, sample, images_first, rubric_first):
    rubric = f"judge {sample.task} instruction_following\njudge {sample.task} visual_quality\n"
    for order, turn in (("images_first", images_first), ("rubric_first", rubric_first)):
        processor = processor_of(order=order)
        (sequence,) = processor.encode(sample)
        assert written(processor, sequence.prompt) == HEAD + turn.format(rubric) + TAIL


def test_a_system_turn_of_the_chat_template_stays(processor_of):
    processor = processor_of("qwen2_5_vl")
    (sequence,) = processor.encode(Sample.generation("draw it", image(1)))
    text = written(processor, sequence.prompt)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + HEAD)
    assert text.endswith("draw it" + TAIL)


def test_the_reward_token_closes_the_user_turn(processor_of, make_samples, family, order, sequences):
    processor = processor_of(family, order, sequences)
    for sample in make_samples(12):
        for sequence in processor.encode(sample):
            where = sequence.prompt.index(processor.reward_token_id)
            assert sequence.prompt.count(processor.reward_token_id) == 1
            assert written(processor, sequence.prompt[where:]) == TAIL


def test_several_text_blocks_are_joined_by_a_line(processor_of):
    processor = processor_of()
    blocks = [{"type": "text", "text": "make it red"}, {"type": "text", "text": "and move it"}]
    (sequence,) = processor.encode(Sample(blocks, [{"type": "image", "image": image(1)}]))
    assert "make it red\nand move it<|Reward|>" in written(processor, sequence.prompt)


def test_a_text_to_learn_is_one_sequence_without_a_rubric(processor_of, sequences):
    processor = processor_of(sequences=sequences)
    sample = Sample.edit(image(2), "what is here?", image(1))
    (sequence,) = processor.encode(sample, "a red circle")
    assert written(processor, sequence.prompt) == HEAD + "[2][1]what is here?" + TAIL
    assert written(processor, sequence.critique) == "a red circle<|im_end|>"
    assert sequence.dimension is None


# --- critiques --------------------------------------------------------------------------------------------------------


def test_critiques_are_the_assistant_turn(processor_of, critiques):
    sample = Sample.edit(image(2), "make it red", image(1))
    following, quality = critiques[FOLLOWING].to_json(), critiques[QUALITY].to_json()
    joint = processor_of().encode(sample, critiques)
    expected = f"instruction_following: {following}\nvisual_quality: {quality}<|im_end|>"
    assert [written(processor_of(), s.critique) for s in joint] == [expected]
    each = processor_of(sequences="per_dimension").encode(sample, critiques)
    assert [written(processor_of(), s.critique) for s in each] == [f"{following}<|im_end|>", f"{quality}<|im_end|>"]
    # A dimension without a critique has nothing to learn.
    each = processor_of(sequences="per_dimension").encode(sample, {QUALITY: critiques[QUALITY]})
    assert [written(processor_of(), s.critique) for s in each] == ["", f"{quality}<|im_end|>"]


def test_labels_are_exactly_the_critique_tokens(processor_of, make_samples, critiques, family, sequences):
    processor = processor_of(family, sequences=sequences)
    samples = make_samples(4)
    given_critiques = [critiques, None, {QUALITY: critiques[QUALITY]}, critiques]
    encoded = [s for sample, c in zip(samples, given_critiques, strict=True) for s in processor.encode(sample, c)]
    batch = processor(samples, given_critiques)
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    for row, (sequence, ids, mask, labels) in enumerate(
        zip(encoded, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ):
        start, end = len(sequence.prompt), len(sequence.prompt) + len(sequence.critique)
        assert ids[:end].tolist() == sequence.prompt + sequence.critique, row
        assert labels[start:end].tolist() == sequence.critique
        assert (labels[:start] == -100).all() and (labels[end:] == -100).all()
        assert mask.tolist() == [1] * end + [0] * (len(mask) - end)
        assert (ids[end:] == processor.tokenizer.pad_token_id).all()


def test_collate_without_labels_or_images(processor_of, critiques):
    processor = processor_of()
    encoded = processor.encode(Sample.text_response(None, "what is it?", "a cat"), critiques)
    assert set(processor.collate(encoded)) == {"input_ids", "attention_mask"}
    assert "dimension_ids" in processor_of(sequences="per_dimension")([Sample.generation("draw it", image(1))])


@TOKENIZER_OF
def test_region_tags_are_one_token_and_survive_decoding(processor_of, family):
    processor = processor_of(family)
    text = " ".join(REGION_TAGS)
    ids = processor.encode_critique(text)
    tags = [processor.tokenizer.convert_tokens_to_ids(tag) for tag in REGION_TAGS]
    assert len(set(tags)) == len(REGION_TAGS)
    assert [i for i in ids if i in tags] == tags
    assert ids[-1] == processor.tokenizer.eos_token_id
    assert processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    # `<|bbox_10|>` is no tag: it stays the text that it is.
    ids = processor.encode_critique("<|bbox_10|>")
    assert not set(ids) & set(tags)
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "<|bbox_10|>"


def test_region_tags_in_a_rubric_are_tokens(processor_of):
    rubrics = {"generation": {FOLLOWING: "point with <|bbox_0|>", QUALITY: "or <|global|>"}}
    processor = processor_of(rubrics=rubrics)
    (sequence,) = processor.encode(Sample.generation("draw <|bbox_0|> <|global|>", image(1)))
    for tag in ("<|bbox_0|>", "<|global|>"):  # once, from the rubric; the instruction's are text
        assert sequence.prompt.count(processor.tokenizer.convert_tokens_to_ids(tag)) == 1


# --- templates with a slot --------------------------------------------------------------------------------------------

TEMPLATE = "\njudge it  \nthe request: {instruction}\n\nrate it: "


@TOKENIZER_OF
@pytest.mark.parametrize("instruction", ["make it red", " {x} two  words ", "{instruction}"])
def test_a_filled_template_is_encoded_as_one_string(processor_of, family, instruction):
    rubrics = {"edit": {FOLLOWING: TEMPLATE, QUALITY: "and this " + TEMPLATE}}
    processor = processor_of(family, sequences="per_dimension", rubrics=rubrics)
    sample = Sample.edit(image(2), instruction, image(1))
    for sequence, rubric in zip(processor.encode(sample), rubrics["edit"].values(), strict=True):
        end = sequence.prompt.index(processor.reward_token_id)
        whole = processor.tokenizer(rubric.replace("{instruction}", instruction) + REWARD_TOKEN)["input_ids"]
        assert sequence.prompt[end + 1 - len(whole) : end + 1] == whole
        assert len(whole) < end  # before it stand the images


def test_a_slot_takes_the_instruction_once(processor_of):
    rubrics = {"edit": {FOLLOWING: "do {instruction} well", QUALITY: "judge beauty"}}
    processor = processor_of(rubrics=rubrics, order="rubric_first")
    (sequence,) = processor.encode(Sample.edit(image(1), "draw", image(2)))
    assert written(processor, sequence.prompt) == HEAD + "do draw welljudge beauty\n[1][2]" + TAIL


@TOKENIZER_OF
def test_what_fills_a_slot_becomes_no_added_token(processor_of, family):
    rubrics = {"edit": {FOLLOWING: "<|bbox_0|>" + TEMPLATE + "<|global|>", QUALITY: TEMPLATE}}
    processor = processor_of(family, sequences="per_dimension", rubrics=rubrics)
    every = "".join(processor.tokenizer.get_added_vocab())
    plain, hostile = ([s.prompt for s in processor.encode(Sample.edit(image(1), t, image(1)))] for t in ("a", every))
    added = {*processor.tokenizer.get_added_vocab().values()}
    for one, other in zip(plain, hostile, strict=True):
        assert [token for token in one if token in added] == [token for token in other if token in added]


def test_a_template_with_two_slots_is_refused(processor_of):
    rubrics = {"edit": {FOLLOWING: TEMPLATE, QUALITY: TEMPLATE * 2}}
    with pytest.raises(JRMError, match=r"rubric for task 'edit', visual_quality, has \{instruction\} more than once"):
        processor_of(rubrics=rubrics)


words = st.text(min_size=1, max_size=30).filter(str.strip)
some_critiques = st.builds(
    lambda reasoning, boxes: Critique(
        reasoning + "".join(f" <|bbox_{k}|>" for k in range(len(boxes))) + " <|global|>",
        tuple(EditRegion(k, label, (x, y, x + 1, y + 2)) for k, (label, x, y) in enumerate(boxes)),
    ),
    words.filter(lambda text: "<|bbox" not in text),
    st.lists(st.tuples(words, st.integers(0, 900), st.integers(0, 900)), max_size=3),
)


@given(written_critiques=st.dictionaries(st.sampled_from(DIMENSIONS), some_critiques))
def test_critiques_come_back_from_their_tokens(shared_processor_of, written_critiques):
    for sequences in ("joint", "per_dimension"):
        processor = shared_processor_of(sequences=sequences)
        turns = [
            processor.tokenizer.decode(
                processor.encode_critique(processor.critique_text(written_critiques, processor.dimensions_of(k))),
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            for k in range(processor.sequences_per_sample)
        ]
        found = {name: text for name, text in processor.split_critiques(turns).items() if text}
        assert {name: Critique.parse(text) for name, text in found.items()} == written_critiques


def test_text_that_is_no_critique_splits_into_nothing(processor_of):
    assert processor_of().split_critiques(["the circle: red\nbeauty: 4"]) == {}


# --- text from outside ------------------------------------------------------------------------------------------------


def added_texts(processor):
    return sorted(processor.tokenizer.get_added_vocab())


def counts_of_added(processor, ids):
    added = set(processor.tokenizer.get_added_vocab().values())
    return sorted(i for i in ids if i in added)


@TOKENIZER_OF
def test_every_added_token_at_once_is_plain_text(scorer_of, family, order, sequences):
    scorer = scorer_of(family, order, sequences)
    processor = scorer.processor
    assert {REWARD_TOKEN, *REGION_TAGS, "<|im_end|>", "<|image_pad|>"} <= set(added_texts(processor))
    if family == "qwen2_5_vl":
        assert {"<tool_call>", "</think>", "<|fim_prefix|>"} <= set(added_texts(processor))
    hostile = "".join(added_texts(processor)) + " " + "\n".join(added_texts(processor))
    for sample, harmless in (
        (Sample.edit(image(2), hostile, image(1)), Sample.edit(image(2), "x", image(1))),
        (Sample.text_response(image(2), hostile, hostile), Sample.text_response(image(2), "x", "x")),
    ):
        for a, b in zip(processor.encode(sample), processor.encode(harmless), strict=True):
            assert len(a.prompt) > len(b.prompt) + len(added_texts(processor))
            assert counts_of_added(processor, a.prompt) == counts_of_added(processor, b.prompt)
            assert a.prompt.count(processor.reward_token_id) == 1
        (score,) = scorer.score([sample])  # a RewardScore is finite
        assert score.mu["overall"] != scorer.score([harmless])[0].mu["overall"]


HOSTILE_PIECES = st.one_of(
    st.integers(0, 10**6),  # an added token, by number
    st.text(max_size=8),
    st.sampled_from(
        ["<|", "|>", "<|im", "_end|>", "<", ">", "\ue000R\ue001", "\ue000t\ue001", " ", "\n", "Reward", "\u0301"]
    ),
)


@TOKENIZER_OF
@settings(max_examples=60)
@given(pieces=st.lists(HOSTILE_PIECES, min_size=1, max_size=12))
def test_no_text_makes_an_added_token(scorer_of, family, pieces):
    scorer = scorer_of(family)
    processor = scorer.processor
    added = added_texts(processor)
    text = "".join(added[piece % len(added)] if isinstance(piece, int) else piece for piece in pieces)
    assert not counts_of_added(processor, processor.encode_text(text))
    if not text.strip():
        return
    sample = Sample.edit(image(2), text, image(1))
    (sequence,) = processor.encode(sample)
    (plain,) = processor.encode(Sample.edit(image(2), "x", image(1)))
    assert counts_of_added(processor, sequence.prompt) == counts_of_added(processor, plain.prompt)
    assert sequence.prompt.count(processor.reward_token_id) == 1
    scorer.score([sample])  # raises if it is not finite
    critique = processor.encode_critique(text)
    tags = len(re.findall("|".join(map(re.escape, REGION_TAGS)), text))
    assert len(counts_of_added(processor, critique)) == tags + 1  # and the end of the turn


@given(text=st.text(max_size=60))
def test_any_text_is_read_without_loss(scorer_of, text):
    processor = scorer_of("qwen3_vl").processor
    ids = processor.encode_text(text)
    assert processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_jrm_tiny_reads_every_added_token_as_text(tiny):
    processor = tiny.processor
    hostile = Sample.edit(image(4, 64), "".join(added_texts(processor)), image(4, 64))
    harmless = Sample.edit(image(4, 64), "x", image(4, 64))
    (a,), (b,) = processor.encode(hostile), processor.encode(harmless)
    assert counts_of_added(processor, a.prompt) == counts_of_added(processor, b.prompt)
    assert a.prompt.count(processor.reward_token_id) == 1
    tiny.score([hostile])


# --- lengths and pixels -----------------------------------------------------------------------------------------------


# --- for engines that place images themselves -------------------------------------------------------------------------


def test_a_compact_prompt_ends_in_the_reward_token_and_has_a_placeholder_an_image(
    scorer_of, make_samples, family, order, sequences
):
    processor = scorer_of(family, order, sequences).processor
    for sequence in (sequence for sample in make_samples(12) for sequence in processor.encode(sample)):
        compact, counts = processor.compact_prompt(sequence), iter([image.tokens for image in sequence.images])
        whole = [id for id in compact for _ in range(next(counts) if id == processor.image_token_id else 1)]
        assert compact[-1] == processor.reward_token_id and whole == sequence.prompt[: len(whole)]
        assert compact.count(processor.image_token_id) == len(sequence.images)
        assert processor.is_prompt(compact) and processor.is_prompt(whole)


@TOKENIZER_OF
@settings(max_examples=40)
@given(data=st.data())
def test_a_prompt_that_was_cut_off_or_has_a_further_token_is_none(scorer_of, make_samples, family, data):
    processor = scorer_of(family).processor
    ids = processor.compact_prompt(processor.encode(make_samples(6)[data.draw(st.integers(0, 5))])[0])
    start = data.draw(st.integers(0, len(ids)))
    assert not processor.is_prompt(ids[: data.draw(st.integers(0, len(ids) - 1))])
    assert not processor.is_prompt(ids[start:]) or start == 0
    added = data.draw(st.sampled_from(sorted({*processor.tokenizer.get_added_vocab().values()})))
    place = data.draw(st.integers(0, len(ids)))
    neighbours = ids[max(place - 1, 0) : place + 1]
    if not added == processor.image_token_id in neighbours:  # placeholders of one image
        assert not processor.is_prompt([*ids[:place], added, *ids[place:]])
    assert not processor.is_prompt([*ids, data.draw(st.integers(0, len(processor.tokenizer) - 1))])


@settings(max_examples=25)
@given(sizes=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 150)), min_size=1, max_size=3), data=st.data())
def test_sequence_length_is_the_encoded_length(shared_processor_of, critiques, sizes, data):
    family = data.draw(st.sampled_from(["qwen3_vl", "qwen2_vl"]))
    sequences = data.draw(st.sampled_from(["joint", "per_dimension"]))
    processor = shared_processor_of(family, sequences=sequences)
    *sources, edited = [Image.new("RGB", size) for size in sizes]
    sample = Sample.edit(sources, data.draw(words), edited)
    for given_critiques in (None, {}, critiques, {QUALITY: critiques[QUALITY]}, "a text to learn"):
        for k, sequence in enumerate(processor.encode(sample, given_critiques)):
            length = processor.sequence_length(sample, k, given_critiques)
            assert length == len(sequence.prompt) + len(sequence.critique)
    # The placeholders are as many as the patches that the image processor makes.
    batch = processor([sample])
    merged = batch["image_grid_thw"].prod(1).sum() // 4
    per_sequence = (batch["input_ids"] == processor.image_token_id).sum(1)
    assert per_sequence.tolist() == [merged // processor.sequences_per_sample] * processor.sequences_per_sample


def test_lengths_follow_a_photograph_that_is_turned_when_opened(processor_of, tmp_path):
    processor = processor_of()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (64, 32)).save(tmp_path / "turned.jpg", exif=exif)
    sample = Sample.generation("draw it", tmp_path / "turned.jpg")
    (sequence,) = processor.encode(sample)
    assert sequence.images[0].grid_thw.tolist() == [1, 8, 4]
    assert processor.sequence_length(sample, 0, None) == len(sequence.prompt)
    assert processor([sample])["image_grid_thw"].tolist() == [[1, 8, 4]]


def test_max_pixels_bounds_every_image(processor_of, backbone_folder, tmp_path):
    processor = processor_of(max_pixels=8 * EDGE * EDGE)
    large, small = Image.new("RGB", (400, 200)), image(3)
    assert processor.image_tokens(*large.size) == 8 and processor.image_tokens(*small.size) == 3
    assert processor([Sample.edit(large, "x", small)])["image_grid_thw"].prod(1).tolist() == [8 * 4, 3 * 4]
    processor.save_pretrained(tmp_path)
    assert JRMProcessor.from_pretrained(tmp_path).max_pixels == 8 * EDGE * EDGE
    assert JRMProcessor.from_pretrained(tmp_path, max_pixels=4 * EDGE * EDGE).image_tokens(*large.size) <= 4
    processor.max_pixels = 2 * EDGE * EDGE
    assert processor.image_tokens(*large.size) == 2
    with pytest.raises(JRMError, match="max_pixels=255"):
        processor.max_pixels = EDGE * EDGE - 1


def test_what_the_caller_gave_stays_the_callers(processor_of, qwen_tokenizer):
    image_processor = processor_of().image_processor
    tokens, size = len(qwen_tokenizer), dict(image_processor.size)
    processor = JRMProcessor(qwen_tokenizer, image_processor, image_token="<|image_pad|>", max_pixels=4 * EDGE * EDGE)
    smaller = processor.with_max_pixels(2 * EDGE * EDGE)
    assert (smaller.max_pixels, processor.max_pixels) == (2 * EDGE * EDGE, 4 * EDGE * EDGE)
    assert (len(qwen_tokenizer), image_processor.size) == (tokens, size)


def test_pixel_bounds_of_an_older_hub_file(backbone_folder, tmp_path):
    # Qwen2-VL's and Qwen2.5-VL's files on the hub hold min_pixels and max_pixels instead of a size.
    processor = JRMProcessor.from_backbone(backbone_folder("qwen2_vl"))
    assert processor.max_pixels == 200_704  # the paper's (appendix B.1), whatever the backbone's
    processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    content = json.loads(file.read_text())
    del content["size"]
    file.write_text(json.dumps(content | {"min_pixels": 28 * 28, "max_pixels": 10 * 28 * 28}))
    loaded = JRMProcessor.from_pretrained(tmp_path)
    assert loaded.max_pixels == 10 * 28 * 28
    assert loaded.image_tokens(600, 600) == 9
    assert loaded.image_tokens(28, 28) == 1


def test_images_are_read_alike_from_pil_path_and_bytes(processor_of, make_samples, tmp_path):
    processor = processor_of()
    picture = make_samples(5)[4].response_images[0]
    picture.save(tmp_path / "a.png")
    sources = (picture, tmp_path / "a.png", (tmp_path / "a.png").read_bytes())
    batches = [processor([Sample.generation("draw it", source)]) for source in sources]
    for batch in batches[1:]:
        assert all(torch.equal(batch[name], batches[0][name]) for name in batches[0])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_source_that_a_batch_shares_is_encoded_once(processor_of, tmp_path):
    processor = processor_of()
    source, *edits = (str(tmp_path / f"{name}.png") for name in "sab")
    for path in (source, *edits):
        image(1).save(path)
    samples = [Sample.edit(source, "make it red", edited) for edited in edits]
    with patch.object(JRMProcessor, "encode_image", autospec=True, side_effect=JRMProcessor.encode_image) as spy:
        batch = processor(samples)
    assert [call.args[1] for call in spy.call_args_list] == [source, *edits]
    alone = processor.collate([sequence for sample in samples for sequence in processor.encode(sample)])
    assert all(batch[name].equal(alone[name]) for name in alone)


def test_an_unknown_layout(backbone_folder):
    for layout in ({"order": "edited_first"}, {"sequences": "separate"}):
        with pytest.raises(JRMError, match="unknown layout"):
            JRMProcessor.from_backbone(backbone_folder("qwen3_vl"), **layout)


def test_a_rubric_that_is_missing(backbone_folder, processor_of):
    with pytest.raises(JRMError, match="'edit' have no text for dimension beauty"):
        JRMProcessor.from_backbone(backbone_folder("qwen3_vl"), dimensions=[FOLLOWING, "beauty"], rubrics=RUBRICS)
    processor = processor_of(rubrics={"edit": RUBRICS["edit"]})
    with pytest.raises(JRMError, match="no rubric for task 'generation'"):
        processor.encode(Sample.generation("draw it", image(1)))


def test_a_tokenizer_that_cannot_be_used(processor_of, qwen_tokenizer):
    image_processor = processor_of().image_processor
    with pytest.raises(JRMError, match="must be a fast one with a chat template"):
        JRMProcessor(ByT5Tokenizer(), image_processor, image_token="<|image_pad|>")


def test_a_chat_template_that_moves_images_is_refused(processor_of):
    processor = processor_of(order="rubric_first")
    processor.tokenizer.chat_template = (
        "{% for b in messages[0].content if b.type == 'image' %}<|image_pad|>{% endfor %}"
        "{% for b in messages[0].content if b.type == 'text' %}{{ b.text }}{% endfor %}"
    )
    with pytest.raises(JRMError, match="does not keep the order"):
        processor.encode(Sample.generation("draw it", image(1)))


def test_a_layout_file_that_is_broken(processor_of, tmp_path):
    processor_of().save_pretrained(tmp_path)
    (tmp_path / "jrm_processor.json").write_text("{")
    with pytest.raises(JRMError, match="jrm_processor.json, line 1: not valid JSON"):
        JRMProcessor.from_pretrained(tmp_path)


def test_an_image_that_cannot_be_opened(processor_of, tmp_path):
    with pytest.raises(JRMError, match="missing.png"):
        processor_of().encode(Sample.edit(image(1), "x", tmp_path / "missing.png"))


def test_a_processor_needs_no_model_to_be_loaded(processor_of, scorer_of, tmp_path):
    # And the other way round: the processor's folder alone is no checkpoint.
    processor_of().save_pretrained(tmp_path)
    assert JRMProcessor.from_pretrained(tmp_path).rubrics == RUBRICS
    with pytest.raises(JRMError):
        JRMForRewardModeling.from_pretrained(tmp_path)

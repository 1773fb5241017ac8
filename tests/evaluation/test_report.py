"""The report of made-up numbers: complete, in one file, and safe against what users write."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.drawing import BOXES_SIDE, draw_boxes, enlarged
from jrm_plugin.evaluation.metrics import accuracy_difference, effective_rank, proportion
from jrm_plugin.evaluation.pairs import PairResult, summarize
from jrm_plugin.evaluation.report import duration, reasoning_html, write_report
from jrm_plugin.records.critiques import Critique, EditRegion, UnparsedCritique
from jrm_plugin.records.scores import RewardScore

DIMENSIONS = ("instruction_following", "visual_quality")
GROUPS = {
    "failure": {"title": "Failure of one candidate", "column": "Failure", "keys": ("failure1", "failure2")},
    "edit": {"title": "Kind of edit", "column": "Edit", "keys": ("edit",)},
    "weather": {"title": "Weather of the day", "column": "Weather", "keys": ("weather",)},  # of no pair
}


def scene(colour="red", shift=0) -> Image.Image:
    image = Image.new("RGB", (48, 48), (235, 235, 235))
    draw = ImageDraw.Draw(image)
    draw.ellipse([17 + shift, 1, 30 + shift, 14], fill=colour)
    draw.rectangle([33, 33, 46, 46], fill=(50, 80, 230))
    return image


def made_up_summary(seed: int, n: int = 300) -> dict:
    rng = np.random.default_rng(seed)

    def score(quality):
        mu = dict(zip(DIMENSIONS, rng.normal(quality, 0.8), strict=True))
        return RewardScore(mu=mu, sigma=dict(zip(DIMENSIONS, rng.uniform(0.3, 0.9, 2), strict=True)))

    results = []
    for _ in range(n):
        chosen, rejected = score((1.2, 1.5)), score((0, 0))
        margin = chosen.mu["overall"] - rejected.mu["overall"]
        results.append(
            PairResult(
                labels={"overall": 1, **{name: int(rng.integers(0, 2)) for name in DIMENSIONS}},
                chosen=chosen,
                rejected=rejected,
                win_probability={"overall": 1 / (1 + np.exp(-margin))},
                info={
                    "edit": str(rng.choice(["recolour", "remove", "add", "move"])),
                    "failure1": "none",
                    "failure2": str(rng.choice(["ignored", "wrong_object", "wrong_value", "over_edit", "partial"])),
                },
            )
        )
    return summarize(results, GROUPS)


def made_up_log(first: float, last: float, steps: int = 400, alpha: float = 0.7) -> list[dict]:
    rng = np.random.default_rng(0)
    log = []
    for step in range(10, steps + 1, 10):
        level = last + (first - last) * np.exp(-3 * step / steps)
        row = {"step": step, "epoch": step / steps, "loss": level, "rank_loss": level + rng.normal(0, 0.05)}
        row["accuracy/overall"] = 1 - level / 2 + rng.normal(0, 0.02)
        if alpha:
            row["critique_loss"] = level / 2 + rng.normal(0, 0.02)
        log.append(row)
        if step % 100 == 0:
            held = {"eval_heldout_rank_loss": level, "eval_heldout_accuracy/overall": 1 - level / 2}
            log.append({"step": step, **held, "eval_heldout_critique_loss": level / 2})
    return log


def made_up_report(compare: bool = True) -> dict:
    rng = np.random.default_rng(0)
    rank = effective_rank(rng.standard_normal((120, 24)) * np.exp(-0.12 * np.arange(24)), bootstrap=20)
    low_rank = effective_rank(rng.standard_normal((120, 24)) * np.exp(-0.3 * np.arange(24)), bootstrap=20)
    region = EditRegion(0, "red circle", (333, 0, 667, 333))
    following = Critique("<|bbox_0|> the red circle is still red <|global|> the rest is unchanged", (region,))
    summary = made_up_summary(0)
    share = proportion(180, 200)

    def score(a, b):
        return RewardScore(mu=dict(zip(DIMENSIONS, (a, b), strict=True)), sigma=dict.fromkeys(DIMENSIONS, 0.4))

    report = {
        "title": "Joint Reward Modeling on ShapeEdits",
        "lead": "A model of 0.9 million parameters, trained from scratch on 3,000 pairs, judges 300 it never saw.",
        "facts": {"training pairs": 3000, "held-out pairs": 300, "parameters": 912345, "alpha": 0.7, "device": "cpu"},
        "stages": [
            {
                "name": "language warm start",
                "log": [{"step": s, "critique_loss": 4 / (1 + s / 40)} for s in range(10, 310, 10)],
            },
            {"name": "joint", "log": made_up_log(1.2, 0.25), "note": "The loss jumps, for a reason."},
        ],
        "summary": summary,
        "critique_quality": {
            "parsed": share,
            "right": proportion(123, 200),
            "by_dimension": {
                name: {part: share for part in ("parsed", "label", "box", "finding", "global", "whole")}
                | {"box_iou": 0.71}
                for name in DIMENSIONS
            },
        },
        "effective_rank": rank,
        "ranked": [
            {
                "instruction": "make the red circle green",
                "sources": [scene()],
                "candidates": [
                    {"image": scene(), "score": score(-1.4, 1.2), "note": "ignored, clean", "data_score": 5},
                    {"image": scene("green"), "score": score(1.6, 1.3), "note": "no failure, clean", "data_score": 8},
                    {
                        "image": scene("purple"),
                        "score": score(-0.2, 1.1),
                        "note": "wrong value, clean",
                        "data_score": 6,
                    },
                    {
                        "image": scene("green", 9),
                        "score": score(0.6, -0.9),
                        "note": "over-edit, blur",
                        "data_score": 5.5,
                    },
                ],
            }
        ],
        "critiques": [
            {
                "instruction": "make the red circle green",
                "sources": [scene()],
                "image": scene(),
                "critiques": {"instruction_following": following, "visual_quality": Critique("the image is clean")},
                "expected": {"instruction_following": following, "visual_quality": Critique("the image is blurred")},
            },
            {
                "instruction": "<script>alert('&')</script> & \"$x^2\" <|bbox_0|>",
                "sources": [],
                "image": scene(shift=5),
                "critiques": {"visual_quality": UnparsedCritique('{"reasoning": <b>no', "not a valid critique: <i>")},
            },
        ],
        "timings": {"data": 8.2, "language warm start": 63.4, "joint training": 151.0, "evaluation": 12.5},
        "versions": {"jrm-plugin": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "seed": 7,
        "command": "jrm demo --seed 7 --output demo-output",
    }
    if compare:
        right = rng.integers(0, 2, 300)
        report["comparison"] = {
            "arms": [
                {"name": "alpha = 0.7", "log": report["stages"][1]["log"], "summary": summary, "effective_rank": rank},
                {
                    "name": "alpha = 0",
                    "log": made_up_log(1.3, 0.3, alpha=0),
                    "summary": made_up_summary(1),
                    "effective_rank": low_rank,
                },
            ],
            "accuracy_difference": {
                name: accuracy_difference(right, np.where(rng.random(300) < 0.1, 1 - right, right))
                for name in (*DIMENSIONS, "overall")
            },
        }
    return report


class Page(HTMLParser):
    """What a browser would see: the tags, what they refer to, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.references, self.ids, self.open, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.references += [values[key] for key in ("src", "srcset", "href", "data", "action") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in ("img", "meta", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    path = write_report(folder, made_up_report())
    return folder, path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(written):
    _, text = written
    page = Page(text)
    assert not page.open, "every tag is closed"
    within = {url.removeprefix("#") for url in page.references if url.startswith("#")}
    assert within and within <= set(page.ids), "the contents lead to what is there"
    pictures = [url for url in page.references if not url.startswith("#")]
    assert len(pictures) > 20 and all(url.startswith("data:image/png;base64,") for url in pictures)
    for reference in pictures:
        Image.open(io.BytesIO(base64.b64decode(reference.partition(",")[2]))).verify()
    assert not re.search(r"https?://|file:|@import|url\(", text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_every_section_is_there_with_its_numbers(written):
    _, text = written
    page = Page(text)
    sections = ("ranking", "critiques", "accuracy", "calibration", "training", "comparison", "representation", "making")
    assert [name for name in page.ids if name in sections] == list(sections)
    overall = made_up_summary(0)["accuracy"]["overall"]
    assert f"{100 * overall['value']:.1f} %" in page.text
    assert f"n = {overall['n']}" in page.text
    for words in ("both start from the same language warm start", "jrm demo --seed 7", "2 min 31 s", "912,345"):
        assert words in page.text
    for words in ("Kind of edit", "recolour", "Failure of one candidate", "wrong object"):
        assert words in page.text
    assert "Weather" not in page.text
    assert "1.45 ± 0.28" in page.text  # mean of 1.6 and 1.3, sqrt(0.4² + 0.4²) / 2


def test_candidates_stand_best_first(written):
    notes = re.findall(r'<div class="note">(.*?)</div>', written[1])
    assert [note.split(",")[0] for note in notes] == ["no failure", "wrong value", "ignored", "over-edit"]


def test_beside_the_models_order_stands_that_of_the_data(written):
    places = re.findall(r'<div class="place">(\d)<span class="(yes|no)">data: (.*?) (.)</span>', written[1])
    assert places == [("1", "yes", "1", "✓"), ("2", "yes", "2", "✓"), ("3", "no", "4", "✗"), ("4", "no", "3", "✗")]
    assert "2 of 4 places are as the data say" in written[1]


def test_bars_show_zero_and_the_ends_of_their_scale(written):
    ends = re.search(r'<div class="ends".*?>(.*?)</div>', written[1])[1]
    assert re.findall(r">([^<]+)</span>", ends) == ["−2", "0", "2"]
    zeros = set(re.findall(r'<s style="left:(.*?)%"', written[1]))
    assert zeros == {"50.0"}


def test_captions_and_tiles_speak_of_what_is_there(written, tmp_path):
    tile = r"critiques that are {}</span><b>{} %</b>"
    assert "dots held-out pairs" in written[1] and "The loss jumps, for a reason." in written[1]
    assert re.search(tile.format("right", "61.5"), written[1])
    report = made_up_report(compare=False)
    for row in report["stages"][1]["log"]:
        for name in [name for name in row if name.startswith("eval_")]:
            del row[name]
    for candidate in report["ranked"][0]["candidates"]:
        candidate["data_score"] = candidate["data_score"] // 1  # 5, 8, 6 and 5
    report["critique_quality"]["right"] = proportion(0, 0)  # the pairs have no critiques to compare with
    text = write_report(tmp_path, report).read_text(encoding="utf-8")
    assert "Thin lines are training batches, dashed lines" in text, "there are no dots"
    assert text.count("data: 3–4 ✓") == 2, "what the data call equal shares its places"
    assert re.search(tile.format("valid", "90.0"), text)


def test_what_users_and_models_write_is_text(written):
    _, text = written
    page = Page(text)
    assert "<script" not in text and "<b>no" not in text
    assert "<script>alert('&')</script> & \"$x^2\" <|bbox_0|>" in page.text
    assert '{"reasoning": <b>no' in page.text and "not a valid critique: <i>" in page.text


def test_the_pictures_lie_beside_the_page(written):
    folder, _ = written
    names = {path.name for path in folder.iterdir()}
    assert {
        "report.html",
        "ranked_1.png",
        "critique_1.png",
        "critique_2.png",
        "accuracy_by_dimension.png",
        "accuracy_by_edit.png",
        "accuracy_by_failure.png",
        "calibration_overall.png",
        "training_rank_loss.png",
        "training_critique_loss.png",
        "spectrum_raw.png",
    } <= names
    for path in folder.glob("*.png"):
        Image.open(path).verify()


def test_a_report_without_the_optional_parts_does_not_speak_of_them(tmp_path):
    report = made_up_report(compare=False)
    del report["effective_rank"], report["critique_quality"]
    report["stages"], report["ranked"] = [], []
    report["critiques"] = [report["critiques"][0] | {"image": scene().resize((1600, 1200))}]
    report["summary"] |= {"groups": {}}
    page = Page(write_report(tmp_path, report).read_text(encoding="utf-8"))
    assert "accuracy" in page.ids and "making" in page.ids
    assert not {"comparison", "representation", "training", "ranking"} & set(page.ids)
    assert "same language warm start" not in page.text and "effective rank" not in page.text
    assert Image.open(tmp_path / "critique_1.png").size == (800, 600), "photographs are reduced for the page"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JRMError, match="cannot be written to .*file"):
        write_report(tmp_path / "file", made_up_report(compare=False))


def test_durations_and_tags():
    assert [duration(s) for s in (0.04, 59.9, 151, 3700)] == ["0.0 s", "59.9 s", "2 min 31 s", "1 h 01 min"]
    text = reasoning_html("<|bbox_1|> a<b <|global|> fine")
    assert "a&lt;b" in text and ">1</span>" in text and "whole image" in text and "bbox" not in text


def test_boxes_are_drawn_where_the_critique_says():
    critique = Critique("<|bbox_0|> x", (EditRegion(0, "red circle", (500, 500, 1000, 1000)),))
    plain, drawn = enlarged(scene(), BOXES_SIDE), draw_boxes(scene(), critique)
    assert drawn.size == plain.size == (672, 672)
    changed = np.argwhere((np.asarray(drawn) != np.asarray(plain)).any(-1))
    # From the middle to the last pixel, and above the box its name.
    assert changed.max(0).tolist() == [671, 671]
    assert changed[:, 1].min() == 336 and 260 < changed[:, 0].min() < 336
    assert np.array_equal(np.asarray(draw_boxes(scene(), Critique("nothing to see"))), np.asarray(plain))


def test_small_images_grow_by_whole_pixels_and_large_ones_stay():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8))
    grown = np.asarray(enlarged(image))
    factor = grown.shape[0] // 10
    assert factor > 10 and np.array_equal(grown[::factor, ::factor], np.asarray(image))
    assert enlarged(Image.new("RGB", (1000, 400))).size == (1000, 400)

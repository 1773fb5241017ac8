"""Each benchmark in its published form and in each trap; and what is wrong with a file, in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pictures import png
from pyarrow import parquet

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.agreement import Judged
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark
from jrm_plugin.evaluation.benchmarks.loading import BENCHMARKS, load_benchmark
from jrm_plugin.evaluation.judging import division_columns
from jrm_plugin.evaluation.results import column_values
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import KNOWN_DIMENSIONS, OVERALL
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


def image(seed: int) -> dict[str, Any]:
    """An image as Parquet of the hub holds it."""
    return {"bytes": png(seed), "path": None}


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """`write(rows, name)`: rows in a folder of their own, as Parquet or JSON, with the images `0.png` to `9.png`."""

    def write_rows(rows: Any, name: str = "data/train-00000-of-00001.parquet") -> Path:
        path = tmp_path / "published" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
        else:
            for seed in range(10):
                (path.parent / f"{seed}.png").write_bytes(png(seed))
            path.write_text(json.dumps(rows))
        return path

    return write_rows


def labels(benchmark: Benchmark) -> list[dict[str, int]]:
    return [dict(pair.labels) for pair in benchmark.pairs]


def table_of_perfect_judge(benchmark: Benchmark) -> dict[str, float | None]:
    """The numbers of one that says what people say, ties by a margin of 0."""
    judged = {}
    for name in benchmark.dimensions:
        pairs = [pair for pair in benchmark.pairs if name in pair.labels]
        label_N = np.array([pair.labels[name] for pair in pairs])
        info = division_columns(benchmark, [pair.info for pair in pairs])
        judged[name] = Judged(label_N, label_N.astype(float), np.arange(len(pairs)), info=info)
    return column_values(benchmark, judged)


# --- EditReward-Bench of TIGER-Lab ------------------------------------------------------------------------------------


def tiger_row(identity: str, sides: str, ranking: str, dataset: str, **more: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "dataset": dataset,
        "instruction": "make it blue",
        "source_image": image(0),
        "candidate_1": image(1),
        "candidate_2": image(2),
        "ranking": ranking,
        "comparison_type": sides,
        **more,
    }


TIGER = [
    tiger_row("aaaaaaaaaa1", "AvsB", "A>B", "2pair", score_1=3.5, score_2=2.0),
    tiger_row("aaaaaaaaaa2", "AvsB", "A=B", "2pair", score_1=2.0, score_2=2.0),
    tiger_row("g1_0", "AvsB", "B>A", "3pair"),
    tiger_row("g1_1", "AvsC", "A>C", "3pair"),
    tiger_row("g1_2", "BvsC", "B>C", "3pair"),
]


def test_pairs_of_tigers_bench_are_grouped_and_may_be_preferred_either_way(write):
    benchmark = load_benchmark("edit_reward_bench", write(TIGER).parent)
    assert labels(benchmark) == [{OVERALL: label} for label in (1, 0, -1, 1, 1)]
    groups = [pair.info["group"] for pair in benchmark.pairs]
    assert groups == ["2pair aaaaaaaaaa1", "2pair aaaaaaaaaa2", *["3pair g1"] * 3]
    assert benchmark.pairs[0].chosen_scores == {OVERALL: 3.5}
    table = table_of_perfect_judge(benchmark)
    assert table == {"K=2": 1.0, "K=3": 1.0, "K=4": None, "Pairs": 1.0, "Pairs, no ties": 1.0}


def test_a_group_with_a_pair_missing_is_refused(write):
    with pytest.raises(JRMError, match="has 2 pairs of the group 3pair g1, which needs 3"):
        load_benchmark("edit_reward_bench", write(TIGER[:-1]))


def test_groups_stay_whole_where_only_some_pairs_are_wanted(write):
    benchmark = load_benchmark("edit_reward_bench", write(TIGER), limit=3)
    assert len(benchmark.pairs) == 5
    assert len(load_benchmark("edit_reward_bench", write(TIGER), limit=1).pairs) == 1


def test_rankings_of_the_local_json_are_read_in_either_direction(write):
    record = {"prompt": "make it blue", "path_src": "0.png"}
    rows = [
        {**record, "paths_generated": ["1.png", "2.png"], "human_vote": {"ranking": vote}}
        for vote in ("A>B", "A<B", "A=B=Good", "A=B=Bad")
    ]
    rows.append({**record, "paths_generated": ["1.png", "2.png", "3.png"], "human_vote": {"ranking": "C>A>B"}})
    rows.append({**record, "paths_generated": ["1.png", "2.png", "3.png"], "human_vote": {"ranking": "B<A<C"}})
    benchmark = load_benchmark("edit_reward_bench", write(rows, "EditReward_Bench.json"))
    assert [of[OVERALL] for of in labels(benchmark)] == [1, -1, 0, 0, 1, -1, -1, 1, -1, -1]
    assert Path(benchmark.pairs[0].chosen.response_images[0]).is_file()


@pytest.mark.parametrize("ranking", ["A>C", "A", "A>B<A", "tie", None, "A>B>C"])
def test_a_ranking_of_other_candidates_is_refused(write, ranking):
    with pytest.raises(JRMError, match="row 1: ranking must order A, B"):
        load_benchmark("edit_reward_bench", write([{**TIGER[0], "ranking": ranking}, TIGER[1]]))


# --- EditReward-Bench of EditScore ------------------------------------------------------------------------------------


def edit_score_row(dimension: str, task: str, size: int = 16) -> dict[str, Any]:
    outputs = [{"bytes": png(seed, size=size), "path": None} for seed in (1, 2)]
    return {
        "key": ["a", "b"],
        "task_type": task,
        "dimension": dimension,
        "instruction": "make it blue",
        "input_image": image(0),
        "output_images": outputs,
    }


EDIT_SCORE = [edit_score_row("prompt_following", "add"), edit_score_row("consistency", "remove")]
EDIT_SCORE += [edit_score_row("overall", "add"), edit_score_row("overall", "remove", size=32)]


def test_the_first_output_is_the_preferred_one_and_outputs_get_the_inputs_size(write):
    benchmark = load_benchmark("edit_score_bench", write(EDIT_SCORE))
    assert labels(benchmark) == [{"prompt_following": 1}, {"consistency": 1}, {OVERALL: 1}, {OVERALL: 1}]
    assert table_of_perfect_judge(benchmark) == {"PF": 1.0, "Cons.": 1.0, "Overall": 1.0}
    large = benchmark.pairs[3].chosen
    assert load_image(large.response_images[0]).size == (32, 32)
    assert load_image(benchmark.prepare(large).response_images[0]).size == load_image(large.prompt_images[0]).size
    assert benchmark.published.rows["JRM"] == (0.854, None, 0.851)


def test_each_bench_of_one_name_points_to_the_other(write):
    with pytest.raises(JRMError, match="or name edit_score_bench for the data set of EditScore"):
        load_benchmark("edit_reward_bench", write(EDIT_SCORE))
    with pytest.raises(JRMError, match="or name edit_reward_bench for the data set of TIGER-Lab"):
        load_benchmark("edit_score_bench", write(TIGER))


def test_three_outputs_are_refused(write):
    row = {**EDIT_SCORE[0], "output_images": [image(k) for k in range(3)]}
    with pytest.raises(JRMError, match="row 1: output_images must be a list of two images"):
        load_benchmark("edit_score_bench", write([row]))


# --- MMRB2 ------------------------------------------------------------------------------------------------------------


def mmrb2_pair(identity: str, prompt: list, chosen: str) -> dict[str, Any]:
    def response(name: str) -> dict[str, Any]:
        return {"model_name": "m", "response_content": [["text", "Here it is."], ["image", name]]}

    return {
        "id": identity,
        "prompt_content": prompt,
        "prompt_source": "x",
        "prompt_metadata": {},
        "response_a": response("1.png"),
        "response_b": response("2.png"),
        "chosen": chosen,
        "human_annotations": [],
    }


MMRB2 = [
    mmrb2_pair("p1", [["image", "0.png"], ["text", "make it blue"]], "A"),
    mmrb2_pair("p2", [["text", "put"], ["image", "0.png"], ["text", "on"], ["image", "3.png"]], "B"),
]


def test_mmrb2_has_one_or_more_sources_whose_places_in_the_text_are_named(write):
    benchmark = load_benchmark("mmrb2", write({"pairs": MMRB2}, "edit.json").parent)
    assert labels(benchmark) == [{OVERALL: 1}, {OVERALL: -1}]
    assert [pair.chosen.prompt_text for pair in benchmark.pairs] == ["make it blue", "put image 1 on image 2"]
    assert [len(pair.chosen.prompt_images) for pair in benchmark.pairs] == [1, 2]
    assert table_of_perfect_judge(benchmark) == {"Single": 1.0, "Multi": 1.0, "Overall": 1.0}
    assert benchmark.published.rows["JRM"] == (0.703, 0.646, 0.693)


def test_mmrb2_with_the_names_of_its_readme_is_the_same(write):
    named = [{"pair_id": p["id"], "human_preference": p["chosen"], **p} for p in MMRB2]
    for record in named:
        del record["id"], record["chosen"]
    benchmark = load_benchmark("mmrb2", write({"pairs": named}, "edit.json"))
    assert [pair.info["id"] for pair in benchmark.pairs] == ["p1", "p2"]
    assert labels(benchmark) == [{OVERALL: 1}, {OVERALL: -1}]


def test_mmrb2_of_the_hub_says_the_same_as_its_json(write):
    texts = ["<image_1>make it blue", "put<image_1>on<image_2>"]
    rows = [
        {
            "pair_id": pair["id"],
            "prompt_text": text,
            "prompt_images": [image(0)] if k == 0 else [image(0), image(3)],
            "response_a_text": "Here it is.",
            "response_a_images": [image(1)],
            "response_b_images": [image(2)],
            "chosen": pair["chosen"],
        }
        for k, (pair, text) in enumerate(zip(MMRB2, texts, strict=True))
    ]
    benchmark = load_benchmark("mmrb2", write(rows))
    assert [pair.chosen.prompt_text for pair in benchmark.pairs] == ["make it blue", "put image 1 on image 2"]
    assert labels(benchmark) == [{OVERALL: 1}, {OVERALL: -1}]
    with pytest.raises(JRMError, match="names <image_3>, and there are 2 prompt_images"):
        load_benchmark("mmrb2", write([{**rows[1], "prompt_text": "put <image_3> here"}]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": "C"}, "chosen must be one of A, B"),
        ({"chosen": None}, "chosen must be one of A, B"),
        ({"response_a": {"response_content": []}}, "response_a must hold one image"),
        ({"response_a": {"response_content": [["video", "x"]]}}, "response_a must be a list of"),
        ({"prompt_content": [["text", "make it blue"]]}, "it has no source image"),
        ({"prompt_content": [["image", "missing.png"], ["text", "blue"]]}, "missing.png' does not exist"),
    ],
)
def test_a_pair_of_mmrb2_that_is_none_is_named(write, change, message):
    with pytest.raises(JRMError, match=f"row 2: .*{message}"):
        load_benchmark("mmrb2", write({"pairs": [MMRB2[0], {**MMRB2[1], **change}]}, "edit.json"))


# --- the others -------------------------------------------------------------------------------------------------------


def gen_ai_row(vote: str) -> dict[str, Any]:
    return {
        "source_prompt": "",
        "target_prompt": "",
        "instruct_prompt": "make it blue",
        "source_image": image(0),
        "left_model": "l",
        "left_output_image": image(1),
        "right_model": "r",
        "right_output_image": image(2),
        "vote_type": vote,
    }


def test_votes_of_genai_bench_are_for_one_side_or_for_none(write):
    votes = ["leftvote", "rightvote", "tievote", "bothbad_vote"]
    benchmark = load_benchmark("gen_ai_bench", write([gen_ai_row(vote) for vote in votes]))
    assert [of[OVERALL] for of in labels(benchmark)] == [1, -1, 0, 0]
    assert table_of_perfect_judge(benchmark) == {"With ties": 1.0, "No ties": 1.0}
    with pytest.raises(JRMError, match="vote_type must be one of leftvote"):
        load_benchmark("gen_ai_bench", write([gen_ai_row("neither")]))


def test_of_two_splits_one_must_be_named(write):
    write([gen_ai_row("leftvote")], "data/test_v1-00000-of-00001.parquet")
    folder = write([gen_ai_row("rightvote")] * 2, "data/test-00000-of-00001.parquet").parents[1]
    with pytest.raises(JRMError, match="has no split train, only"):
        load_benchmark("gen_ai_bench", folder)
    assert len(load_benchmark("gen_ai_bench", f"{folder}:test_v1").pairs) == 1


def test_ties_of_compass_are_shown_by_its_own_rule_and_by_the_searched_one(write):
    record = {"source_image": "0.png", "prompt": "make it blue", "winner": "1.png", "loser": "2.png"}
    kinds = [("IA", "preference"), ("VC", "tie"), ("VQ", "preference"), ("VQ", "tie")]
    rows = [{**record, "dimension": dimension, "label": label} for dimension, label in kinds]
    benchmark = load_benchmark("edit_reward_compass", write(rows, "compass.json"))
    assert [*labels(benchmark)[1]] == ["visual_consistency"]
    assert [next(iter(of.values())) for of in labels(benchmark)] == [1, 0, 1, 0]
    judged = {}
    for name, label in (("instruction_adherence", [1]), ("visual_consistency", [0]), ("visual_quality", [1, 0])):
        margin = np.where(np.array(label) == 0, 1e-3, 0.5)
        judged[name] = Judged(np.array(label), margin, np.arange(len(label)))
    values = column_values(benchmark, judged)
    assert (values["All, no ties"], values["All, its rule"], values["All, searched"]) == (1.0, 0.5, 1.0)
    assert values["VC, no ties"] is None


def test_vc_reward_bench_names_the_better_image(write):
    row = {"key": "k", "instruction": "blue", "source_image": image(0), "edited_images": [image(1), image(2)]}
    rows = [{**row, "winner": winner, "task": task} for winner, task in (("Image A", "add"), ("Image B", "remove"))]
    benchmark = load_benchmark("vc_reward_bench", write(rows))
    assert labels(benchmark) == [{"visual_consistency": 1}, {"visual_consistency": -1}]
    assert table_of_perfect_judge(benchmark) == {"All": 1.0, "Mean over tasks": 1.0}
    with pytest.raises(JRMError, match="winner must be one of Image A, Image B, not 'A'"):
        load_benchmark("vc_reward_bench", write([{**rows[0], "winner": "A"}]))


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.parquet"])
def test_a_table_of_pairs_of_ones_own_is_a_benchmark(write, name):
    folder = write([], "x.json").parent
    rows = [{"before": "0.png", "do": "make it blue", "x": "1.png", "y": "2.png", "who": who} for who in ("B", "tie")]
    path = folder / name
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    columns = {"source": "before", "instruction": "do", "a": "x", "b": "y", "label": "who"}
    benchmark = load_benchmark("pair_file", path, columns=columns)
    assert [of[OVERALL] for of in labels(benchmark)] == [1, 0]
    assert table_of_perfect_judge(benchmark) == {"no ties": 1.0, "with ties": 1.0}
    with pytest.raises(JRMError, match="has the columns before, do, x, y, who"):
        load_benchmark("pair_file", path, columns={**columns, "source": "befor"})


def test_made_up_edits_are_drawn_once(tmp_path):
    drawn = load_benchmark("shape_edits", folder=tmp_path, limit=5, progress=False)
    meta = tmp_path / "shape_edits-5" / "meta.json"
    before = meta.stat().st_mtime_ns
    again = load_benchmark("shape_edits", folder=tmp_path, limit=5, progress=False)
    assert len(drawn.pairs) == 5 and meta.stat().st_mtime_ns == before
    assert [p.chosen for p in drawn.pairs] == [p.chosen for p in again.pairs]
    assert set(table_of_perfect_judge(drawn).values()) == {1.0}
    assert [column.title for column in drawn.columns] == ["Overall", "Instruction following", "Visual quality"]


def test_made_up_edits_have_a_column_for_each_dimension_they_are_labelled_in(tmp_path):
    SHAPE_EDITS.write(tmp_path, train=0, heldout=20, language=0, dimensions=KNOWN_DIMENSIONS, progress=False)
    table = table_of_perfect_judge(load_benchmark("shape_edits", tmp_path, progress=False))
    assert table == dict.fromkeys(("Overall", "Instruction following", "Visual quality", "Consistency"), 1.0)


# --- what is wrong with a file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - {"shape_edits", "photo_edits", "pair_file"}))
def test_a_wrong_file_is_refused_in_a_sentence_that_names_it(write, name):
    for path in (write([{"x": 1}]), write([{"x": 1}], "x.json"), write({"x": 1}, "y.json")):
        with pytest.raises(JRMError, match=r"(is not |has no column|must hold|neither a list)") as error:
            load_benchmark(name, path)
        assert str(path) in str(error.value)
        path.unlink()
    with pytest.raises(JRMError, match="does not exist"):
        load_benchmark(name, path)


def test_a_folder_of_two_files_is_refused(write):
    write({"pairs": MMRB2}, "a.json")
    folder = write({"pairs": MMRB2}, "b.json").parent
    with pytest.raises(JRMError, match=r"must hold Parquet files or one JSON or CSV file, and holds a.json, b.json"):
        load_benchmark("mmrb2", folder)


@pytest.mark.parametrize("cell", [None, {"bytes": b"no image", "path": None}, {"bytes": None, "path": None}])
def test_a_cell_without_an_image_is_named_by_its_row(write, cell):
    rows = [gen_ai_row("leftvote"), {**gen_ai_row("leftvote"), "left_output_image": cell}]
    with pytest.raises(JRMError, match=r"parquet, row 2: "):
        load_benchmark("gen_ai_bench", write(rows))


def test_an_unknown_benchmark_and_one_without_data_say_what_to_do():
    with pytest.raises(JRMError, match="there is no benchmark 'mmrb'; there are edit_reward_bench, "):
        load_benchmark("mmrb")
    with pytest.raises(JRMError, match="say where it is with --data"):
        load_benchmark("vc_reward_bench")
    with pytest.raises(JRMError, match="columns belong to pair_file"):
        load_benchmark("mmrb2", "x", columns={"source": "x"})

"""JRM as a reward function, in real GRPO and RLOO steps and called by hand as TRL calls it."""

import json
import math
import re
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pandas
import pytest
from datasets import Dataset
from pictures import encode
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from jrm_plugin import JRMError, RewardScorer, Sample, group_rewards
from jrm_plugin.integrations.trl import InvalidAnswer, JRMReward, environment, jrm_reward, jrm_rewards
from jrm_plugin.synthetic.shape_edits import draw_edit

FLOOR = -7.5
CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
CPU |= {"gradient_checkpointing": False, "logging_steps": 1, "max_completion_length": 6}


@pytest.fixture(scope="module")
def edits() -> list:
    rng = np.random.default_rng(3)
    outcomes = [("none", "clean"), ("wrong_object", "clean"), ("ignored", "blur")]
    return [draw_edit(rng, heldout=True, outcomes=outcomes) for _ in range(4)]


@pytest.fixture(scope="module")
def rows(edits) -> list[dict]:
    return [
        {"prompt": f"scene {k}", "source_image": Image.fromarray(e.source), "instruction": e.instruction}
        for k, e in enumerate(edits)
    ]


def render(text: str, row: dict) -> Image.Image:
    """The source with a line through it whose place is the text's; a third of all texts cannot be drawn."""
    number = sum(text.encode())
    if number % 3 == 0:
        raise InvalidAnswer("no picture")
    pixels = np.array(row["source_image"])
    pixels[:, number % pixels.shape[1]] = 0
    return Image.fromarray(pixels)


class Spy:
    """Keeps what a reward function was given and what it returned."""

    def __init__(self, reward: JRMReward):
        self.reward, self.calls, self.__name__ = reward, [], reward.__name__

    def __call__(self, **arguments):
        rewards = self.reward(**arguments)
        self.calls.append((arguments, rewards))
        return rewards


def alone(scorer: RewardScorer, sample: Sample) -> float:
    return scorer.score([sample])[0].mu["overall"]


def test_grpo_steps_earn_the_scorers_scores(tiny, rows, policy_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    spy = Spy(JRMReward(tiny, render=render, floor=FLOOR, save_images=3, save_folder=tmp_path / "kept"))
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy_folder),
        spy,
        GRPOConfig(
            str(tmp_path), max_steps=2, per_device_train_batch_size=8, num_generations=4, log_completions=True, **CPU
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy_folder),
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert any((p != q).any() for p, q in zip(before, trainer.model.parameters(), strict=True))

    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(spy.calls) == len(logs) == 2
    tables = sorted((tmp_path / "completions").iterdir())
    errors, kept = 0, []
    for (given, rewards), log, table in zip(spy.calls, logs, map(pandas.read_parquet, tables), strict=True):
        expected, failed = [], []
        for k, text in enumerate(given["completions"]):
            row = {name: given[name][k] for name in ("source_image", "instruction")}
            try:
                sample = Sample.edit(row["source_image"], row["instruction"], render(text, row))
            except InvalidAnswer:
                failed.append(k)
                expected.append(FLOOR)
            else:
                expected.append(alone(tiny, sample))
        assert rewards == pytest.approx(expected, abs=1e-5)
        errors += len(failed)
        assert log["rewards/jrm_reward/mean"] == pytest.approx(np.mean(expected), abs=1e-4)
        assert log["jrm_reward/invalid_answers"] == pytest.approx(len(failed) / 8)
        drawn = [value for k, value in enumerate(expected) if k not in failed]
        assert log["jrm_reward/overall/mu"] == pytest.approx(np.mean(drawn), abs=1e-4)
        candidates = pandas.json_normalize(table["jrm_reward scores"])
        for name in tiny.dimensions:
            assert log[f"jrm_reward/{name}/sigma"] > 0
            assert [k for k, mu in enumerate(candidates[f"mu_{name}"]) if math.isnan(mu)] == failed
        assert [mu for mu in candidates["mu_overall"] if not math.isnan(mu)] == pytest.approx(drawn, abs=1e-5)
        kept += [path for path in candidates["image"] if isinstance(path, str)]
    assert 0 < errors < 16
    assert len(kept) == math.ceil((16 - errors) / 3)
    for path in kept:
        with Image.open(tmp_path / "kept" / path) as image:
            assert image.size == (48, 48)
    assert_readable_at_80_columns(capsys.readouterr().out, [rewards for _, rewards in spy.calls])


def assert_readable_at_80_columns(printed: str, rewards: list[list[float]]) -> None:
    """TRL's tables of completions: every score stands in one piece."""
    tables = [line for line in printed.splitlines() if line.startswith(("╭", "│", "╰"))]
    assert len(tables[0]) == 80
    scores = re.findall(r"([+-][0-9]+\.[0-9]{2}) ±[0-9]+\.[0-9]{2} ", "\n".join(tables))
    for reward in (reward for step in rewards for reward in step if reward != FLOOR):
        assert f"{reward:+.2f}" in scores


def test_rloo_step_on_answers_in_conversations(tiny, rows, policy_folder, tmp_path):
    chats = [row | {"prompt": [{"role": "user", "content": row["instruction"]}]} for row in rows]
    spy = Spy(JRMReward(tiny, task="response", mode="win_rate"))
    trainer = RLOOTrainer(
        AutoModelForCausalLM.from_pretrained(policy_folder),
        spy,
        RLOOConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=8, num_generations=4, **CPU),
        train_dataset=Dataset.from_list(chats),
        processing_class=AutoTokenizer.from_pretrained(policy_folder),
    )
    trainer.train()
    (given, rewards), *others = spy.calls
    assert not others and given["completions"][0][0]["role"] == "assistant"
    texts = [completion[0]["content"] for completion in given["completions"]]
    groups = zip(given["source_image"], given["instruction"], texts, strict=True)
    scores = [tiny.score([Sample.text_response(*each)])[0] for each in groups]
    expected = [p for k in (0, 4) for p in group_rewards(scores[k : k + 4], "win_rate")]
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert "jrm_reward/invalid_answers" not in trainer.state.log_history[0]


# --- a reward for each dimension --------------------------------------------------------------------------------------


class Counting:
    """A scorer that counts what it is asked."""

    def __init__(self, scorer: RewardScorer):
        self.scorer, self.dimensions, self.calls = scorer, scorer.dimensions, []

    def score(self, samples, *, on_error="raise", progress=False):
        self.calls.append(len(samples))
        return self.scorer.score(samples, on_error=on_error, progress=progress)

    def rank(self, samples):
        return self.scorer.rank(samples)


def render_or_break(text: str, row: dict) -> Image.Image | bytes:
    """As `render`, and what is drawn of some texts is no image."""
    picture = render(text, row)
    return b"no image" if sum(text.encode()) % 5 == 0 else picture


def test_grpo_normalises_each_dimension_by_itself(tiny, rows, policy_folder, tmp_path):
    """TRL's GDPO on two JRM objectives, invalid and unscorable completions among them, against numpy."""
    mode = {"mode": "entropic", "beta": 2.0, "floor": FLOOR}
    kept = {"save_images": 1, "save_folder": tmp_path / "kept"}
    counting = Counting(tiny)
    rewards = jrm_rewards(counting, render=render_or_break, **mode, **kept)
    assert [reward.__name__ for reward in rewards] == ["jrm_instruction_following", "jrm_visual_quality"]
    given = {"per_device_train_batch_size": 16, "num_generations": 8, "log_completions": True, **CPU}
    given |= {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.5]}
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy_folder),
        rewards,
        GRPOConfig(str(tmp_path), max_steps=3, **given),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy_folder),
    )
    trainer.train()
    assert len(counting.calls) == 3  # one forward pass a step, for both
    by_prompt = {row["prompt"]: row for row in rows}
    endings = {"invalid answer": 0, "cannot be scored": 0, "scored": 0}
    for path in sorted((tmp_path / "completions").iterdir()):
        table = pandas.read_parquet(path)
        expected = np.full((16, 2), np.nan)
        for k, (prompt, text) in enumerate(zip(table["prompt"], table["completion"], strict=True)):
            row = by_prompt[prompt]
            try:
                edited = render_or_break(text, row)
            except InvalidAnswer:
                expected[k] = FLOOR
                endings["invalid answer"] += 1
                continue
            if edited == b"no image":
                endings["cannot be scored"] += 1
                assert "image" in table["jrm_reward scores"][k]["error"]
                continue
            endings["scored"] += 1
            (score,) = tiny.score([Sample.edit(row["source_image"], row["instruction"], edited)])
            expected[k] = [score.mu[name] - score.sigma[name] ** 2 / 4 for name in tiny.dimensions]
        found = table[[reward.__name__ for reward in rewards]].to_numpy()
        assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)
        advantages = table["advantage"].to_numpy()
        assert np.isfinite(advantages).all()
        assert advantages == pytest.approx(gdpo_by_hand(expected, [1.0, 0.5], 8), abs=1e-3)
        assert not advantages[np.isnan(expected[:, 0])].any()
    assert all(endings.values()), endings
    (lines,) = (tmp_path / "kept").glob("*/metadata.jsonl")
    lines = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(lines) == endings["scored"]
    for line in lines:
        wanted = line["mu_visual_quality"] - line["sigma_visual_quality"] ** 2 / 4
        assert line["reward_visual_quality"] == pytest.approx(wanted)
    shares = [entry["jrm_reward/unscorable"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(shares) * 16 == pytest.approx(endings["cannot be scored"])


def gdpo_by_hand(rewards: np.ndarray, weights: list[float], group: int) -> np.ndarray:
    """Advantages of rewards `[B, K]`, group after group: columns normalised in the group, their sum in the batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of groups in which nothing, or one, could be scored
        grouped = rewards.reshape(-1, group, rewards.shape[1])
        deviation = np.nanstd(grouped, axis=1, ddof=1, keepdims=True)
        normal = (grouped - np.nanmean(grouped, axis=1, keepdims=True)) / (deviation + 1e-4)
        total = np.nansum(normal.reshape(rewards.shape) * weights, axis=1)
        total[np.isnan(rewards).all(axis=1)] = np.nan
        return np.nan_to_num((total - np.nanmean(total)) / (np.nanstd(total, ddof=1) + 1e-4))


def test_objectives_share_scores_of_the_same_arguments_only(tiny, rows):
    counting = Counting(tiny)
    one, two = jrm_rewards(counting, ["visual_quality", "overall"], render=render, floor=FLOOR)
    logged: list = []
    batch = columns(rows[:2]) | {"log_extra": lambda name, values: logged.append((name, values))}
    prompts, texts = ["p", "q"], ["a", "b"]
    drawn = [(row["source_image"], row["instruction"], render(texts[k], row)) for k, row in enumerate(rows[:2])]
    first, second = tiny.score([Sample.edit(*each) for each in drawn])
    for _ in range(2):  # asked again, they are scored again
        found = [reward(prompts, texts, **batch) for reward in (one, two)]
        for name, values in zip(("visual_quality", "overall"), found, strict=True):
            assert values == pytest.approx([first.mu[name], second.mu[name]], abs=1e-5)
    assert counting.calls == [2, 2] and [name for name, _ in logged] == ["jrm_reward scores"] * 2
    one(prompts, texts, **batch)
    texts[1] = "d"  # in the same list
    changed = two(prompts, texts, **batch)
    expected = tiny.score([Sample.edit(rows[1]["source_image"], rows[1]["instruction"], render("d", rows[1]))])
    assert changed == pytest.approx([first.mu["overall"], expected[0].mu["overall"]], abs=1e-5)
    assert counting.calls == [2] * 4
    assert (one.__name__, two.__name__) == ("jrm_visual_quality", "jrm_reward")


def test_rewards_made_one_by_one_log_under_their_own_names(tiny, rows):
    """TRL puts what functions log under one name into one column, which would then be too long."""
    batch = columns(rows[:1]) | {"edited_image": [rows[0]["source_image"]]}
    logged: dict = {}
    for name in tiny.dimensions:
        JRMReward(tiny, dimension=name)(
            ["p"], [""], log_extra=logged.__setitem__, log_metric=logged.__setitem__, **batch
        )
    names = [f"jrm_{name}" for name in tiny.dimensions]
    metrics = map("/".join, product(names, [*tiny.dimensions, "overall"], ["mu", "sigma"]))
    assert {*logged} == {*metrics, *(f"{name}/unedited" for name in names), *(f"{name} scores" for name in names)}


def test_an_unscorable_completion_raises_gets_the_floor_or_no_reward(tiny, rows):
    batch = columns([rows[0]] * 3) | {"edited_image": [rows[0]["source_image"], b"no image", None]}
    (score,) = tiny.score([Sample.edit(rows[0]["source_image"], rows[0]["instruction"], rows[0]["source_image"])])
    with pytest.raises(JRMError, match="completion 1 cannot be scored"):
        JRMReward(tiny)(["p"] * 3, [""] * 3, **batch)
    for on_error, rest in (("leave_out", [None, None]), ("floor", [-9.0, -9.0])):
        floor = -9.0 if on_error == "floor" else None
        metrics: dict = {}
        reward = JRMReward(tiny, on_error=on_error, floor=floor)
        found = reward(["p"] * 3, [""] * 3, log_metric=metrics.__setitem__, **batch)
        assert found[0] == pytest.approx(score.mu["overall"], abs=1e-5) and found[1:] == rest
        assert metrics["jrm_reward/unscorable"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        (["beauty"], "has no dimension 'beauty'; take instruction_following, visual_quality or overall"),
        (["visual_quality", "visual_quality"], "must be one or more, each once"),
        ([], "must be one or more, each once"),
    ],
)
def test_dimensions_that_are_not_there_are_named(tiny, dimensions, message):
    with pytest.raises(JRMError, match=message):
        jrm_rewards(tiny, dimensions)


# --- columns ----------------------------------------------------------------------------------------------------------


def columns(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}


def test_images_in_every_form_of_a_column(tiny, edits, rows):
    source, instruction = rows[0]["source_image"], rows[0]["instruction"]
    edited = Image.fromarray(edits[0].candidates[0].image)
    reward = JRMReward(tiny)
    expected = alone(tiny, Sample.edit(source, instruction, edited))
    undecoded = {"bytes": encode(edited), "path": None}
    for given in (
        {"source_image": [source], "edited_image": [edited]},
        {"source_images": [[source]], "edited_image": [undecoded]},
        {"source_image": [{"bytes": encode(source), "path": "a.png"}], "edited_image": [encode(edited)]},
    ):
        assert reward(["p"], ["ignored"], instruction=[instruction], **given) == pytest.approx([expected], abs=1e-5)
    two = JRMReward(tiny)(["p"], [""], instruction=[instruction], source_images=[[source] * 2], edited_image=[edited])
    assert two == pytest.approx([alone(tiny, Sample.edit([source] * 2, instruction, edited))], abs=1e-5)
    made = JRMReward(tiny, task="generation")(["p"], [""], instruction=[instruction], edited_image=[edited])
    assert made == pytest.approx([alone(tiny, Sample.generation(instruction, edited))], abs=1e-5)
    careful = JRMReward(tiny, mode="lower_confidence_bound", k=2.0)
    score = tiny.score([Sample.edit(source, instruction, edited)])[0]
    image = {"instruction": [instruction], "source_image": [source], "edited_image": [edited]}
    for name in tiny.dimensions:
        one = JRMReward(tiny, mode="lower_confidence_bound", k=2.0, dimension=name)
        assert one(["p"], [""], **image) == pytest.approx([score.mu[name] - 2 * score.sigma[name]], abs=1e-5)
        assert one.__name__ == f"jrm_{name}"  # TRL's name of its mean
    found = careful(["p"], [""], instruction=[instruction], source_image=[source], edited_image=[edited])
    assert found == pytest.approx([score.reward("lower_confidence_bound", k=2.0)], abs=1e-5)


def test_any_scorer_may_stand_in_for_a_checkpoint(brightness, rows):
    reward = JRMReward(brightness, render=lambda text, row: Image.new("L", (4, 4), int(text)), floor=FLOOR)
    metrics = {}
    assert reward(["p"] * 2, ["3", "7"], log_metric=metrics.__setitem__, **columns(rows[:2])) == [3.0, 7.0]
    assert metrics["jrm_reward/brightness/mu"] == 5.0


def test_win_rate_compares_within_a_group(tiny, edits, rows):
    # Two groups with the same prompt and instruction, told apart by the source image, in mixed order.
    order = [(0, 0), (1, 0), (0, 1), (1, 2), (0, 2), (1, 1)]
    batch = [rows[e] | {"prompt": "edit it", "instruction": rows[0]["instruction"]} for e, _ in order]
    pictures = [Image.fromarray(edits[e].candidates[c].image) for e, c in order]
    reward = JRMReward(tiny, mode="win_rate")
    found = reward(["edit it"] * 6, [""] * 6, **columns(batch), edited_image=pictures)
    scores = tiny.score(
        [Sample.edit(r["source_image"], r["instruction"], p) for r, p in zip(batch, pictures, strict=True)]
    )
    for group in ([0, 2, 4], [1, 3, 5]):
        expected = group_rewards([scores[k] for k in group], "win_rate")
        assert [found[k] for k in group] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(JRMError, match="only one in this process; raise the number of generations"):
        reward(["a", "b"], ["", ""], **columns(batch[:2]), edited_image=pictures[:2])


def test_win_over_source_compares_with_the_unedited_source(tiny, edits, rows):
    def draw(text, row):
        if text == "nothing":
            raise InvalidAnswer("nothing to draw")
        return Image.fromarray(edits[int(text)].candidates[0].image)

    reward = JRMReward(tiny, mode="win_over_source", render=draw)
    found = reward(["p"] * 3, ["0", "nothing", "2"], **columns(rows[:3]))
    expected = []
    for k in (0, 2):
        source, instruction = rows[k]["source_image"], rows[k]["instruction"]
        pair = [Sample.edit(source, instruction, image) for image in (draw(str(k), {}), source)]
        edited, unedited = tiny.score(pair)
        expected.append(edited.reward("win_probability", against=unedited))
    assert found == pytest.approx([expected[0], 0.0, expected[1]], abs=1e-5)


def test_what_cannot_be_rendered_earns_the_floor_in_every_mode(tiny, rows):
    def only_good(text, row):
        if text != "good":
            raise InvalidAnswer
        return row["source_image"]

    batch = columns([rows[0]] * 3)
    wins = JRMReward(tiny, mode="win_rate", render=only_good)
    assert wins(["p"] * 3, ["bad", "good", "bad"], **batch) == [0.0, 0.5, 0.0]
    assert wins(["p"] * 3, ["bad"] * 3, **batch) == [0.0] * 3
    metrics = {}
    mean = JRMReward(tiny, render=only_good, floor=FLOOR)
    assert mean(["p"] * 3, ["bad"] * 3, log_metric=metrics.__setitem__, **batch) == [FLOOR] * 3
    assert metrics == {"jrm_reward/invalid_answers": 1.0}


def test_an_empty_answer_earns_the_floor_or_asks_for_one(tiny):
    batch = {"instruction": ["why"] * 3}
    metrics = {}
    reward = JRMReward(tiny, task="response", floor=FLOOR)
    found = reward(["p"] * 3, ["so", " \n", "no"], log_metric=metrics.__setitem__, **batch)
    expected = tiny.score([Sample.text_response(None, "why", text) for text in ("so", "no")])
    assert found == pytest.approx([expected[0].reward(), FLOOR, expected[1].reward()], abs=1e-5)
    assert metrics["jrm_reward/invalid_answers"] == pytest.approx(1 / 3)
    with pytest.raises(JRMError, match="completion 1 cannot be scored: the answer is empty; give a floor"):
        JRMReward(tiny, task="response")(["p"] * 3, ["so", "", "no"], **batch)


def test_what_is_missing_is_named(tiny, rows):
    batch = columns(rows[:1])
    with pytest.raises(JRMError, match=r"needs instruction and source_image \(or source_images\) and edited_image"):
        JRMReward(tiny)(["p"], [""], trainer_state=None, other=[1])
    with pytest.raises(JRMError, match=r"needs edited_image \(or give render\) .* are instruction, source_image"):
        JRMReward(tiny)(["p"], [""], **batch)
    with pytest.raises(JRMError, match="completion 0 cannot be scored: its row has no source image"):
        JRMReward(tiny)(["p"], [""], **batch | {"source_image": [None], "edited_image": [b"x"]})
    with pytest.raises(JRMError, match="completion 0 cannot be scored: it must be text or messages with text"):
        JRMReward(tiny, task="response")(["p"], [3], **batch)


def test_an_error_names_the_completion_by_its_own_number(tiny, rows):
    def draw(text, row):
        if text == "refuse":
            raise InvalidAnswer
        return {"zero": lambda: 1 / 0, "broken": lambda: b"no image", "fine": lambda: row["source_image"]}[text]()

    batch = columns([rows[0]] * 4)
    for text in ("zero", "broken", "unknown"):
        with pytest.raises(JRMError, match="completion 3 cannot be scored"):
            JRMReward(tiny, render=draw, floor=FLOOR)(["p"] * 4, ["refuse", "refuse", "fine", text], **batch)
    batch["source_image"] = [*batch["source_image"][:3], b"no image"]
    with pytest.raises(JRMError, match="completion 3 cannot be scored"):
        JRMReward(tiny, render=draw, floor=FLOOR)(["p"] * 4, ["refuse", "refuse", "fine", "fine"], **batch)


def test_equal_pictures_in_prompts_are_one_group(tiny, edits, rows):
    def prompt():
        source = rows[0]["source_image"].copy()
        return [{"role": "user", "content": [{"type": "image", "image": source}, {"type": "text", "text": "Edit."}]}]

    batch = columns([rows[0]] * 3) | {"edited_image": [Image.fromarray(c.image) for c in edits[0].candidates[:3]]}
    reward = JRMReward(tiny, mode="win_rate")
    assert reward([prompt() for _ in range(3)], [""] * 3, **batch) == reward(["p"] * 3, [""] * 3, **batch)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "video"}, "must be edit, generation or response, not 'video'"),
        ({"mode": "median"}, "unknown reward mode 'median'"),
        ({"mode": "lower_confidence_bound", "k": -1.0}, "must be at least 0"),
        ({"floor": -1.0}, "floor has no use here"),
        ({"render": render}, "render needs a floor in the mode mean"),
        ({"render": render, "floor": float("nan")}, "floor must be a finite number"),
        ({"render": render, "task": "response"}, "drop one"),
        ({"render": "no_such_module.draw", "floor": 0.0}, "render no_such_module.draw cannot be imported"),
        ({"render": "json.__name__", "floor": 0.0}, "render json.__name__ cannot be called"),
        ({"model": "no/such/model/anywhere"}, "no/such/model/anywhere"),
        ({"model": "jrm-tiny", "device": "toaster"}, "the device toaster cannot be used here"),
        ({"dtype": "int8"}, "dtype must be float32, bfloat16, float16 or left out, not 'int8'"),
        ({"dimension": "beauty"}, "has no dimension 'beauty'; take instruction_following, visual_quality or overall"),
        ({"save_images": 2}, "save_images and save_folder belong together"),
    ],
)
def test_wrong_arguments_are_one_sentence(tiny, arguments, message):
    with pytest.raises(JRMError, match=message):
        JRMReward(**{"model": tiny} | arguments)


@pytest.fixture
def variables(monkeypatch):
    """Sets variables for `jrm_reward`."""
    return lambda **given: [monkeypatch.setenv(name, value) for name, value in given.items()]


def test_by_dotted_path_configured_by_variables(tiny, rows, variables, monkeypatch, tmp_path):
    Path(tmp_path, "my_render.py").write_text("def draw(text, row):\n    return row['source_image']\n")
    monkeypatch.chdir(tmp_path)
    variables(JRM_RENDER="my_render.draw", JRM_FLOOR="-3", JRM_MODE="lower_confidence_bound", JRM_DEVICE="cpu")
    sources, instructions = columns(rows).values()
    found = jrm_reward(prompts=["p"] * 4, completions=[""] * 4, source_image=sources, instruction=instructions)
    samples = [Sample.edit(s, i, s) for s, i in zip(sources, instructions, strict=True)]
    expected = [score.reward("lower_confidence_bound") for score in tiny.score(samples)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_other_variables_in_the_same_process_are_another_reward(tiny, rows, variables, monkeypatch):
    made = []
    monkeypatch.setattr(environment, "JRMReward", lambda **given: made.append(given) or JRMReward(tiny, **given))
    batch = columns(rows[:1]) | {"edited_image": [rows[0]["source_image"]]}
    (score,) = tiny.score([Sample.edit(rows[0]["source_image"], rows[0]["instruction"], rows[0]["source_image"])])
    for given, expected in (
        ({}, score.mu["overall"]),
        ({"JRM_MODE": "lower_confidence_bound", "JRM_K": "0.5"}, score.reward("lower_confidence_bound", k=0.5)),
        ({"JRM_K": "3"}, score.reward("lower_confidence_bound", k=3.0)),
        ({"JRM_MODE": "", "JRM_DIMENSION": "visual_quality"}, score.mu["visual_quality"]),
    ):
        variables(**given)
        for _ in range(2):
            assert jrm_reward(["p"], [""], **batch) == pytest.approx([expected], abs=1e-5)
    assert len(made) == 4  # one for each set of variables, not one for each call


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("JRM_FLOOR", "low", "JRM_FLOOR must be a number, not 'low'"),
        ("JRM_SAVE_IMAGES", "1.5", "JRM_SAVE_IMAGES must be a whole number, not '1.5'"),
        ("JRM_DTYPE", "int8", "dtype must be float32"),
        ("JRM_TASK", "video", "not 'video'"),
        ("JRM_DEVICE", "toaster", "the device toaster cannot be used here"),
        ("JRM_MODLE", "x", "JRM_MODLE means nothing to jrm_reward; it reads JRM_MODEL"),
    ],
)
def test_a_wrong_variable_is_one_sentence(variables, name, value, message):
    variables(**{name: value})
    with pytest.raises(JRMError, match=message):
        jrm_reward(["p"], [""], instruction=["x"])


def test_trl_finds_it_by_its_dotted_path():
    from importlib import import_module

    assert getattr(import_module("jrm_plugin.integrations.trl"), "jrm_reward") is jrm_reward  # noqa: B009
    assert json.dumps(jrm_reward.__name__) == '"jrm_reward"'

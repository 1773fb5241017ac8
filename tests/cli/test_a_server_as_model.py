"""Commands whose model is a server's address print what they print of the model itself."""

import json

import pytest


def close(one, other) -> bool:
    """Whether JSON is the same but for the last digits of its numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, abs=1e-5) if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def printed(jrm, images):
    """`printed(command, model, …)`: the JSON that it prints of two edited images."""

    def run(command: str, model: str, *further):
        named = ("--source", images[0], "--instruction", "make the red circle blue", "--edited", *images[1:])
        finished = jrm(command, "--model", model, *named, "--json", *further)
        assert finished.code == 0, finished.err
        return json.loads(finished.out)

    return run


@pytest.mark.parametrize("command", ["score", "rank", "critique"])
def test_what_is_printed_is_the_models_own(printed, reward_server, command):
    assert close(printed(command, reward_server), printed(command, "jrm-tiny", "--device", "cpu"))


def test_bulk_scoring_by_a_server_goes_on_and_knows_its_model(jrm, refused, reward_server, images, tmp_path):
    rows = [{"source": images[0], "instruction": f"edit {k}", "edited": images[1 + k % 2]} for k in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {name: ("--input", tmp_path / "in.jsonl", "--output", tmp_path / f"{name}.jsonl") for name in "ab"}
    assert jrm("score", "--model", reward_server, *paths["a"]).code == 0
    whole = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text("".join(whole.splitlines(keepends=True)[:2]) + whole.splitlines()[2][:30])
    finished = jrm("score", "--model", reward_server, *paths["a"])
    assert finished.code == 0 and "2 of 4 samples are in" in finished.err
    assert close(*([json.loads(line) for line in t.splitlines()] for t in ((tmp_path / "a.jsonl").read_text(), whole)))
    assert jrm("score", "--model", "jrm-tiny", "--device", "cpu", *paths["b"]).code == 0
    own = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    for mine, served in zip(own, map(json.loads, whole.splitlines()), strict=True):
        for row in (mine, served):
            del row["model"], row["digest"]
        assert close(mine, served)
    assert "of another model or input" in refused("score", "--model", "jrm-tiny", *paths["a"])


def test_a_server_is_a_judge_among_others(jrm, reward_server, tmp_path):
    command = ("eval", "--benchmark", "shape_edits", "--limit", 6, "--model", "jrm-tiny", reward_server)
    finished = jrm(*command, "--resamples", 20, "--output", tmp_path / "run", "--json")
    assert finished.code == 0, finished.err
    one, other = json.loads(finished.out)["benchmarks"]["shape_edits"]["judges"].values()
    assert close(one["columns"], other["columns"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "cpu"), "--device is of a model that is loaded here"),
        (("--max-pixels", 4096), "--max-pixels is of a model that is loaded here"),
    ],
)
def test_what_belongs_to_a_model_that_is_loaded_here_is_said(refused, reward_server, images, arguments, said):
    command = ("score", "--model", reward_server, "--instruction", "x", "--edited", images[1])
    assert said in refused(*command, *arguments)

"""`jrm rank`: best first, and the best one's image."""

import json

from PIL import Image


def test_rank_is_best_first(jrm, sample):
    finished = jrm("rank", *sample, "--json")
    rows = json.loads(finished.out)
    scores = json.loads(jrm("score", *sample, "--json").out)
    overall = [row["mu"]["overall"] for row in rows]
    assert overall == sorted(overall, reverse=True)
    assert sorted(row["edited"] for row in rows) == sorted(row["edited"] for row in scores)


def test_rank_writes_the_best_image(jrm, sample, tmp_path):
    finished = jrm("rank", *sample, "--json", "--best", tmp_path / "new" / "best.png")
    assert (finished.code, finished.err) == (0, "")
    best = json.loads(finished.out)[0]["edited"]
    with Image.open(tmp_path / "new" / "best.png") as written, Image.open(best) as expected:
        assert written.tobytes() == expected.convert("RGB").tobytes()


def test_an_image_file_that_cannot_be_written(refused, sample, tmp_path):
    assert "best.txt" in refused("rank", *sample, "--best", tmp_path / "best.txt")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("rank", *sample, "--best", tmp_path / "file" / "best.png")

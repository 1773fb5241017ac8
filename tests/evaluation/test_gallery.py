"""The gallery: every candidate once, best first, in pages that belong together."""

import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from pictures import encode
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.gallery import PER_PAGE, write_gallery
from jrm_plugin.records.scores import RewardScore


@pytest.fixture
def make_group(tmp_path):
    """`make_group(count)`: candidates that share one image file, whose notes are their places."""
    picture = tmp_path / "images" / "a b.png"
    picture.parent.mkdir()
    picture.write_bytes(encode(Image.new("RGB", (8, 8), "red")))

    def make(count: int, instruction: str = "make it red", **more) -> dict:
        candidates = [
            {"image": str(picture), "score": RewardScore({"a": -k}, {"a": 1.0}), "note": f"no. {k}"}
            for k in range(1, count + 1)
        ]
        group = {"instruction": instruction, "sources": [], "candidates": candidates, "failed": []}
        return group | {"win_over_second": 0.75 if count > 1 else None} | more

    return make


def places(page: str) -> list[int]:
    return [int(number) for number in re.findall(r"in place (\d+) of", page)]


def links(path: Path) -> list[Path]:
    """The files that a page links, as they are found from where it lies."""
    return [path.parent / unquote(link).split("#")[0] for link in re.findall(r'href="([^"]+)"', path.read_text())]


def test_a_long_ranking_is_divided_into_pages(make_group, tmp_path):
    count = 2 * PER_PAGE + 3
    path = write_gallery(tmp_path / "g.html", [make_group(count)])
    pages = [path, tmp_path / "g_pages" / "2.html", tmp_path / "g_pages" / "3.html"]
    assert sorted(tmp_path.rglob("*.html")) == sorted(pages)
    assert [place for page in pages for place in places(page.read_text())] == list(range(1, count + 1))
    for page in pages:
        assert {file.resolve() for file in links(page)} == {
            *(other for other in pages if other != page),
            tmp_path / "images" / "a b.png",
        }
        assert "P(the first is better than the second) = 0.75" in page.read_text()


def test_instructions_stay_whole_where_they_fit_and_are_found_from_the_first_page(make_group, tmp_path):
    groups = [make_group(60, f"instruction {k}") for k in range(8)]
    path = write_gallery(tmp_path / "g.html", groups)
    pages = [path, *sorted((tmp_path / "g_pages").iterdir())]
    assert [places(page.read_text()) for page in pages] == [
        [*range(1, 61)] * 3,
        [*range(1, 61)] * 3,
        [*range(1, 61)] * 2,
    ]
    for k, link in enumerate(re.findall(r'<li><a href="([^"]*#[^"]+)">instruction', path.read_text())):
        file, anchor = link.split("#")
        page = (tmp_path / file).read_text() if file else path.read_text()
        assert f"instruction {k}" in page[page.index(f'id="{anchor}"') :][:400]


def test_a_new_gallery_takes_the_place_of_an_older_one(make_group, tmp_path):
    path = write_gallery(tmp_path / "g.html", [make_group(PER_PAGE + 1)])
    write_gallery(path, [make_group(2)])
    assert places(path.read_text()) == [1, 2] and not (tmp_path / "g_pages").exists()
    (tmp_path / "g_pages").mkdir()
    (tmp_path / "g_pages" / "mine.html").write_text("mine")
    with pytest.raises(JRMError, match="holds mine.html; choose another name"):
        write_gallery(path, [make_group(2)])


def test_names_are_text_and_what_failed_is_there(make_group, tmp_path):
    odd = b"caf\xe9<b>.png".decode(errors="surrogateescape")
    group = make_group(1, "<script>alert(1)</script>", failed=[{"name": odd, "error": "it is <cut> off."}])
    path = write_gallery(tmp_path / "g.html", [group, make_group(0, failed=[{"name": "x", "error": "gone"}])])
    page = path.read_text()
    assert "<script>" not in page and "<b>" not in page and "<cut>" not in page
    assert "<script>alert(1)</script>" in unescape(page) and "caf?<b>.png: it is <cut> off." in unescape(page)
    assert "2 could not be scored" in page and "1 candidates for 2 instructions" in page


def test_photographs_are_shown_small_and_small_images_as_they_are(make_group, tmp_path):
    group = make_group(2)
    group["candidates"][0]["image"] = Image.effect_noise((1600, 1200), 50)
    page = write_gallery(tmp_path / "g.html", [group]).read_text()
    assert len(re.findall(r'<img src="data:image/jpeg', page)) == 1 and len(page) < 100_000
    assert len(re.findall(r'<img src="data:image/png', page)) == 1 == len(re.findall(r"a%20b.png", page))

"""What the README and the docs point to is there."""

import re
import tomllib
from pathlib import Path

import pytest
from documentation import PAGES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


def links_of(page: Path) -> list[str]:
    return LINK.findall(FENCED.sub("", page.read_text()))


def test_the_readme_points_into_the_repository_by_whole_addresses():
    """An index of packages shows the README without the repository around it."""
    links = links_of(ROOT / "README.md")
    repository = PROJECT["urls"]["Repository"]
    places = (f"{repository}/blob/main/", f"{repository.replace('//github.com', '//raw.githubusercontent.com')}/main/")
    assert len(links) > 5
    for link in links:
        assert link.startswith("https://"), link
        for place in places:
            if link.startswith(place):
                assert (ROOT / link.removeprefix(place)).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_between_files_lead_somewhere(page):
    for link in links_of(page):
        assert "://" in link or (page.parent / link).exists(), link


def test_every_extra_of_the_install_table_exists_and_every_extra_of_users_is_in_it():
    named = set(re.findall(r"`jrm-plugin\[(\w+)\]`", (ROOT / "README.md").read_text()))
    assert named == set(PROJECT["optional-dependencies"]) - {"dev", "docs", "test"}

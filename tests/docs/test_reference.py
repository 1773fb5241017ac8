"""The site's reference has every public name."""

import inspect
import pkgutil
import re

from documentation import ROOT

import jrm_plugin
import jrm_plugin.integrations.trl as trl


def names() -> list[str]:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    return re.findall(r"^::: (\S+)", pages, re.MULTILINE)


def test_every_name_of_the_reference_is_where_it_says():
    for name in names():
        documented = pkgutil.resolve_name(name)
        if inspect.isclass(documented) or inspect.isfunction(documented):  # the site reads the file that defines it
            assert documented.__module__ == name.rpartition(".")[0]


def test_every_public_name_is_in_the_reference():
    documented = {name.rpartition(".")[2] for name in names()}
    assert {*jrm_plugin.__all__, *trl.__all__} - {"__version__"} <= documented

"""The site's reference has every public name."""

import re

from documentation import ROOT

import jrm_plugin
import jrm_plugin.integrations.trl as trl


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", pages, re.MULTILINE)}
    assert {*jrm_plugin.__all__, *trl.__all__} - {"__version__"} <= documented

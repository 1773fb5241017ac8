"""The page of `jrm serve --ui`: there with its flag alone, of one piece, and asking nobody but its own server."""

import base64
import hashlib
import re

import pytest
from scoring_server import Brightness, ready_server


@pytest.fixture(scope="module")
def client():
    with ready_server(Brightness(), ui=True, token="a-long-secret") as client:
        yield client


def test_the_page_is_there_with_its_flag_alone(client, server):
    assert client.get("/ui").status_code == 200  # without the token, for which it has a field
    assert client.get("/v1/models").status_code == 401
    assert server.get("/ui").status_code == 404


def test_a_browser_is_told_to_run_and_load_only_what_is_in_the_page(client):
    answer = client.get("/ui")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'" and policy["img-src"] == "blob: data:"
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


def test_the_page_names_only_routes_of_its_server_and_makes_no_markup_of_text(client):
    page = client.get("/ui").text
    named = {*re.findall(r"""ask\(["']([^"']+)["']""", page), *re.findall(r'(?:src|href|action)="([^"]*)"', page)}
    routes = {"/" + path for path in named if not path.startswith("data:")}
    assert routes == {"/v1/models", "/v1/rank", "/v1/critique", "/docs"}
    assert routes - {"/docs"} <= {*client.get("/openapi.json").json()["paths"]}
    for word in ("http:", "https:", "//cdn", "@import", "url(", "innerHTML", "outerHTML", "insertAdjacent", "eval("):
        assert word not in page
    assert page.count("fetch(") == 1  # that of `ask`, by which the routes are named
    assert not re.search(r"<[^>]* (?:on\w+|style)=", page.partition("<script>")[0])  # the policy would not run them

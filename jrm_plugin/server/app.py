"""The app: every route of the server, on one service."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from html import escape
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from jrm_plugin.files import to_json
from jrm_plugin.records.wire import HEALTH, METRICS, READY
from jrm_plugin.scoring.protocol import Scorer
from jrm_plugin.server import edit_r1, flow_factory, flow_grpo, omnigen2_rl, page, schemas, unirl, v1
from jrm_plugin.server.errors import RequestError
from jrm_plugin.server.service import ScoringService
from jrm_plugin.server.settings import ServerSettings

# Each adds the routes of one wire.
WIRES = [v1.add_routes, unirl.add_routes, flow_factory.add_routes]
# Those whose requests are pickles, which the operator turns on one by one.
PICKLE_WIRES = {
    "flow_grpo": flow_grpo.add_routes,
    "edit_r1": edit_r1.add_routes,
    "omnigen2_rl": omnigen2_rl.add_routes,
}


def create_app(settings: ServerSettings, load: Callable[[], Scorer], *, wait_for_model: bool = False) -> FastAPI:
    """The server as an ASGI app; its lifespan loads the model, in the background.

    Args:
        settings: limits and permissions.
        load: makes the scorer.
        wait_for_model: whether the app starts when the model is loaded, and fails where it cannot be.

    Returns:
        The app; `app.state.service` is its [`ScoringService`].
    """
    service = ScoringService(settings, load)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        if wait_for_model:
            await service.loaded.wait()
            if service.failure is not None:
                raise service.failure
        yield
        await service.stop()

    app = FastAPI(
        title="jrm-plugin",
        version=version("jrm-plugin"),
        description="Scores, rankings and critiques of edited and generated images and of text answers.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere, which a cluster may not reach
        redoc_url=None,
    )
    app.state.service = service
    for add_routes in [*WIRES, *(PICKLE_WIRES[name] for name in settings.pickle_wires)]:
        add_routes(app, service)
    if settings.ui:
        page.add_routes(app)
    _add_operations(app, service)
    _add_errors(app, service)
    _complete_openapi(app)
    return app


def _add_operations(app: FastAPI, service: ScoringService) -> None:
    @app.get(HEALTH)
    async def health() -> Any:
        """Whether the process lives; with the names that UniRL's client looks for, once the model is loaded."""
        names = unirl.rewards(service.scorer.dimensions) if service.scorer is not None else {}
        return {"status": "ok", "rewards": names}

    @app.get(READY, responses={503: {"model": schemas.Failure}})
    async def ready() -> Any:
        """Whether requests are answered: the model is loaded and the server is not stopping."""
        service.check_ready()
        return {"status": "ready"}

    @app.get(METRICS, response_class=PlainTextResponse, responses={401: {"model": schemas.Failure}})
    async def metrics(request: Request) -> Response:
        """For Prometheus."""
        service.check_token(request)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return _page(app.openapi())


def _add_errors(app: FastAPI, service: ScoringService) -> None:
    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> JSONResponse:
        service.metrics.errors.labels(error.code).inc()
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "not_allowed"}.get(error.status_code, "bad_request")
        response = RequestError(
            code, f"{request.method} {request.url.path[:200]}: {error.detail}; see /docs."
        ).response()
        response.headers.update(error.headers or {})  # of 405, which methods there are
        return response


def _complete_openapi(app: FastAPI) -> None:
    """Adds the schemas of requests that FastAPI does not read itself."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            _, own = models_json_schema(
                [(model, "validation") for model in schemas.REQUESTS], ref_template="#/components/schemas/{model}"
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(own["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _page(schema: dict[str, Any]) -> str:
    """The schema as a page of its own, which loads nothing."""
    sections = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            example = content.get("example")
            shown = f"<pre>{escape(to_json(example, indent=2))}</pre>" if example else ""
            about = escape(operation.get("description", ""))
            sections.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{about}</p>{shown}")
    definitions = escape(to_json(schema["components"]["schemas"], indent=2))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>jrm-plugin: routes</title><style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}pre{overflow:auto;background:#f4f4f4;color:#111;padding:1rem}</style>"
        f"<main><h1>{escape(schema['info']['title'])} {escape(schema['info']['version'])}</h1>"
        f'<p>{escape(schema["info"]["description"])} In full, for tools: <a href="/openapi.json">openapi.json</a>.</p>'
        f'{"".join(sections)}<h2>Schemas</h2><pre tabindex="0">{definitions}</pre></main></html>'
    )

"""The ASGI application: what each address does."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ... import __version__
from ..service.requests import Answered, Ask, RegionFound, Text
from ..service.service import Service
from . import chat, regions, schemas
from .body import Bodies, parse
from .errors import APIError, ClientGone, Json
from .events import ask, in_thread
from .metrics import Metrics
from .middleware import Access, Guard
from .settings import Settings
from .sources import pictures

_FOLDER = Path(__file__).parent


def application(service: Service, settings: Settings) -> ASGIApp:
    """The ASGI application around a service. The caller closes the service."""
    return _Server(service, settings).application()


class _Server:
    def __init__(self, service: Service, settings: Settings):
        self._service, self._settings = service, settings
        self._bodies, self._metrics = Bodies(settings), Metrics(service)
        self._page = (_FOLDER / "page.html").read_bytes()
        self._policy = content_security_policy(self._page.decode())
        self._openapi = json.loads((_FOLDER / "openapi.json").read_bytes())
        self._openapi["info"]["version"] = __version__
        self._created = int(time.time())

    def application(self) -> ASGIApp:
        """Routes, and the middleware around them."""
        settings = self._settings
        app: ASGIApp = Starlette(
            routes=[
                Route("/", self.page),
                Route("/health", self.health),
                Route("/metrics", self.metrics),
                Route("/openapi.json", self.openapi),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/regions", self.regions, methods=["POST"]),
            ],
            exception_handlers={APIError: _refused, ClientGone: _gone, HTTPException: _http, Exception: _failed},
        )
        app = Access(app, settings)
        if settings.origins:
            app = CORSMiddleware(
                app, allow_origins=settings.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
            )
        return Guard(app, settings, self._metrics)

    # --- about the server -----------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """The page."""
        return Response(self._page, media_type="text/html", headers={"Content-Security-Policy": self._policy})

    async def health(self, request: Request) -> Response:
        """Whether the server answers."""
        state = self._service.stats()["state"]
        return Json(schemas.Health(state), 200 if state == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document."""
        return Json(self._openapi)

    async def models(self, request: Request) -> Response:
        """The list of the one model."""
        return Json(schemas.Models([self._model()]))

    async def model(self, request: Request) -> Response:
        """The model, if it has this name."""
        self._check_model(request.path_params["name"])
        return Json(self._model())

    def _model(self) -> schemas.Model:
        model = schemas.Model(self._settings.model_name, self._created, "pg_mlx")
        if info := self._service.model:
            for name in ("model_type", "image_size", "image_tokens", "dtype", "device"):
                setattr(model, name, getattr(info, name))
        return model

    def _check_model(self, name: str) -> None:
        """Raises APIError if a request is for another model than this one. name: "" if the request gives none."""
        if name not in ("", self._settings.model_name):
            there = self._settings.model_name
            raise APIError(404, "model_not_found", f"there is no such model here; there is {there}", "model")

    # --- answers --------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """An answer in OpenAI's form, whole or as a stream."""
        async with self._bodies.read(request) as body:
            _expect(request, "application/json")
            asked = await in_thread(lambda: chat.check_chat(parse(body)))
            self._check_model(asked.model)
            prompt, named = chat.question(asked)
            images = await pictures(named, self._settings, self._service.limits)
        seconds = self._settings.request_s
        logprobs = asked.logprobs and asked.top_logprobs
        question = Ask(prompt, images, asked.options(asked.stop), logprobs, seconds, asked.constrain)
        events = self._ask(question, request)
        completion = chat.Completion(asked, self._settings.model_name)
        if asked.stream:
            first = await anext(events)
            return chat.EventStream(chat.stream(completion, first, events))
        done = await _last(events)
        return Json(await in_thread(completion.whole, done.generation))

    async def regions(self, request: Request) -> Response:
        """An answer as boxes and masks."""
        limits = self._service.limits
        async with self._bodies.read(request) as body:
            if _expect(request, "application/json", "multipart/form-data") == "multipart/form-data":
                asked, images = await regions.read_form(request.headers, body, limits)
                self._check_model(asked.model)
            else:
                asked = await in_thread(lambda: regions.check_regions(parse(body)))
                self._check_model(asked.model)
                images = await pictures(regions.named_images(asked), self._settings, limits)
        seconds, constrained = self._settings.request_s, (asked.constrain, regions.enough(asked))
        question = Ask(asked.prompt, images, asked.options(), regions.wants_scores(asked), seconds, *constrained)
        done = await _last(self._ask(question, request))
        return Json(await in_thread(regions.answer, asked, done, self._settings.model_name))

    async def _ask(self, question: Ask, request: Request) -> AsyncGenerator[Text | RegionFound | Answered, None]:
        async with aclosing(ask(self._service, question, request.receive)) as events:
            async for event in events:
                if isinstance(event, Answered):
                    self._metrics.answer(event)
                yield event


async def _last(events: AsyncGenerator[Text | RegionFound | Answered, None]) -> Answered:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Answered):
                return event
    raise AssertionError("an answer ended without an end")


def _expect(request: Request, *kinds: str) -> str:
    """The Content-Type, if it is one of these kinds. Raises APIError otherwise.

    This keeps out web pages that send a request without a preflight, too: such a request cannot be JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        raise APIError(415, "bad_request", f"the Content-Type must be {' or '.join(kinds)}")
    return kind


def content_security_policy(page: str) -> str:
    """The header by which the page may use its own script and style (by their hashes) and ask its own server only."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return error.response()


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return APIError(error.status_code, code, error.detail, headers=error.headers).response()


async def _failed(request: Request, error: Exception) -> Response:
    return APIError(500, "failed", f"unexpected failure ({type(error).__name__})").response()

"""The ASGI application: what each address does."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from msgspec import UNSET
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ... import __version__
from ...demo import CHECKPOINT
from ..service.requests import Answered, Ask
from ..service.service import Service
from . import chat, regions, responses, schemas
from .body import Bodies, Body, parse
from .errors import APIError, ClientGone, Json
from .event_stream import Events, EventStream, Form
from .events import ask, in_thread
from .metrics import Metrics
from .middleware import Access, Guard
from .page import Page
from .parameters import HEADER, check_lenient
from .responses_schemas import ResponsesRequest
from .settings import Settings
from .sources import pictures

_FOLDER = Path(__file__).parent
ADDRESSES = ("/v1/chat/completions", "/v1/responses", "/v1/regions")
"""Those that answer questions."""


def application(service: Service, settings: Settings) -> ASGIApp:
    """The ASGI application around a service. The caller closes the service."""
    return _Server(service, settings).application()


class _Server:
    def __init__(self, service: Service, settings: Settings):
        self._service, self._settings = service, settings
        self._bodies, self._metrics = Bodies(settings), Metrics(service)
        self._page = Page()
        self._sample = (CHECKPOINT.parent / "scene.png").read_bytes()
        self._openapi = json.loads((_FOLDER / "openapi.json").read_bytes())
        self._openapi["info"]["version"] = __version__
        self._created = int(time.time())

    def application(self) -> ASGIApp:
        """Routes, and the middleware around them."""
        settings = self._settings
        app: ASGIApp = Starlette(
            routes=[
                Route("/", self.page),
                Route("/sample.png", self.sample),
                Route("/health", self.health),
                Route("/metrics", self.metrics),
                Route("/openapi.json", self.openapi),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                *(
                    Route(address, endpoint, methods=["POST"])
                    for address, endpoint in zip(ADDRESSES, (self.chat, self.responses, self.regions), strict=True)
                ),
            ],
            exception_handlers={APIError: _refused, ClientGone: _gone, HTTPException: _http, Exception: _failed},
        )
        app = Access(app, settings)
        if settings.origins:
            app = CORSMiddleware(
                app,
                allow_origins=settings.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=[HEADER],
            )
        return Guard(app, settings, self._metrics)

    # --- about the server -----------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """The page."""
        headers = {"Content-Security-Policy": self._page.policy}
        return Response(self._page.document, media_type="text/html", headers=headers)

    async def sample(self, request: Request) -> Response:
        """The picture that the page offers."""
        return Response(self._sample, media_type="image/png")

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
        async with self._body(request, "application/json") as body:
            name = self._settings.model_name
            asked, header = await in_thread(lambda: chat.check_chat(parse(body.data), name))
            form, streamed = chat.Completion(asked, name), asked.stream
            events = await self._ask_messages(request, body, asked, asked.messages, "messages")
            del asked  # it holds pictures
        return await _answer(form, streamed, events, header)

    async def responses(self, request: Request) -> Response:
        """The same in the form of OpenAI's newer protocol."""
        async with self._body(request, "application/json") as body:
            name = self._settings.model_name
            asked, header = await in_thread(lambda: check_lenient(parse(body.data), ResponsesRequest, name))
            form, streamed = responses.ResponseForm(asked, name), asked.stream
            events = await self._ask_messages(request, body, asked, responses.messages(asked), "input")
            del asked
        return await _answer(form, streamed, events, header)

    async def regions(self, request: Request) -> Response:
        """An answer as boxes and masks."""
        limits = self._service.limits
        async with self._body(request, "application/json", "multipart/form-data") as body:
            if _kind(request) == "multipart/form-data":
                asked, images = await regions.read_form(request.headers, body.data, limits)
                self._check_model(asked.model)
            else:
                asked = await in_thread(lambda: regions.check_regions(parse(body.data)))
                self._check_model(asked.model)
                images = await pictures(regions.named_images(asked), self._settings, limits, body.take)
                asked.image = asked.images = UNSET  # they are long
            events = self._ask(request, asked, asked.prompt, images, regions.wants_scores(asked), regions.enough(asked))
            del images
        done = await _last(events)
        return Json(await in_thread(regions.answer, asked, done, self._settings.model_name))

    @asynccontextmanager
    async def _body(self, request: Request, *kinds: str) -> AsyncIterator[Body]:
        """The body of a request, of one of these kinds. Its bytes, and those of pictures that it names, count until the
        end of the block. By then the service counts them."""
        async with self._bodies.read(request) as body:
            _expect(request, *kinds)
            yield body

    async def _ask_messages(
        self,
        request: Request,
        body: Body,
        asked: schemas.ChatRequest | ResponsesRequest,
        messages: Sequence[schemas.Message],
        name: str,
    ) -> Events:
        prompt, named = chat.question(messages, name)
        images = await pictures(named, self._settings, self._service.limits, body.take)
        return self._ask(request, asked, prompt, images, asked.logprobs and asked.top_logprobs)

    def _ask(
        self,
        request: Request,
        asked: schemas.ChatRequest | ResponsesRequest | schemas.RegionsRequest,
        prompt: str,
        images: list[bytes],
        logprobs: bool | int = False,
        max_regions: int | None = None,
    ) -> Events:
        """Submit a question. Raises APIError if it is refused."""
        question = Ask(
            prompt,
            images,
            asked.options(),
            logprobs,
            self._settings.request_s,
            asked.constrain,
            max_regions,
            asked.as_long_as_may_be,
        )
        return self._noted(ask(self._service, question, request.receive))

    async def _noted(self, events: Events) -> Events:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Answered):
                    self._metrics.answer(event)
                yield event


async def _answer(form: Form, streamed: bool, events: Events, headers: Mapping[str, str]) -> Response:
    """The response that carries an answer."""
    if streamed:
        return EventStream(form, await anext(events), events, headers)
    done = await _last(events)
    return Json(await in_thread(form.whole, done.generation), headers=headers)


async def _last(events: Events) -> Answered:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Answered):
                return event
    raise AssertionError("an answer ended without an end")


def _expect(request: Request, *kinds: str) -> None:
    """Raises APIError if the Content-Type is none of these kinds.

    This also keeps out web pages that send a request without a preflight: such a request cannot be JSON."""
    if _kind(request) not in kinds:
        raise APIError(415, "bad_request", f"the Content-Type must be {' or '.join(kinds)}")


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return error.response()


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"there is no such address here; questions go to {', '.join(ADDRESSES)}"
        return APIError(404, "not_found", message).response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"this address takes {allowed} only"
        return APIError(405, "method_not_allowed", message, headers=error.headers).response()
    return APIError(error.status_code, "bad_request", error.detail, headers=error.headers).response()


async def _failed(request: Request, error: Exception) -> Response:
    return APIError(500, "failed", f"unexpected failure ({type(error).__name__})").response()

"""Embedding servers, each answering as its own source or documentation says: what a connector must get along with.

A shape is no model: a vector is made of its text's hash, so that a mix-up shows. What is taken from the server is what
a client notices: its limits and what it does beyond them, whether it cuts texts off, whether it heeds
`encoding_format` and `dimensions`, how it counts, and how its errors look. `docs/howto/providers.md` names the sources.
A word counts as a token.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import orjson

from daemon.ports import Matrix
from tests.fakes.embedder import vector_of
from tests.ports.loopback import Answer, Request

KEY = "sk-of-the-shape"
MODEL = "the-model"

Body = Mapping[str, Any]


class Refused(Exception):
    """The server answers with this instead."""

    def __init__(self, status: int, body: object, **headers: str) -> None:
        raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
        self.answer: Answer = status, {k.replace("_", "-"): v for k, v in headers.items()}, raw


@dataclass
class Shape:
    """A server. state: answers every request with this refusal while it is set. wants_key: as the operator set it."""

    name: ClassVar[str]
    path: ClassVar[str] = "/v1/embeddings"
    native: ClassVar[int] = 24
    heeds_base64: ClassVar[bool] = True

    input_tokens: int = 8
    wants_key: bool = True
    state: Refused | None = None

    def __call__(self, request: Request) -> Answer:
        try:
            self.look_at_key(request.headers)
            if request.line.split()[1].partition("?")[0] != self.path:
                raise self.no_such_path(request.line.split()[1])
            body = orjson.loads(request.body)
            if self.state is not None:
                raise self.state
            self.look_at_model(body["model"])
            return self.embedded(body)
        except Refused as refused:
            return refused.answer

    def embedded(self, body: Body) -> Answer:
        texts = [self.cut(text) for text in self.inputs(body["input"])]
        dimensions = self.length(body.get("dimensions"))
        is_base64 = self.heeds_base64 and body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": n, "embedding": encoded(vector(text, dimensions), is_base64)}
            for n, text in enumerate(texts)
        ]
        usage = self.usage(sum(len(text.split()) for text in texts))
        answer = {"object": "list", "data": data, "model": body["model"], "usage": usage}
        return 200, self.headers(), orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    # What follows is OpenAI's; the others say where they differ.

    def look_at_key(self, headers: Mapping[str, str]) -> None:
        if self.wants_key and headers.get("authorization") != f"Bearer {KEY}":
            raise self.wrong_key()

    def wrong_key(self) -> Refused:
        return Refused(401, openai_error("Incorrect API key provided.", code="invalid_api_key"))

    def no_such_path(self, path: str) -> Refused:
        return Refused(404, openai_error(f"Invalid URL (POST {path})"))

    def look_at_model(self, model: str) -> None:
        if model != MODEL:
            raise Refused(404, openai_error("The model does not exist", "model", "model_not_found"))

    def inputs(self, given: list[str]) -> list[str]:
        if len(given) > 2048:
            raise Refused(400, openai_error("'$.input' is invalid: array too long", "input"))
        return given

    def cut(self, text: str) -> str:
        """What the server embeds of a text that is too long for it."""
        if len(text.split()) > self.input_tokens:
            tokens = len(text.split())
            raise Refused(400, openai_error(f"maximum context length is 8192 tokens, you requested {tokens}: {text}"))
        return text

    def length(self, asked: int | None) -> int:
        return asked or self.native

    def usage(self, tokens: int) -> dict[str, int]:
        return {"prompt_tokens": tokens, "total_tokens": tokens}

    def headers(self) -> dict[str, str]:
        return {"content-type": "application/json"}


class OpenAI(Shape):
    name = "openai"

    def headers(self) -> dict[str, str]:
        limits = {"x-ratelimit-limit-requests": "3000", "x-ratelimit-limit-tokens": "1000000"}
        return {**super().headers(), **limits, "x-ratelimit-reset-tokens": "6m0s"}


class Azure(OpenAI):
    name = "azure"
    path = "/openai/v1/embeddings"

    def look_at_key(self, headers: Mapping[str, str]) -> None:
        if headers.get("api-key") != KEY or "authorization" in headers:
            raise self.wrong_key()

    def wrong_key(self) -> Refused:
        message = "Access denied due to invalid subscription key or wrong API endpoint."
        return Refused(401, {"error": {"code": "401", "message": message}})

    def look_at_model(self, model: str) -> None:
        if model != MODEL:
            message = "The API deployment for this resource does not exist."
            raise Refused(404, {"error": {"code": "DeploymentNotFound", "message": message}})


class AzureClassic(Azure):
    name = "azure, by deployment"
    path = f"/openai/deployments/{MODEL}/embeddings"

    def no_such_path(self, path: str) -> Refused:
        return Refused(404, {"error": {"code": "404", "message": "Resource not found"}})


class Ollama(Shape):
    """Cuts texts off to the context without a word."""

    name = "ollama"

    def look_at_key(self, headers: Mapping[str, str]) -> None:
        """It asks for none."""

    def look_at_model(self, model: str) -> None:
        if model != MODEL:
            raise Refused(404, self.error(f"model '{model}' not found", "not_found_error"))

    def inputs(self, given: list[str]) -> list[str]:
        return given

    def cut(self, text: str) -> str:
        return " ".join(text.split()[: self.input_tokens])

    def length(self, asked: int | None) -> int:
        return min(asked or self.native, self.native)

    @staticmethod
    def error(message: str, kind: str = "api_error") -> object:
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class VLLM(Shape):
    """Refuses `dimensions` for a model that was not trained for it, with a number for a code."""

    name = "vllm"

    def wrong_key(self) -> Refused:
        return Refused(401, {"error": "Unauthorized"})

    def look_at_model(self, model: str) -> None:
        if model != MODEL:
            raise Refused(404, self.error(404, "The model does not exist.", "NotFoundError", "model"))

    def inputs(self, given: list[str]) -> list[str]:
        return given

    def cut(self, text: str) -> str:
        if (tokens := len(text.split())) > self.input_tokens:
            message = f"This model's maximum context length is {self.input_tokens} tokens, you requested {tokens}"
            raise Refused(400, self.error(400, message, "BadRequestError"))
        return text

    def length(self, asked: int | None) -> int:
        if asked is not None:
            message = "Model does not support matryoshka representation, changing output dimensions"
            raise Refused(400, self.error(400, message, "BadRequestError"))
        return self.native

    @staticmethod
    def error(code: int, message: str, kind: str, param: str | None = None) -> object:
        return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class EarlierVLLM(VLLM):
    """Before its errors stood under `error`."""

    name = "vllm, earlier"

    @staticmethod
    def error(code: int, message: str, kind: str, param: str | None = None) -> object:
        return {"object": "error", "message": message, "type": kind, "param": param, "code": code}


class TEI(Shape):
    """text-embeddings-inference: 32 inputs, cuts texts off, knows one model whatever it is asked for."""

    name = "text-embeddings-inference"

    def wrong_key(self) -> Refused:
        return Refused(401, "")

    def look_at_model(self, model: str) -> None:
        """A wrong name is only logged."""

    def inputs(self, given: list[str]) -> list[str]:
        if sum(map(len, given)) > 2_000_000:
            raise Refused(413, "Failed to buffer the request body: length limit exceeded")
        if len(given) > 32:
            raise Refused(
                422, self.error(422, f"batch size {len(given)} > maximum allowed batch size 32", "Validation")
            )
        return given

    def cut(self, text: str) -> str:
        return " ".join(text.split()[: self.input_tokens])

    def length(self, asked: int | None) -> int:
        if asked is not None and asked > self.native:
            message = "`dimensions` should be smaller than the maximum embedding dimension."
            raise Refused(422, self.error(422, message, "Validation"))
        return asked or self.native

    @staticmethod
    def error(code: int, message: str, kind: str) -> object:
        return {"message": message, "code": code, "type": kind}


class StrictTEI(TEI):
    """Started with --auto-truncate false."""

    name = "text-embeddings-inference, strict"

    def cut(self, text: str) -> str:
        if (tokens := len(text.split())) > self.input_tokens:
            message = f"`inputs` must have less than {self.input_tokens} tokens. Given: {tokens}"
            raise Refused(422, self.error(422, message, "Validation"))
        return text


class LMStudio(Shape):
    """Numbers whatever was asked for, no count of tokens, 200 for a path that it does not know; cuts texts off."""

    name = "lm studio"
    heeds_base64 = False

    def no_such_path(self, path: str) -> Refused:
        return Refused(200, {"error": f"Unexpected endpoint or method. (POST {path})"})

    def look_at_model(self, model: str) -> None:
        if model != MODEL:
            message = f'Failed to load model "{model}". Error: Model is not embedding.'
            raise Refused(404, openai_error(message, "model", "model_not_found"))

    def inputs(self, given: list[str]) -> list[str]:
        return given

    def cut(self, text: str) -> str:
        return " ".join(text.split()[: self.input_tokens])

    def length(self, asked: int | None) -> int:
        return self.native

    def usage(self, tokens: int) -> dict[str, int]:
        return {"prompt_tokens": 0, "total_tokens": 0}


class LlamaCpp(Shape):
    """llama-server: 500 for a text longer than its physical batch; does not know `dimensions` or a model's name."""

    name = "llama.cpp"

    def wrong_key(self) -> Refused:
        return Refused(401, self.error(401, "Invalid API Key", "authentication_error"))

    def no_such_path(self, path: str) -> Refused:
        return Refused(404, self.error(404, "File Not Found", "not_found_error"))

    def look_at_model(self, model: str) -> None:
        """One model, by whatever name."""

    def inputs(self, given: list[str]) -> list[str]:
        return given

    def cut(self, text: str) -> str:
        if (tokens := len(text.split())) > self.input_tokens:
            message = f"input ({tokens} tokens) is too large to process. increase the physical batch size"
            raise Refused(500, self.error(500, message, "server_error"))
        return text

    def length(self, asked: int | None) -> int:
        return self.native

    @staticmethod
    def error(code: int, message: str, kind: str) -> object:
        return {"error": {"code": code, "message": message, "type": kind}}


def openai_error(message: str, param: str | None = None, code: str | None = None) -> object:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def vector(text: str, dimensions: int) -> Matrix:
    """float32 (dimensions,), of length 1."""
    return vector_of(text, dimensions, MODEL)


def encoded(vector: Matrix, is_base64: bool) -> str | Matrix:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode() if is_base64 else vector


SHAPES: tuple[Callable[[], Shape], ...] = (
    *(OpenAI, Azure, AzureClassic, Ollama, VLLM, EarlierVLLM, TEI, StrictTEI, LMStudio, LlamaCpp),
)

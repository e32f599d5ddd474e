"""An OpenAI-compatible embeddings server with a model that its wheel carries: no key, no network, no cost.

    POST /v1/embeddings    GET /v1/models    GET /stats (requests, inputs, tokens, errors served so far)

The model is `wordllama-256`; `dimensions` may cut its vectors to 128 or 64, as its training allows, normalised again.
Limits and error objects follow OpenAI's. Never logs or returns a text it was sent. One worker thread embeds, so the
loop keeps answering.
"""

import argparse
import asyncio
import base64
import hmac
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import uvicorn
import wordllama
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MODEL = "wordllama-256"
DIMENSIONS = (256, 128, 64)
MOST_INPUTS = 2048
MOST_TOKENS_PER_INPUT = 8192
MOST_TOKENS = 300_000
GROUP = 16

Matrix = npt.NDArray[np.float32]


class Refused(Exception):
    """A request that OpenAI would refuse too."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass
class Stats:
    """What was served since the start; written by the event loop only."""

    requests: int = 0
    inputs: int = 0
    tokens: int = 0
    errors: int = 0


@dataclass(frozen=True)
class Ask:
    """A checked request."""

    texts: list[str]
    dimensions: int
    is_base64: bool

    @classmethod
    def checked(cls, body: Any) -> "Ask":
        """Read a request's body. Raises Refused."""
        if not isinstance(body, dict):
            raise Refused("the body is not a JSON object")
        if body.get("model") != MODEL:
            raise Refused(f"the model does not exist; this server has {MODEL}", "model", "model_not_found", status=404)
        texts = body.get("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused("'input' is neither a string nor an array of strings", "input")
        if not texts or not all(texts):
            raise Refused("'input' is empty or has an empty string", "input")
        if len(texts) > MOST_INPUTS:
            raise Refused(f"'input' has {len(texts)} items, at most {MOST_INPUTS} are allowed", "input")
        dimensions = body.get("dimensions", DIMENSIONS[0])
        if dimensions not in DIMENSIONS:
            raise Refused(f"'dimensions' is none of {', '.join(map(str, DIMENSIONS))}", "dimensions")
        encoding = body.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise Refused("'encoding_format' is neither float nor base64", "encoding_format")
        return cls(texts, dimensions, encoding == "base64")


@dataclass
class Server:
    """The model and what it has served."""

    key: str
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        package = Path(wordllama.__file__).parent
        self._model = wordllama.WordLlama.load(cache_dir=package, disable_download=True)
        self._worker = ThreadPoolExecutor(max_workers=1)

    def embed(self, texts: list[str], dimensions: int) -> tuple[Matrix, int]:
        """float32 (N, dimensions), rows of length 1; and the number of tokens. Raises Refused."""
        encodings = self._model.tokenizer.encode_batch(texts, add_special_tokens=False)
        counts = [sum(encoding.attention_mask) for encoding in encodings]  # without what pads a batch
        if max(counts) > MOST_TOKENS_PER_INPUT:
            raise Refused(f"an input has more than {MOST_TOKENS_PER_INPUT} tokens", "input")
        if sum(counts) > MOST_TOKENS:
            raise Refused(f"the inputs have {sum(counts)} tokens, at most {MOST_TOKENS} are allowed", "input")
        vectors = np.empty((len(texts), dimensions), dtype=np.float32)
        by_length = np.argsort(counts)  # the model pads a batch to its longest text: neighbours in length cost least
        for start in range(0, len(texts), GROUP):
            group = by_length[start : start + GROUP]
            vectors[group] = self._model.embed([texts[i] for i in group])[:, :dimensions]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(lengths, np.float32(1e-12)), sum(counts)

    def answer(self, ask: Ask) -> tuple[bytes, int]:
        """The response's body, written here because half a million numbers would hold the loop; and the tokens."""
        vectors, tokens = self.embed(ask.texts, ask.dimensions)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, ask.is_base64)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {"object": "list", "data": data, "model": MODEL, "usage": usage}
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), tokens

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        self.stats.requests += 1
        try:
            self._authorise(request)
            try:
                ask = Ask.checked(await request.json())
            except ValueError:
                raise Refused("the body is not JSON") from None
            body, tokens = await asyncio.get_running_loop().run_in_executor(self._worker, self.answer, ask)
        except Refused as refused:
            self.stats.errors += 1
            return JSONResponse(refused.body, refused.status)
        self.stats.inputs += len(ask.texts)
        self.stats.tokens += tokens
        return Response(body, media_type="application/json")

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        try:
            self._authorise(request)
        except Refused as refused:
            return JSONResponse(refused.body, refused.status)
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "sandbox"}
        return JSONResponse({"object": "list", "data": [model]})

    async def show_stats(self, request: Request) -> Response:
        """GET /stats, without a key."""
        return JSONResponse(asdict(self.stats))

    def _authorise(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.key}".encode()):
            raise Refused("incorrect API key", code="invalid_api_key", status=401)


def _encoded(vector: Matrix, is_base64: bool) -> str | Matrix:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if is_base64 else vector


def application(key: str) -> Starlette:
    """The server as an ASGI application; loading the model takes 0.3 s."""
    server = Server(key)
    return Starlette(
        routes=[
            Route("/v1/embeddings", server.embeddings, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/stats", server.show_stats),
        ]
    )


def main() -> None:
    """Serve on 127.0.0.1; the key comes from SANDBOX_EMBEDDINGS_KEY, not from the visible command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    uvicorn.run(application(os.environ["SANDBOX_EMBEDDINGS_KEY"]), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()

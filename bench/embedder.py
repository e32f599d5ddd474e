"""What the openai connector moves of what a bare loop moves: httpx2, orjson, base64 and numpy, nothing else.

A server in a process of its own answers from bytes made beforehand, so that it costs next to nothing. Connector and
loop send the same requests to it, as many at once, and take turns in one run: the ratio of neighbours is what counts,
because the machine changes its speed. Both read every vector into a float32 matrix; the connector also checks it.
"""

from __future__ import annotations

import asyncio
import base64
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import httpx2
import numpy as np
import orjson

from connectors.openai_embedder import OpenAIEmbedder

DIMENSIONS = 1536
INPUTS = 256
IN_FLIGHT = 4
LEAST_RATIO = 0.60
TEXT = "a text of some forty tokens, as long as a sentence in a document is, said once more and then once again "

Embed = Callable[[list[str]], Awaitable[Any]]


def answer_of(inputs: int) -> bytes:
    """A whole HTTP answer: vectors of length 1 as base64."""
    vectors = np.random.default_rng(7).standard_normal((inputs, DIMENSIONS)).astype("<f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    data = [
        {"object": "embedding", "index": n, "embedding": base64.b64encode(vector.tobytes()).decode()}
        for n, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": 20 * inputs, "total_tokens": 20 * inputs}
    body = orjson.dumps({"object": "list", "data": data, "model": "bench", "usage": usage})
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def serve(ready: Connection) -> None:
    """Answer every request alike, until the process is ended."""
    answer = answer_of(INPUTS)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def listen() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


@contextmanager
def provider() -> Iterator[str]:
    """A base URL for the block."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


async def bare(client: httpx2.AsyncClient, url: str, texts: list[str]) -> np.ndarray[Any, Any]:
    """The least that can be done: send, read, decode into one matrix."""
    body = orjson.dumps({"input": texts, "model": "bench", "encoding_format": "base64"})
    response = await client.post(f"{url}/embeddings", content=body, headers={"content-type": "application/json"})
    data = orjson.loads(response.content)["data"]
    matrix = np.empty((len(data), DIMENSIONS), dtype=np.float32)
    for item in data:
        matrix[item["index"]] = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
    return matrix


async def rate(embed: Embed, requests: int) -> float:
    """Vectors per second of `requests` requests, IN_FLIGHT at once."""
    texts = [f"{TEXT}{n}" for n in range(INPUTS)]
    left = iter(range(requests))

    async def worker() -> None:
        for _ in left:
            await embed(texts)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(worker())
    return requests * INPUTS / (time.perf_counter() - began)


async def pairs(url: str, runs: int, requests: int) -> list[tuple[float, float]]:
    """(connector, bare loop) in vectors per second, one after the other."""
    embedder = OpenAIEmbedder(url, "sk-bench", "bench", DIMENSIONS, normalised=True)
    client = httpx2.AsyncClient(timeout=60)

    async def loop(texts: list[str]) -> Any:
        return await bare(client, url, texts)

    try:
        await rate(embedder.embed, IN_FLIGHT), await rate(loop, IN_FLIGHT)  # connections and imports are not measured
        return [(await rate(embedder.embed, requests), await rate(loop, requests)) for _ in range(runs)]
    finally:
        await embedder.close()
        await client.aclose()


def measure(*, is_quick: bool) -> dict[str, Any]:
    with provider() as url:
        found = asyncio.run(pairs(url, runs=1 if is_quick else 15, requests=8 if is_quick else 32))
    ratios = [a / b for a, b in found]
    return {
        "vectors_per_s": round(statistics.median(a for a, _ in found)),
        "bare_per_s": round(statistics.median(b for _, b in found)),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "least_ratio": LEAST_RATIO,
        "runs": len(found),
    }


def told(found: dict[str, Any]) -> str:
    ratio = found["ratio"]
    return (
        f"{found['vectors_per_s']} vectors/s at {DIMENSIONS}-d, {ratio['median']:.2f} of a bare loop "
        f"({ratio['min']:.2f} to {ratio['max']:.2f}, {found['runs']} pairs; due: {LEAST_RATIO:.2f})"
    )

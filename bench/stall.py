"""How long the event loop is kept waiting while a document of 10 MB is rendered, cut, digested and counted beside it.

The worker thread does what the embedder's does (`flow.embed.planned`); the loop asks for a millisecond's sleep again
and again, and what the longest took more is its stall. `own` leaves out what both threads waited for a processor, so it
holds on a busy machine too; Linux tells. Two controls: a worker that sleeps, and one that runs plain Python. Documents
of every shape that splitters are slow on: one line, no space, no punctuation, one character.
"""

from __future__ import annotations

import asyncio
import random
import string
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import wordllama

from connectors.tokenizers import load
from daemon.core.chunking import Tokenizer, cut_of
from daemon.core.contract import SPLITTER, Chunker, Contract
from daemon.core.model import Claim, Column, Table
from daemon.flow.embed import Crew, planned
from daemon.ports import Document
from daemon.service.supervise import stay_responsive
from sandbox.corpus import corpus

BYTES, QUICK_BYTES = 10_000_000, 300_000
TOKENS, OVERLAP = 512, 50
CONTROL_S, QUICK_CONTROL_S = 10.0, 0.5
TABLE = Table(1, "doc", "app", "doc", ("id",), (Column("body", "text", "text"),), "{body}", ("body",))

_DRAW = random.Random(4)
_PROSE = "\n\n".join(piece.text for piece in corpus())
_LINE = " ".join(_PROSE.split())
_HAN = [chr(code) for code in range(0x4E00, 0x9FA6)]


def _ideographs(n: int, sentence: int | None) -> str:
    drawn = _DRAW.choices(_HAN, k=n)
    return "".join(c + ("。" if sentence and not at % sentence else "") for at, c in enumerate(drawn))


# A document of about n bytes
SHAPES: dict[str, Callable[[int], str]] = {
    "prose": lambda n: (_PROSE * (n // len(_PROSE) + 1))[:n],
    "lines": lambda n: ("\n".join(_PROSE.split("\n\n")) * (n // len(_PROSE) + 1))[:n] + "\n\nend",
    "one line": lambda n: (_LINE * (n // len(_LINE) + 1))[:n],
    "words": lambda n: (" ".join(_LINE.translate({ord(c): None for c in ".!?"}).split()) * (n // len(_LINE) + 2))[:n],
    "one word": lambda n: "".join(_DRAW.choices(string.ascii_lowercase, k=n)),
    "digits": lambda n: "".join(_DRAW.choices(string.digits, k=n)),
    "one letter": lambda n: "a" * n,
    "Chinese": lambda n: _ideographs(n // 3, 30),
    "Chinese without punctuation": lambda n: _ideographs(n // 3, None),
}


def measure(*, is_quick: bool) -> dict[str, Any]:
    size = QUICK_BYTES if is_quick else BYTES
    stay_responsive()
    folder = Path(wordllama.__file__).parent
    file = next(folder.rglob("*tokenizer*.json"))
    crews = {"cl100k_base": _crew(load("cl100k_base", folder)), "tokenizer.json": _crew(load(file.name, file.parent))}
    seconds = QUICK_CONTROL_S if is_quick else CONTROL_S
    found: dict[str, Any] = {
        "bytes": size,
        "a worker that sleeps": asyncio.run(_watched(time.sleep, seconds)),
        "a worker that runs plain Python": asyncio.run(_watched(_spin, seconds)),
    }
    for shape, make in SHAPES.items():
        text = make(size)
        for name, crew in crews.items() if shape == "prose" else [("cl100k_base", crews["cl100k_base"])]:
            found[f"{shape}, {name}"] = asyncio.run(_watched(_plan, crew, text))
    return found


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _crew(tokenizer: Tokenizer) -> Crew:
    chunker = Chunker("tokens", SPLITTER, {"tokens": TOKENS, "overlap": OVERLAP}, tokenizer.identity)
    contract = Contract("openai", "small", "", 8, "vector", "cosine", True, "", "", {"doc": "{body}"}, chunker)
    parts = {
        "contract": contract,
        "tokenizer": tokenizer,
        "cut": cut_of(contract, tokenizer),
        "most_input_tokens": None,
    }
    return cast(Crew, SimpleNamespace(**parts))


def _plan(crew: Crew, text: str) -> int:
    return len(planned(crew, TABLE, (Claim(1, 1, 1, 1, 0),), [Document(1, {"body": text}, {})]).chunks)


async def _watched(work: Callable[..., Any], *given: Any) -> dict[str, Any]:
    """{"stall_s", "own_s", "seconds", "chunks"} of a piece of work in a thread of its own."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as worker:
        threads = (threading.get_native_id(), await loop.run_in_executor(worker, threading.get_native_id))
        stall = own = 0.0
        began = last = time.perf_counter()
        waited = _waited(threads)
        done = loop.run_in_executor(worker, work, *given)
        while not done.done():
            await asyncio.sleep(0.001)
            now, before, waited = time.perf_counter(), waited, _waited(threads)
            stall, own = max(stall, now - last - 0.001), max(own, now - last - 0.001 - (waited - before))
            last = now
        return {"stall_s": stall, "own_s": own, "seconds": time.perf_counter() - began, "chunks": await done}


def _waited(threads: Iterable[int]) -> float:
    """Seconds that the threads were ready to run and no processor was free; 0 where the system does not say."""
    files = [Path(f"/proc/self/task/{thread}/schedstat") for thread in threads]
    return sum(int(file.read_text().split()[1]) for file in files if file.exists()) / 1e9


def told(found: dict[str, Any]) -> str:
    lines = [f"worst stall of the loop beside a document of {found['bytes']:,} bytes"]
    for name, case in found.items():
        if name != "bytes":
            stall, own = (1000 * case[key] for key in ("stall_s", "own_s"))
            chunks = f"{case['chunks']:7} chunks in {case['seconds']:6.1f} s" if case["chunks"] else ""
            lines.append(f"{'':10}{name:42}{stall:6.1f} ms, own {own:6.1f} ms  {chunks}".rstrip())
    return "\n".join(lines)

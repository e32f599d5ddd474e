"""The demo's stage "second generation": 64 dimensions beside 256, from a provider that throttles and sometimes fails.

    provider -> config with both -> `revector generation add` -> one more `revector embed` -> clients write -> both
    ready -> both compared and proven -> later: both checked, every vector of the second one against its text

The daemon that runs since the beginning knows the first generation alone; its stream feeds both. The provider's
vectors are made from the texts' hashes, so a vector that landed at another text is found.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sandbox.compare import Differences, compare, wrong_vectors
from sandbox.config import Choice, Gen, render
from sandbox.daemons import Daemon, asked, verified, wait
from sandbox.provider import ProviderServer
from sandbox.provider_script import Faults, Latency, Limits, Script
from sandbox.stack import Sandbox
from sandbox.writer import Writer

V3 = "v3"
DIMENSIONS = 64
LIMITS = {"request_timeout_s": 15, "in_flight": 4, "request_tokens": 20_000}
SCRIPT = Script(
    limits=Limits(tokens_per_minute=3_000_000, requests_per_minute=1200, window_s=10),
    latency=Latency(kind="lognormal", seconds=0.08),
    faults=Faults(
        probability={"status-503": 0.05, "throttled": 0.05, "reset": 0.03, "truncated": 0.03, "shuffled": 0.05},
        retry_after_s=0.5,
    ),
)


@dataclass
class Second:
    """One run of the stage over a running migration; `report` is what it found out."""

    sandbox: Sandbox
    choice: Choice
    rate: float
    minutes: float

    def feed(self, daemon: Daemon, watch: AbstractContextManager[None]) -> dict[str, Any]:
        """Add it, embed it while clients write, stop them, wait until both are ready, compare, prove both.

        Raises SandboxError."""
        began = time.monotonic()
        provider = self.sandbox.scripted_provider()
        provider.set(SCRIPT)
        self._configure(provider)
        embedder = Daemon(self.sandbox.config, self.sandbox.logs / "revector-embed.log", "embed")
        with Writer(self.sandbox.source_dsn, rate=self.rate) as writer, watch:
            asked(self.sandbox.config, "generation", "add", V3)
            embedder.start()
            time.sleep(self.minutes * 60)
            written = writer.stop()
            for generation in (V3, self.choice.generations[-1].name):
                wait(self.sandbox.config, [daemon, embedder], "ready", "--generation", generation)
        report = {
            "fed_under_writes_s": round(written.seconds, 1),
            "changes": written.transactions,
            "comparison": verified(self.sandbox.config),
            "certificates": {g.name: self._proven(g.name) for g in (*self.choice.generations, Gen(V3))},
            "generations": asked(self.sandbox.config, "generation", "list")["generations"],
            "provider": served(provider),
        }
        report["embedder_exit_status"] = embedder.stop()
        report["seconds"] = round(time.monotonic() - began, 1)
        return report

    def compare(self) -> tuple[Differences, dict[str, int]]:
        """Source against the second generation, and its vectors against their texts."""
        found, _ = compare(self.sandbox.source_dsn, self.sandbox.target_dsn, self.choice.name, generation=V3)
        wrong, seen = wrong_vectors(self.sandbox.target_dsn, self.choice.name, V3, DIMENSIONS)
        return found, {"vectors": seen, "wrong_vectors": wrong}

    def _configure(self, provider: ProviderServer) -> None:
        extra = {"tokenizer": "cl100k_base"}
        second = Gen(V3, "test-embedding", DIMENSIONS, provider.url, limits=LIMITS, extra=extra)
        generations = (*self.choice.generations, second)
        choice = Choice(name=self.choice.name, generations=generations, limits=self.choice.limits)
        self.sandbox.config.write_text(render(self.sandbox, choice))

    def _proven(self, generation: str) -> dict[str, Any]:
        proof = asked(self.sandbox.config, "prove", "--timeout", "60", "--generation", generation)
        return {"digest": proof["digest"], "compared": proof["certificate"]["compared"]}


def served(provider: ProviderServer) -> dict[str, Any]:
    """What the provider says of it: answers by status, faults by kind."""
    stats = provider.stats()
    names = ("requests", "answered", "tokens", "tokens_wasted", "statuses", "faults")
    return {name: stats[name] for name in names}

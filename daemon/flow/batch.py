"""One batch of the embedder: what its claims need, what came back so far, and what that means. Values only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from daemon.core.model import Chunk, Claim, Entry, Table
from daemon.core.refusals import OF_A_TEXT
from daemon.errors import ItemRefused, StrangeAnswer, TransientError
from daemon.ports import Matrix


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch of claims needs. texts: digest -> text to embed, without those that have a vector. tokens: of each.
    gone: claims whose row is deleted or incomplete. too_long: digests that no request can hold. avoided: row -> tokens
    of its chunks that keep their vectors. kept: row and digest of these."""

    table: Table
    claims: tuple[Claim, ...]
    chunks: tuple[Chunk, ...]
    texts: Mapping[bytes, str]
    tokens: Mapping[bytes, int]
    gone: tuple[Claim, ...] = ()
    too_long: frozenset[bytes] = frozenset()
    avoided: Mapping[int, int] = field(default_factory=dict)
    kept: frozenset[tuple[int, bytes]] = frozenset()

    @property
    def asked(self) -> tuple[Chunk, ...]:
        """Chunks that need an answer. The text of a kept one may be another row's too, which does need it."""
        return tuple(c for c in self.chunks if (c.row_id, c.digest) not in self.kept)

    def of(self, rows: Collection[int]) -> Plan:
        """The part of it that concerns `rows`."""
        return replace(
            self,
            claims=tuple(c for c in self.claims if c.row_id in rows),
            chunks=tuple(c for c in self.chunks if c.row_id in rows),
            gone=tuple(c for c in self.gone if c.row_id in rows),
        )

    def parts(self, chunks: int) -> Iterator[Plan]:
        """Of whole rows, each with about so many chunks; at least one part."""
        sizes = Counter(c.row_id for c in self.chunks)
        rows: set[int] = set()
        held = 0
        for claim in self.claims:
            if rows and held + sizes[claim.row_id] > chunks:
                yield self.of(rows)
                rows, held = set(), 0
            rows.add(claim.row_id)
            held += sizes[claim.row_id]
        yield self.of(rows)


@dataclass(slots=True)
class Answer:
    """What came back so far. vectors: digest -> float32 (D,). refused: digests the provider refuses, with the code.
    doubtful: digests of requests whose answer was strange."""

    vectors: dict[bytes, Matrix] = field(default_factory=dict)
    doubtful: set[bytes] = field(default_factory=set)
    refused: dict[bytes, str] = field(default_factory=dict)
    tokens: int = 0
    requests: int = 0

    def has(self, digest: bytes) -> bool:
        return digest in self.vectors or digest in self.refused


def is_strange(outcome: BaseException | None) -> bool:
    """Whether a request is to be repeated because its answer could not be right."""
    return isinstance(outcome, TransientError) and isinstance(outcome.__cause__, StrangeAnswer)


def is_doubtful(outcome: BaseException | None) -> bool:
    """Whether a text of the request may be what spoiled its answer."""
    return is_strange(outcome) and isinstance(outcome, TransientError) and outcome.id in OF_A_TEXT


def reason_of(refusal: ItemRefused | None) -> str:
    """What the quarantine keeps of a refusal: status, code and parameter, never prose."""
    if refusal is None:
        raise AssertionError("a text is refused by a refusal")
    return " ".join(filter(None, (f"status-{refusal.status}", refusal.code, refusal.param)))


def is_newest(claim: Claim, entries: Mapping[int, Entry]) -> bool:
    """Whether the row has not changed since it was claimed."""
    entry = entries.get(claim.row_id)
    return entry is not None and entry.newest_seq == claim.seq

"""One generation's provider as the workers of a process see it: behind the gate, and not trusted blindly.

Before the first row, and every few minutes, a canary text is embedded and compared with the vector it had when the
generation began: a model that changed behind its name, a key or an address that went wrong, is found before rows are.
Texts of several rows refused in a row may mean the same. Then embedding halts, with no more than these in
quarantine; replication goes on.

Knows no table and no text of a row. Errors name ids and numbers only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

import numpy as np

from daemon.core.model import Canary, Generation
from daemon.core.refusals import ANSWERED, OF_A_TEXT
from daemon.errors import Halt, ItemRefused, PermissionRefused, ProviderWrong, StrangeAnswer, TransientError
from daemon.flow.gate import Gate
from daemon.flow.pacing import wait
from daemon.ports import Embedded, Embedder, UnitOfWork

CANARY = "revector asks whether this model answers."
CANARY_EVERY_S = 300.0
ASK_AGAIN_S = 15.0  # after an answer that was wrong; all workers share it
SAME_COSINE = 0.999  # servers that batch on a GPU differ in the last bits, models in the first digit
MOST_REFUSED_IN_A_ROW = 8
MOST_STRANGE_IN_A_ROW = 3  # answers that are asked for again, as after an accident on the way
RIDE = 100  # a request of so many times the canary's tokens carries it: one token in a hundred at most


Begin = Callable[[], AbstractAsyncContextManager[UnitOfWork]]


@dataclass(slots=True)
class Provider:
    """Shared by the workers of one generation in one process. canary_text: with the document prefix."""

    embedder: Embedder
    gate: Gate
    generation: Generation
    canary_text: str
    canary_tokens: int
    clock: Callable[[], float]
    stopping: Callable[[], bool] = lambda: False  # the process is told to end: nothing more is sent
    canary_billed: int = 0  # tokens not yet counted with a batch
    _known: Canary | None = None
    sane_until: float | None = None
    _wrong: tuple[float, ProviderWrong | PermissionRefused] | None = None
    _strange_in_a_row: int = 0
    _refused_in_a_row: set[int] = field(default_factory=set)  # rows
    _names: set[str | None] = field(default_factory=set)  # of the model, in answers that were its own
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _naming: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_wrong(self) -> bool:
        """Whether an answer was wrong and no canary has passed since."""
        return self._wrong is not None

    async def embed(
        self, texts: Sequence[str], tokens: int, *, live: bool, has_room: bool = False, is_probe: bool = False
    ) -> Embedded:
        """One request through the gate. has_room: it may hold one text more. Then a large one carries the canary, so
        that a model that changes silently is seen in the very request that meets it. is_probe: these texts had a
        strange answer before.

        Raises what the embedder raises; ProviderWrong also where the answer is another model's; TransientError for
        the first strange answers in a row, ItemRefused for one of a probe: a text may be what spoils it."""
        if has_room and self._known is not None and tokens >= RIDE * self.canary_tokens:
            carrier = [*texts, self.canary_text]
            both = await self._send(carrier, tokens + self.canary_tokens, live=live, is_probe=is_probe)
            self._compare(replace(both, vectors=both.vectors[-1:]))
            self.sane_until, self._wrong = self.clock() + CANARY_EVERY_S, None
            return replace(both, vectors=both.vectors[:-1])
        answer = await self._send(texts, tokens, live=live, is_probe=is_probe)
        if self._is_stranger(answer):
            async with self._naming:
                if self._is_stranger(answer):
                    await self.check()
            if self._is_stranger(answer):
                raise self._halted_by(_changed("its answers name another model than before"))
        return answer

    async def _send(self, texts: Sequence[str], tokens: int, *, live: bool, is_probe: bool = False) -> Embedded:
        try:
            async with self.gate.request(tokens, live=live) as admission:
                if self.stopping():
                    raise _stopping()
                answer = await self._asked(texts, is_probe)
                admission.answered(answer)
        except (ProviderWrong, PermissionRefused) as error:
            self._halted_by(error)
            raise
        return answer

    async def _asked(self, texts: Sequence[str], is_probe: bool) -> Embedded:
        try:
            answer = await self.embedder.embed(texts)
        except StrangeAnswer as strange:
            if is_probe and strange.id in OF_A_TEXT:
                raise ItemRefused(ANSWERED, strange.id, None) from strange
            self._strange_in_a_row += 1
            if self._strange_in_a_row > MOST_STRANGE_IN_A_ROW:
                raise
            raise TransientError(strange.id, strange.message, strange.hint) from strange
        self._strange_in_a_row = 0
        return answer

    def _is_stranger(self, answer: Embedded) -> bool:
        """Whether the answer names a model whose vectors were not compared. Servers change a name without the model."""
        if self._known is None or self._known.model is None or answer.model is None:
            return False
        return answer.model != self._known.model and answer.model not in self._names

    def _halted_by(self, error: ProviderWrong | PermissionRefused) -> ProviderWrong | PermissionRefused:
        self.sane_until, self._wrong = None, (self.clock(), error)
        return error

    async def vouch(self, begin: Begin) -> None:
        """Return while the provider is known to be what it was when the generation began; the canary is sent where
        that is not known. Raises ProviderWrong, PermissionRefused, TransientError; Halt after too many refusals."""
        if len(self._refused_in_a_row) >= MOST_REFUSED_IN_A_ROW:
            raise self._refuses_many()
        async with self._lock:
            if self.sane_until is not None and self.clock() < self.sane_until:
                return
            if self._wrong is not None and self.clock() < self._wrong[0] + ASK_AGAIN_S:
                raise self._wrong[1]
            if self._known is None:
                async with begin() as tx:
                    self._known = await tx.ledger.canary(self.generation)
            answer = await self.check()
            if self._known is None:
                found = Canary(tuple(float(v) for v in answer.vectors[0]), answer.model)
                async with begin() as tx:
                    await tx.ledger.set_canary(self.generation, found)
                    self._known = await tx.ledger.canary(self.generation)
                self._compare(answer)
            self.sane_until, self._wrong = self.clock() + CANARY_EVERY_S, None

    async def check(self) -> Embedded:
        """Embed the canary and compare it with the known one. Raises ProviderWrong where it is refused or another."""
        try:
            answer = await self._send([self.canary_text], self.canary_tokens, live=True)
            self.canary_billed += answer.tokens
            self._compare(answer)
            self._names.add(answer.model)
        except ItemRefused as refusal:
            wrong = ProviderWrong(
                "provider-refuses-all",
                f"provider: refuses a harmless text: status {refusal.status}, code {refusal.code or 'none'}",
                "check model, limits and address of the generation; nothing is in quarantine",
            )
            raise self._halted_by(wrong) from refusal
        return answer

    def _compare(self, answer: Embedded) -> None:
        if self._known is None:
            return
        known, found = np.asarray(self._known.vector, dtype=np.float32), answer.vectors[0]
        cosine = 0.0
        if len(known) == len(found):
            cosine = float(known @ found / (np.linalg.norm(known) * np.linalg.norm(found)))
        if cosine < SAME_COSINE:
            renamed = answer.model not in (None, self._known.model)
            name = "its answers name another model than before, and " if renamed else ""
            what = f"{name}the canary text's vector has cosine {cosine:.3f} with the one it had"
            raise self._halted_by(_changed(what))

    def taken(self) -> None:
        """Texts were embedded: whatever was refused before stands alone."""
        self._refused_in_a_row.clear()

    def refused(self, row: int) -> None:
        """A text of this row was refused and none taken since. Raises Halt where that is one row too many: not where
        all of a document is refused, or the versions of one."""
        self._refused_in_a_row.add(row)
        if len(self._refused_in_a_row) >= MOST_REFUSED_IN_A_ROW:
            raise self._refuses_many()

    def _refuses_many(self) -> Halt:
        return Halt(
            "provider-refuses-many",
            f"provider: texts of {len(self._refused_in_a_row)} rows refused in a row",
            "see `revector quarantine list` for the codes; mend the cause, start the process again, retry these rows",
        )


async def pause_until(ended: asyncio.Event, seconds: float) -> None:
    """Pause for `seconds`. Raises TransientError when `ended` is set: nobody waits for a request any more."""
    await wait(ended, seconds)
    if ended.is_set():
        raise _stopping()


def _stopping() -> TransientError:
    return TransientError("process-stopping", "no request is sent any more")


def _changed(how: str) -> ProviderWrong:
    return ProviderWrong(
        "provider-model-changed",
        f"provider: the model is not the one that this generation began with: {how}",
        "nothing was stored; bring the model back, or add a generation for the new one",
    )

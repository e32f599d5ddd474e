"""`prove`: the certificate that a generation is caught up, or every reason why not, with numbers. Exit 3 for "no"."""

from __future__ import annotations

import asyncio
import textwrap
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Json, Name, OfGeneration, frame_of, page
from daemon.cli.output import counted

if TYPE_CHECKING:
    from daemon.core.catchup import Shortfall
    from daemon.parts import Parts
    from daemon.procedures.prove import Certificate

EXITS = [ExitCode.NO, ExitCode.AWAY, ExitCode.REFUSED, ExitCode.CONFIG]
DEFAULT_TIMEOUT_S = 15.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    page(app, "prove", ("revector prove articles", "revector prove articles --timeout 60 --json"), EXITS)(prove)


def prove(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="Longest wait for what is on its way.")
    ] = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Prove that the generation is caught up, or say what is missing and by how much. A proof is a certificate."""
    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    certificate, shortfalls = asyncio.run(
        _proven(frame.parts(loaded), generation or loaded.settings.candidate.name, timeout)
    )
    if certificate is not None:
        body = {"proven": True, "digest": certificate.digest, "certificate": certificate.document, "shortfalls": []}
        frame.out.answer("prove", body, _issued(certificate, frame.out.width()))
        return
    body = {"proven": False, "certificate": None, "shortfalls": [asdict(s) for s in shortfalls]}
    frame.out.answer("prove", body, _refused(shortfalls))
    raise typer.Exit(ExitCode.NO)


async def _proven(parts: Parts, wanted: str, timeout_s: float) -> tuple[Certificate | None, list[Shortfall]]:
    from daemon.procedures.begun import not_begun, require_schema
    from daemon.procedures.prove import ProofParts
    from daemon.procedures.prove import prove as procedure

    settings = parts.settings
    async with AsyncExitStack() as stack:
        target, source, feed = parts.target("prove"), parts.source("prove"), parts.feed("prove")
        capture, indexes = parts.capture("prove"), parts.indexes("prove")
        for part in (target, source, feed, capture, indexes):
            stack.push_async_callback(part.close)
        await require_schema(target, settings.name)
        async with target.begin() as tx:
            tables = [s.table for s in await tx.ledger.tables()]
            generation = next((g for g in await tx.ledger.generations() if g.name == wanted), None)
        if generation is None:
            raise not_begun(settings.name, wanted)
        proof = ProofParts(
            migration=settings.name,
            source=source,
            feed=feed,
            capture=capture,
            target=target,
            indexes=indexes,
            tables=tables,
            generation=generation,
            max_age_s=settings.verify.max_age_s,
            clock=time.monotonic,
        )
        issued_at = datetime.now(UTC).isoformat(timespec="seconds")
        return await procedure(proof, f"proof-{uuid.uuid4().hex}", issued_at, timeout_s)


def _issued(certificate: Certificate, width: int) -> list[str]:
    document: dict[str, Any] = certificate.document
    which = f"{certificate.digest[:12]} {document['migration']}"
    return [
        f"proven: {document['generation']} of {document['migration']} at {document['position']}",
        *textwrap.wrap(document["statement"], width, initial_indent="  ", subsequent_indent="  "),
        f"  certificate  {certificate.digest}",
        f"  issued       {document['issued_at']}",
        f"save it: revector certificate show {which} --output certificate.json",
    ]


def _refused(shortfalls: list[Shortfall]) -> list[str]:
    lines = [f"not proven: {counted(len(shortfalls), 'reason')}"]
    for s in shortfalls:
        lines.append(f"  step {s.step}  {s.id:<20} {s.message}")
        lines.append(f"          {s.command or s.remedy}")
    return lines

"""`realign`: go on at the ends of the topics after a halt that nothing else ends. Shows what would be skipped first."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Json, Name, frame_of, operator, page
from daemon.cli.output import counted, table

if TYPE_CHECKING:
    from daemon.parts import Parts
    from daemon.procedures.realign import Plan, Realigned

EXITS = [ExitCode.NO, ExitCode.AWAY, ExitCode.HELD, ExitCode.REFUSED, ExitCode.CONFIG]

Confirm = Annotated[str | None, typer.Option("--confirm", metavar="NAME", help="The migration's name: do it.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    page(app, "realign", ("revector realign articles", "revector realign articles --confirm articles"), EXITS)(realign)


def realign(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    confirm: Confirm = None,
    as_json: Json = False,
) -> None:
    """Go on at the ends of the topics after a halt: another source timeline, system or Kafka cluster, an older state of
    the source, a topic made anew, partitions added, offsets that are gone, a record that cannot be read. Without
    --confirm the plan is shown and nothing is done. What is unread is skipped, which is a break of continuity until
    `verify --repair` has mended the rows. The stream has to be halted or stopped; a halted process goes on by
    itself."""
    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    migration = loaded.settings.name
    if confirm not in (None, migration):
        raise typer.BadParameter(f"--confirm wants {migration}, the name of the migration")
    outline, done = asyncio.run(_asked(frame.parts(loaded), is_confirmed=confirm is not None))
    frame.out.answer("realign", _document(outline, done), _lines(outline, done))


async def _asked(parts: Parts, *, is_confirmed: bool) -> tuple[Plan, Realigned | None]:
    from daemon.procedures import realign as procedure

    async with AsyncExitStack() as stack:
        source, feed = parts.source("realign"), parts.feed("realign")
        capture, target = parts.capture("realign"), parts.target("realign")
        for part in (source, feed, capture, target):
            stack.push_async_callback(part.close)
        migration = parts.settings.name
        given = procedure.RealignParts(migration, source, feed, capture, target, time.monotonic)
        if not is_confirmed:
            return await procedure.plan(given), None
        by = operator()
        done = await procedure.realign(given, f"realign:{by}:{uuid.uuid4().hex[:8]}", by)
        return done.plan, done


def _document(outline: Plan, done: Realigned | None) -> dict[str, Any]:
    """skipped: offsets that are passed over as far as that is known; is_exact: whether it is known of every partition.
    barrier: the position before which no event counts any more; null in a plan."""
    from daemon.core.continuity import lsn_text

    return {
        "migration": outline.migration,
        "realigned": done is not None,
        "epoch": {"before": outline.epoch, "after": outline.epoch + 1},
        "changes": [c._asdict() for c in outline.changes],
        "halts": sorted(outline.halts),
        "held_by": None if done is not None else outline.owner,
        "partitions": [
            {"topic": m.at.topic, "partition": m.at.partition, "next": m.before, "to": m.after, "skipped": m.skipped}
            for m in outline.moves
        ],
        "skipped": outline.skipped,
        "is_exact": outline.is_exact,
        "barrier": None if done is None else lsn_text(done.barrier_lsn),
        "break": "realigned",
        "next": _next(outline, done),
    }


def _next(outline: Plan, done: Realigned | None) -> list[str]:
    verify = f"revector verify {outline.migration} --repair"
    return (
        [verify]
        if done is not None
        else [f"revector realign {outline.migration} --confirm {outline.migration}", verify]
    )


def _lines(outline: Plan, done: Realigned | None) -> list[str]:
    migration, epoch = outline.migration, outline.epoch + 1
    about = "" if outline.is_exact else "at least "
    skipped = f"{about}{counted(outline.skipped, 'record')}"
    if done is None:
        first = f"{migration}: would go on at the ends of the topics, in epoch {epoch}, and skip {skipped}"
    else:
        first = f"{migration}: goes on at the ends of the topics, in epoch {epoch}; {skipped} skipped"
    lines = [first]
    words = [f"{c.part} {c.field} was {c.before}, is {c.after}" for c in outline.changes]
    lines += [f"  identity  {line}" for line in words or ["as it was"]]
    lines += [f"  halt      {id}: {note.message}" for id, note in sorted(outline.halts.items())]
    lines += [f"  {line}" for line in table([["PARTITION", "NEXT", "TO", "SKIPPED"], *map(_row, outline.moves)])]
    if done is None and outline.owner is not None:
        lines.append(f"  the stream is held by {outline.owner}: unless it is halted, stop it first")
    lines.append("  break     `realigned`: no proof until a comparison that begins afterwards has mended the rows")
    if done is None:
        lines.append(f"nothing was done; to do it: revector realign {migration} --confirm {migration}")
        lines.append(f"afterwards: revector verify {migration} --repair")
        return lines
    lines.append("a halted process goes on by itself; where none runs, start one")
    lines.append(f"next: revector verify {migration} --repair")
    return lines


def _row(m: Any) -> list[str]:
    def of(number: int | None, absent: str) -> str:
        return absent if number is None else str(number)

    return [f"{m.at.topic}-{m.at.partition}", of(m.before, "none"), of(m.after, "gone"), of(m.skipped, "unknown")]

"""`verify`: compare everything with the source and with itself, live, and mend what is wrong if asked to.

What was compared is recorded as it is done, so an interrupted or time-boxed one goes on where it stopped. Shows keys,
kinds and counts; row text is never read.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
import time
import uuid
from contextlib import aclosing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Frame, Json, Name, frame_of, operator, page
from daemon.cli.output import ProgressLine

if TYPE_CHECKING:
    from daemon.cli.verifying_face import Outcome
    from daemon.parts import Parts
    from daemon.procedures.compare import Order

EXITS = [ExitCode.NO, ExitCode.TIMED_OUT, ExitCode.AWAY, ExitCode.HELD, ExitCode.REFUSED, ExitCode.CONFIG]
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def register(app: typer.Typer) -> None:
    """Add the command."""
    examples = (
        "revector verify articles",
        "revector verify articles --repair --max-duration 2h --keys differing.jsonl",
    )
    page(app, "verify", examples, EXITS)(verify)


def verify(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: Annotated[
        str | None,
        typer.Option("--generation", metavar="GENERATION", help="Only this one's chunks; default: all configured."),
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what differs, and nothing else.")] = False,
    max_duration: Annotated[
        str | None,
        typer.Option("--max-duration", metavar="TIME", help="Stop after 45s, 30m, 2h; what is done is kept."),
    ] = None,
    sample: Annotated[
        int,
        typer.Option("--reembed-sample", min=0, max=100_000, metavar="N", help="Chunks to embed again; 0: none."),
    ] = 200,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again; leave an unfinished one behind.")] = False,
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="FILE", help="Write every difference there, one JSON per line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the replica with the source and every generation's chunks with the replica, while all of it goes on. What
    differs is looked at again behind a barrier before it counts. A clean comparison is what a certificate rests on, and
    what closes a break of continuity. An unfinished one is resumed."""
    from daemon.cli.verifying_face import document, report_lines
    from daemon.procedures.compare import Order

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    order = Order(generation, repair, sample, None if max_duration is None else seconds_of(max_duration), fresh)
    migration = loaded.settings.name
    with KeysFile(keys) as written:
        try:
            found = asyncio.run(_compared(frame, frame.parts(loaded), order, written))
        except KeyboardInterrupt:
            frame.out.note(f"what was compared is kept: `revector verify {migration}` goes on from there")
            raise
    frame.out.answer("verify", document(migration, found), report_lines(frame.out, migration, found))
    if not found.report.is_finished:
        raise typer.Exit(ExitCode.TIMED_OUT)
    if not found.is_clean:
        raise typer.Exit(ExitCode.NO)


def seconds_of(text: str) -> float:
    """45s, 30m, 1h30m, 2d, or plain seconds. Raises BadParameter."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        parts = [(text, "s")]
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) not in (text, f"{text}s") or seconds <= 0:
        raise typer.BadParameter("--max-duration wants a time such as 45s, 30m or 2h")
    return seconds


class KeysFile:
    """A file that is whole or absent: written beside its place, and put there when the block ends without an error.
    Made at once, so that a place that cannot be written is said before anything is compared."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        if path is not None:
            if path.is_dir():
                raise typer.BadParameter(f"--keys: {path} is a folder")
            try:
                self._file = tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
            except OSError as error:
                raise typer.BadParameter(f"--keys: {path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> KeysFile:
        return self

    def write(self, difference: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(difference, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None or self._path is None:
            return
        made = Path(self._file.name)
        try:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())
            if kind is None:
                made.replace(self._path)
        finally:
            with suppress(FileNotFoundError):
                made.unlink()


async def _compared(frame: Frame, parts: Parts, order: Order, keys: KeysFile) -> Outcome:
    from daemon.cli.verifying_face import Outcome, progress
    from daemon.procedures.compare import findings
    from daemon.procedures.compare import verify as procedure

    line = ProgressLine(frame.out, time.monotonic)
    by = f"{operator()}-{uuid.uuid4().hex[:12]}"  # another process of this operator is another owner
    try:
        report = await procedure(parts, order, by, lambda told: line.show(progress(told)))
    finally:
        line.end()
    found = Outcome(report)
    async with aclosing(findings(parts, report.comparison.id)) as every:
        async for difference in every:
            keys.write(found.add(difference))
    return found

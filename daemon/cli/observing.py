"""Commands that look: `status` once, `watch` again and again, `wait` until something holds, `doctor` at every part.

All but `doctor` show the one verdict of `core.status`. On a terminal `watch` redraws; elsewhere it writes whole lines.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Frame, Json, Name, OfGeneration, frame_of, page
from daemon.cli.output import counted
from daemon.errors import RevectorError, WaitTimedOut

if TYPE_CHECKING:
    from daemon.core.status import Status
    from daemon.procedures.doctor import Finding
    from daemon.procedures.look import Looker

PARTS_AWAY = [ExitCode.AWAY, ExitCode.REFUSED, ExitCode.CONFIG]
TERMINAL_EVERY_S = 0.5
LINES_EVERY_S = 30.0
LOOK_EVERY_S = 0.5
MAKEABLE = frozenset(
    ("publication-missing", "publication-table-missing", "topic-missing", "vector-missing", "connector-absent")
)  # problems that `init --apply` mends
MENDED_S = 60.0  # a provider that was mended is found to be within this
RESTART_S = 10.0  # a daemon that was just started again has not cleared the halt of its predecessor yet
STYLES = {"ready to cut over": "green", "catching up": "yellow", "halted": "red", "degraded: proof broken": "red"}

Conditions = dict[str, Callable[["Status", float], bool]]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    page(app, "doctor", ("revector doctor articles", "revector doctor --config articles.toml --json"), PARTS_AWAY)(
        doctor
    )
    page(app, "status", ("revector status articles", "revector status articles --json"), PARTS_AWAY)(status)
    page(app, "watch", ("revector watch articles", "revector watch articles --every 10"), PARTS_AWAY)(watch)
    page(
        app,
        "wait",
        ("revector wait articles --for backfill", "revector wait articles --for ready --timeout 3600"),
        [ExitCode.NO, ExitCode.TIMED_OUT, *PARTS_AWAY],
    )(wait)


def doctor(
    context: typer.Context, name: Name = None, file: ConfigFile = None, changes: Changes = None, as_json: Json = False
) -> None:
    """Ask every part whether it is fit, at most 5 s each. The parts are source, tables, target, Kafka, the connector,
    its role, and the provider. Where one refuses, the grants or ACLs that it needs are printed."""
    from daemon.procedures.doctor import examine, refuse

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    findings = asyncio.run(examine(frame.parts(loaded)))
    if all(f.is_ok for f in findings) or not frame.out.is_json:
        body = {"migration": loaded.settings.name, "parts": [_finding(f) for f in findings]}
        width = max(len(f.part) for f in findings)
        lines = [line for f in findings for line in _finding_lines(frame, f, width)]
        if not changes and any(p.id in MAKEABLE for f in findings for p in f.problems):
            lines.append(f"next: revector init --plan --config {shlex.quote(str(loaded.path))}")
        frame.out.answer("doctor", body, lines)
    refuse(findings)


def status(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    as_json: Json = False,
) -> None:
    """Show the verdict, every reason against a cutover, and the lag, as of now."""
    from daemon.core.face import as_json as document

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)

    async def once() -> Status:
        async with _looker(frame, loaded, generation) as looker:
            return await looker.look(_instant())

    seen = asyncio.run(once())
    body = {key: value for key, value in document(seen).items() if key != "schema"}
    frame.out.answer("status", body, _painted(frame, seen))


def watch(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    every: Annotated[
        float | None,
        typer.Option("--every", min=0.1, metavar="SECONDS", help="Between two looks; 0.5 on a terminal, 30 elsewhere."),
    ] = None,
) -> None:
    """Show the status until interrupted. On a terminal it is redrawn; elsewhere each look is one whole line."""
    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    pause = every or (TERMINAL_EVERY_S if frame.out.is_terminal else LINES_EVERY_S)

    async def looking(show: Callable[[Status], None]) -> None:
        async with _looker(frame, loaded, generation) as looker:
            while True:
                show(await looker.look(_instant()))
                await asyncio.sleep(pause)

    try:
        if frame.out.is_terminal:
            _draw(frame, looking)
        else:
            asyncio.run(looking(lambda seen: print(line(seen), file=frame.stdout, flush=True)))
    except KeyboardInterrupt:
        return


def wait(
    context: typer.Context,
    for_: Annotated[str, typer.Option("--for", metavar="WHAT", help="backfill, caught-up, index or ready.")],
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="Give up after this; default: never.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Wait until it holds: backfill, caught-up, index or ready. `caught-up`: every commit made before this command
    began is embedded. A halt, for all but `backfill` also one of embedding that stays for a minute, and for `caught-up`
    and `ready` a break of continuity, is the answer no: none of them passes by itself."""
    from daemon.core.face import as_json as document

    frame = frame_of(context)
    if for_ not in CONDITIONS:
        raise typer.BadParameter(f"--for wants one of {', '.join(CONDITIONS)}")
    loaded = frame.load(name, file, changes)
    holds, seen = asyncio.run(_waited(frame, loaded, (for_, generation), timeout))
    body = {key: value for key, value in document(seen).items() if key != "schema"}
    answer = f"{loaded.settings.name}: {for_}"
    if not holds:
        reasons = f" ({seen.blockers[0].id})" if seen.blockers else ""
        answer = f"{loaded.settings.name}: {seen.verdict.value}{reasons}, not {for_}"
    frame.out.answer("wait", {"for": for_, "holds": holds, "status": body}, [answer])
    if not holds:
        raise typer.Exit(ExitCode.NO)


async def _waited(
    frame: Frame, loaded: Any, asked: tuple[str, str | None], limit_s: float | None
) -> tuple[bool, Status]:
    """Whether it holds, and the last status; False where the stream is halted, what is asked for needs embedding and
    that stays halted, or it is a claim about every change and continuity is broken: none of them passes by itself.

    asked: for what, and of which generation."""
    what, generation = asked
    began = time.monotonic()
    said = began
    embedding_at = began  # when embedding was last seen not to be halted
    async with _looker(frame, loaded, generation) as looker:
        while True:
            # Before the look: a slow part makes a look take seconds, and its readings are as old as its first one.
            waited = time.monotonic() - began
            seen = await looker.look(_instant())
            if CONDITIONS[what](seen, waited):
                return True, seen
            if seen.verdict.value == "halted" and waited > RESTART_S:
                return False, seen
            if not seen.facts.embed_halts:
                embedding_at = time.monotonic()
            elif what in EMBEDDED and time.monotonic() - embedding_at > MENDED_S:
                return False, seen
            if what in UNBROKEN and seen.facts.breaks:
                return False, seen
            if limit_s is not None and waited >= limit_s:
                reasons = ", ".join(dict.fromkeys(b.id for b in seen.blockers)) or "no reason is known"
                message = f"{what} does not hold after {limit_s:.0f} s: {reasons}"
                raise WaitTimedOut("wait-timed-out", message, f"see `revector status {loaded.settings.name}`")
            if time.monotonic() - said >= LINES_EVERY_S:
                said = time.monotonic()
                frame.out.note(f"waiting for {what}: {line(seen)}")
            await asyncio.sleep(LOOK_EVERY_S)


def _backfilled(seen: Status, waited: float) -> bool:
    copied = seen.facts.backfill
    return copied is not None and copied.complete


def _caught_up(seen: Status, waited: float) -> bool:
    """The freshness instant lies after the one at which waiting began, and no event is known to have been skipped."""
    fresh_s = seen.facts.freshness_s
    return _backfilled(seen, waited) and seen.facts.breaks == () and fresh_s is not None and fresh_s < waited


def _indexed(seen: Status, waited: float) -> bool:
    return seen.facts.target is not None and seen.facts.target.phase == "live"


CONDITIONS: Conditions = {
    "backfill": _backfilled,
    "caught-up": _caught_up,
    "index": _indexed,
    "ready": lambda seen, waited: _caught_up(seen, waited) and _indexed(seen, waited),
}
UNBROKEN = frozenset(("caught-up", "ready"))
EMBEDDED = frozenset(("caught-up", "index", "ready"))


def _looker(frame: Frame, loaded: Any, generation: str | None) -> Looker:
    from daemon.procedures.look import Looker

    return Looker(frame.parts(loaded), time.monotonic, generation)


def _instant() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _painted(frame: Frame, seen: Status) -> list[str]:
    """The status as lines, its verdict coloured on a terminal."""
    from daemon.core.face import render_text

    lines = render_text(seen, frame.out.width())
    verdict = seen.verdict.value
    return [lines[0].replace(verdict, frame.out.styled(verdict, STYLES.get(verdict, "yellow")), 1), *lines[1:]]


def line(seen: Status) -> str:
    """The status in one line."""
    from daemon.core.status import grouped

    f = seen.facts
    parts = [datetime.now().astimezone().strftime("%H:%M:%S"), f.migration, seen.verdict.value]
    if f.source is not None:
        parts.append("lag unknown" if f.source.lag_s is None else f"lag {f.source.lag_s:.1f} s")
    if f.feed is not None:
        parts.append(f"{grouped(sum(f.feed.behind.values()))} events behind")
    if f.embed is not None:
        parts.append(f"{grouped(f.embed.waiting)} waiting, {grouped(f.embed.rows_embedded)} embedded")
    if f.backfill is not None:
        percent = "?" if seen.percent is None else seen.percent
        parts.append(f"backfill {grouped(f.backfill.rows)} rows, {percent} %")
    if seen.blockers and seen.verdict.value not in ("catching up", "ready to cut over"):
        parts.append(seen.blockers[0].id)
    return " · ".join(parts)


def _draw(frame: Frame, looking: Callable[[Callable[[Status], None]], Any]) -> None:
    """Redraw in place until interrupted."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(file=frame.stdout), auto_refresh=False, transient=False) as live:

        def show(seen: Status) -> None:
            live.update(Text.from_ansi("\n".join(_painted(frame, seen))), refresh=True)

        asyncio.run(looking(show))


def _finding(finding: Finding) -> dict[str, Any]:
    from dataclasses import asdict

    cause = finding.cause
    return {
        "part": finding.part,
        "ok": finding.is_ok if finding.is_known else None,
        "summary": finding.summary,
        "problems": [asdict(p) for p in finding.problems],
        "error": None if cause is None else {"id": cause.id, "message": cause.message, "hint": cause.hint},
    }


def _finding_lines(frame: Frame, finding: Finding, width: int) -> list[str]:
    """One line, and what is to be done. width: of the longest part's name."""
    cause: RevectorError | None = finding.cause
    word, style = ("ok", "green") if finding.is_ok else ("not fit", "red")
    if not finding.is_known:
        word, style = "unknown", "yellow"
    head = f"{finding.part:<{width}}  " + frame.out.styled(f"{word:<7}", style)
    if cause is not None:
        remedy = [f"  {line}" for line in cause.hint.splitlines()]
        return [f"{head}  {cause.message} [{cause.id}]", *remedy]
    warnings = [p for p in finding.problems if p.severity == "warning"]
    if not finding.is_ok:
        count = len(finding.problems) - len(warnings)
        head += f"  {counted(count, 'problem')}, listed below"
    elif finding.summary:
        head += f"  {finding.summary}"
    return [head, *(f"  warning  {p.where}: {p.message} [{p.id}]; {p.hint}" for p in warnings)]

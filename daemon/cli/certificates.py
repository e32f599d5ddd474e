"""`certificate list | show | check`: what was certified, its exact bytes, and whether it can still be relied on.

A saved certificate is a file of its RFC 8785 bytes and nothing else, so that `sha256sum` of it is its digest.
"""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Json, Name, OfGeneration, frame_of, page
from daemon.cli.output import Output, table

if TYPE_CHECKING:
    from daemon.core.certified import Observation
    from daemon.ports import StoredCertificate
    from daemon.procedures.certificates import Checked

EXITS = [ExitCode.NO, ExitCode.AWAY, ExitCode.REFUSED, ExitCode.CONFIG]
LATEST = "latest"
SHORT = 12  # digits of a digest in a list


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="What was certified: list it, show or save it, check a saved one.")
    page(group, "list", ("revector certificate list articles", "revector certificate list --json"), EXITS)(list_)
    examples = (
        "revector certificate show latest articles",
        "revector certificate show latest articles --output proof.json",
    )
    page(group, "show", examples, EXITS)(show)
    examples = ("revector certificate check proof.json articles", "revector certificate check proof.json --json")
    page(group, "check", examples, EXITS)(check)
    app.add_typer(group, name="certificate")


def list_(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, metavar="N", help="Most shown.")] = 20,
    as_json: Json = False,
) -> None:
    """List the certificates of a generation, the newest first."""
    from daemon.procedures.certificates import find

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    migration, wanted = loaded.settings.name, generation or loaded.settings.candidate.name
    found = frame.ask_target(loaded, "certificate", lambda target: find(target, migration, wanted, limit))
    body = {"migration": migration, "generation": wanted, "certificates": [_summary(c) for c in found]}
    frame.out.answer("certificate-list", body, _listed(migration, wanted, found))


def show(
    context: typer.Context,
    which: Annotated[
        str, typer.Argument(metavar="DIGEST", help="Of which one; its beginning is enough. latest: the newest.")
    ] = LATEST,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Save its exact bytes there, to keep or hand on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one certificate, or save it."""
    from daemon.core.certified import canonical_bytes
    from daemon.procedures.certificates import one

    frame = frame_of(context)
    if which != LATEST and not re.fullmatch(r"[0-9a-f]{4,64}", which):
        raise typer.BadParameter(f"wants at least four digits of a digest, or {LATEST}")
    loaded = frame.load(name, file, changes)
    migration, wanted = loaded.settings.name, generation or loaded.settings.candidate.name
    digest = None if which == LATEST else which
    found = frame.ask_target(loaded, "certificate", lambda target: one(target, migration, wanted, digest))
    if output is not None:
        try:
            output.write_bytes(canonical_bytes(found.document))
        except OSError as error:
            raise typer.BadParameter(f"--output: {output} cannot be written: {error.strerror}") from error
    body = {**_summary(found), "saved": None if output is None else str(output), "certificate": found.document}
    frame.out.answer("certificate-show", body, _shown(frame.out, found, output))


def check(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A saved one, or what `prove --json` printed.")],
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Recompute a certificate's digest, look whether it is one of ours, and say for every step whether what was
    observed still holds. Where the target is away only the digest is computed."""
    from daemon.core.certified import NotACertificate, parse
    from daemon.procedures.certificates import check as procedure

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    try:
        document, stated = parse(path.read_text(encoding="utf-8"))
        checked = asyncio.run(procedure(frame.parts(loaded), document))
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from error
    except (NotACertificate, UnicodeDecodeError) as error:
        why = str(error) if isinstance(error, NotACertificate) else "is not UTF-8"
        raise typer.BadParameter(f"{path} {why}") from error
    holds = False if stated not in (None, checked.digest) else checked.holds
    body = {
        "digest": checked.digest,
        "digest_given": stated,
        "ours": checked.is_ours,
        "holds": holds,
        "age_s": checked.age_s,
        "observations": [_observation(o) for o in checked.observations],
    }
    frame.out.answer("certificate-check", body, _checked(frame.out, loaded.settings.name, checked, stated, holds))
    if holds is not True:
        raise typer.Exit(ExitCode.AWAY if holds is None else ExitCode.NO)


def _summary(c: StoredCertificate) -> dict[str, Any]:
    document = c.document
    compared = document.get("comparison")
    return {
        "digest": c.digest,
        "migration": document.get("migration"),
        "generation": document.get("generation"),
        "issued_at": document.get("issued_at"),
        "position": document.get("position"),
        "comparison": None if compared is None else compared["id"],
        "age_s": round(c.age_s, 1),
    }


def _listed(migration: str, generation: str, found: list[StoredCertificate]) -> list[str]:
    from daemon.core.face import duration

    if not found:
        return [f"{migration}: generation {generation} has no certificate", f"next: revector prove {migration}"]
    rows = [("DIGEST", "ISSUED", "AGE", "POSITION", "COMPARISON")]
    for c in found:
        s = _summary(c)
        compared = "none" if s["comparison"] is None else str(s["comparison"])
        rows.append((c.digest[:SHORT], str(s["issued_at"]), duration(c.age_s), str(s["position"]), compared))
    return [f"{migration}: certificates of generation {generation}", *(f"  {line}" for line in table(rows))]


def _shown(out: Output, c: StoredCertificate, saved: Path | None) -> list[str]:
    document = c.document
    lines = [
        f"{document.get('generation')} of {document.get('migration')} at {document.get('position')}",
        *textwrap.wrap(str(document.get("statement")), out.width(), initial_indent="  ", subsequent_indent="  "),
        f"  certificate  {c.digest}",
        f"  issued       {document.get('issued_at')}",
    ]
    lines += [f"  step {step['step']}  {step['claim']}" for step in document.get("steps", [])]
    return lines if saved is None else [*lines, f"saved: {saved}"]


def _observation(o: Observation) -> dict[str, Any]:
    return {"step": o.step, "what": o.what, "holds": o.holds, "says": o.says}


def _checked(out: Output, migration: str, c: Checked, stated: str | None, holds: bool | None) -> list[str]:
    from daemon.core.face import duration

    words = {True: ("holds", "green"), False: ("does not hold", "red"), None: ("not known", "yellow")}
    lines = [f"certificate {c.digest}: {out.styled(*words[holds])}"]
    if stated not in (None, c.digest):
        lines.append(f"  the file gives another digest, {stated}: its document was changed")
    if c.is_ours is None:
        return [*lines, "  the target is away: only the digest was computed, and it can be compared with a kept one"]
    if not c.is_ours:
        return [*lines, f"  it is none of ours: {migration} has not issued this document, or not in this form"]
    age = "" if c.age_s is None else f", {duration(c.age_s)} ago"
    lines.append(f"  issued here{age}, and unchanged since")
    marks = {True: "holds", False: "no", None: "unknown"}
    rows = [(f"step {o.step}", marks[o.holds], o.what, o.says) for o in c.observations]
    return [*lines, *(f"  {line}" for line in table(rows))]

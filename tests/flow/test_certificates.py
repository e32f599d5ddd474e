"""Certificates afterwards: what is listed, shown and saved, and what a check says of one once the world has moved on.

On the twins, through the procedure and through the command line.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.cli.app import build
from daemon.cli.frame import ExitCode, Frame, run
from daemon.core.certified import NotACertificate, canonical_bytes, digest_of, parse
from daemon.core.comparison import State
from daemon.core.continuity import lsn_of, lsn_text
from daemon.core.model import HaltNote
from daemon.errors import TransientError
from daemon.parts import Parts
from daemon.procedures.certificates import Checked, check
from daemon.procedures.prove import Certificate, prove
from tests import builders
from tests.fakes import refuse
from tests.fakes.state import WorkEntry
from tests.flow.world import World

A = {"title": "t", "body": "A", "tenant": "t1", "views": "1"}
CONFIG = (
    builders.CONFIG + '[[generation]]\nname = "v1"\nprovider = "local"\nmodel = "wordllama-256"\ndimensions = 256\n'
)
Move = Callable[["Proven"], Awaitable[None]]


class Away:
    """A part that does not answer, whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        async def refused(*_: object) -> Any:
            raise TransientError("part-away", "away")

        return refused

    def begin(self) -> Any:
        raise TransientError("part-away", "away")

    async def close(self) -> None: ...


@dataclass
class Proven:
    """A world with a certificate. away: roles of parts that do not answer."""

    world: World = field(default_factory=World)
    away: set[str] = field(default_factory=set)

    async def open(self) -> Proven:
        world = await self.world.open()
        world.source.seed("articles", {"id": "0", **A})
        await world.begin()
        await world.copy()
        await world.embed()
        await world.indexes.build(world.table, world.generation)
        await self.prove()
        return self

    async def prove(self) -> Certificate:
        stream = self.world.stream()

        async def pump(seconds: float) -> None:
            self.world.clock.advance(seconds)
            await self.world.follow(stream)

        await self.world.compared()
        made, shortfalls = await prove(self.world.proof(pump), "proof-1", "2026-01-01T00:00:00Z", 60)
        assert made is not None, shortfalls
        return made

    @property
    def document(self) -> dict[str, Any]:
        return dict(self.world.database.state.certificates[-1][1])

    @property
    def parts(self) -> Parts:
        world = self.world
        made: dict[str, Callable[[str], Any]] = {
            "target": lambda role: world.target(),
            "source": lambda role: world.source,
            "feed": lambda role: world.feed(),
            "capture": lambda role: world.capture,
            "indexes": lambda role: world.indexes,
        }
        made |= {part: lambda role: Away() for part in self.away}
        settings = SimpleNamespace(name="shop", verify=SimpleNamespace(max_age_s=86_400))
        return cast(Parts, SimpleNamespace(settings=settings, **made))

    async def checked(self) -> Checked:
        return await check(self.parts, self.document)


@pytest.fixture
async def proven() -> Proven:
    return await Proven().open()


def against(checked: Checked) -> list[tuple[int, str]]:
    """What does not hold."""
    return [(o.step, o.what) for o in checked.observations if o.holds is False]


def unknown(checked: Checked) -> list[tuple[int, str]]:
    return [(o.step, o.what) for o in checked.observations if o.holds is None]


# --- the check


async def test_a_fresh_certificate_holds_in_every_step(proven: Proven) -> None:
    checked = await proven.checked()
    assert (checked.holds, checked.is_ours) == (True, True)
    assert sorted({o.step for o in checked.observations}) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [o.says for o in checked.observations if not o.holds] == []


async def note_break(proven: Proven) -> None:
    async with proven.world.target().begin() as tx:
        await tx.ledger.journal("break", "pulse-missing", {"first": 1, "last": 2})


async def halt(proven: Proven) -> None:
    async with proven.world.target().begin() as tx:
        await tx.ledger.halt("offsets-gone", HaltNote("message", "hint"), "stream")


async def halt_embedding(proven: Proven) -> None:
    async with proven.world.target().begin() as tx:
        await tx.ledger.halt("provider-key-refused", HaltNote("message", "hint"), proven.world.generation.role)


async def compare(proven: Proven, **ended: Any) -> None:
    async with proven.world.target().begin() as tx:
        begun = await tx.comparisons.begin([proven.world.generation.id], 1, [])
        await tx.comparisons.end(replace(begun, **{"ended_lsn": 1, **ended}), close_breaks=False)


async def find_differences(proven: Proven) -> None:
    await compare(proven, state=State.DIFFERS, open={"row-extra": 1})


async def wait_a_day(proven: Proven) -> None:
    proven.world.clock.advance(86_401)


async def forget_comparisons(proven: Proven) -> None:
    proven.world.database.state.comparisons.clear()


async def take_another_source(proven: Proven) -> None:
    proven.world.source.who = replace(proven.world.source.who, system_identifier="another")


async def make_topic_again(proven: Proven) -> None:
    proven.world.broker.topic_ids[proven.world.broker.topic_of["articles"]] = "made again"


async def set_checkpoint_back(proven: Proven) -> None:
    state = proven.world.database.state
    state.checkpoints = {at: replace(c, next_offset=-1) for at, c in state.checkpoints.items()}


async def set_source_back(proven: Proven) -> None:
    proven.world.source.lsn = 1


async def set_connector_back(proven: Proven) -> None:
    proven.world.connector.committed = 1


async def spoil_index(proven: Proven) -> None:
    proven.world.indexes.valid["articles", proven.world.generation.id] = False


async def drop_generation(proven: Proven) -> None:
    await proven.world.add_generation("v2")
    async with proven.world.target().begin() as tx:
        await tx.ledger.drop_generation(proven.world.generation)


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        (note_break, [(1, "continuity")]),
        (halt, [(1, "halts")]),
        (halt_embedding, [(1, "halts")]),
        (find_differences, [(1, "comparison")]),
        (wait_a_day, [(1, "comparison")]),
        (forget_comparisons, [(1, "comparison")]),
        (set_source_back, [(3, "source's log")]),
        (set_connector_back, [(4, "connector's offset")]),
        (set_checkpoint_back, [(6, "checkpoint")]),
        (take_another_source, [(8, "identity")]),
        (make_topic_again, [(8, "identity")]),
        (spoil_index, [(8, "index of articles")]),
        (drop_generation, [(2, "generation")]),
    ],
)
async def test_what_no_longer_holds_is_named_with_its_step_and_nothing_else(
    proven: Proven, move: Move, expected: list[tuple[int, str]]
) -> None:
    await move(proven)
    checked = await proven.checked()
    assert against(checked) == expected
    assert checked.holds is False


async def test_what_changed_since_is_no_objection(proven: Proven) -> None:
    """A certificate is about a position: later changes, their work and a newer clean comparison leave it alone."""
    document = proven.document
    tx = proven.world.source.begin()
    tx.update("articles", "0", title="later")
    tx.commit()
    await proven.world.follow(proven.world.stream())
    await compare(proven, state=State.CLEAN)
    checked = await check(proven.parts, document)
    assert checked.holds is True
    assert "a newer one is clean" in checked.observations[0].says
    assert proven.world.owed() == {("0",)}


async def test_work_from_before_its_position_that_is_owed_again_is_named(proven: Proven) -> None:
    async with proven.world.target().begin() as tx:
        seq = await tx.ledger.highest_seq()
    state = proven.world.database.state
    row_id = next(iter(state.keys))[1]
    state.work[proven.world.generation.id, proven.world.table.id, row_id] = WorkEntry(seq, seq, 0, 0, True)
    assert against(await proven.checked()) == [(7, "work")]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("source", [(3, "source's log"), (8, "identity")]),
        ("feed", [(5, "end offsets"), (8, "identity")]),
        ("capture", [(4, "connector's offset")]),
        ("indexes", [(8, "index of articles")]),
    ],
)
async def test_what_a_part_that_is_away_knows_is_unknown_and_not_taken_for_good(
    proven: Proven, part: str, expected: list[tuple[int, str]]
) -> None:
    proven.away.add(part)
    checked = await proven.checked()
    assert (checked.holds, checked.is_ours) == (None, True)
    assert unknown(checked) == expected


async def test_with_the_target_away_only_the_digest_is_known(proven: Proven) -> None:
    document = proven.document
    proven.away.add("target")
    checked = await check(proven.parts, document)
    assert (checked.is_ours, checked.holds, checked.observations) == (None, None, ())
    assert checked.digest == digest_of(document)


async def test_control_tables_that_stop_answering_leave_their_steps_unknown(proven: Proven) -> None:
    faults = proven.world.faults
    faults.at("target.begin", refuse(), 2)
    checked = await proven.checked()
    faults.verify()
    assert checked.holds is None
    assert (1, "comparison") in unknown(checked) and (7, "work") in unknown(checked)
    assert against(checked) == []


async def test_a_document_with_one_character_changed_is_none_of_ours(proven: Proven) -> None:
    document = {**proven.document, "position": "9/9"}
    checked = await check(proven.parts, document)
    assert (checked.is_ours, checked.holds, checked.observations) == (False, False, ())


async def test_a_stored_certificate_that_was_changed_behind_its_digest_is_found(proven: Proven) -> None:
    document, state = proven.document, proven.world.database.state
    generation, stored, digest, at = state.certificates[-1]
    state.certificates = ((generation, {**stored, "position": "9/9"}, digest, at),)
    assert (await check(proven.parts, document)).is_ours is False


async def test_a_certificate_of_before_there_were_comparisons_does_not_hold(proven: Proven) -> None:
    document = {name: value for name, value in proven.document.items() if name != "comparison"} | {"compared": False}
    async with proven.world.target().begin() as tx:
        await tx.ledger.store_certificate(proven.world.generation, document, digest_of(document))
    assert against(await check(proven.parts, document)) == [(1, "comparison")]


# --- files


def test_the_digest_is_of_the_canonical_bytes_in_whatever_layout() -> None:
    document = {"schema": "revector.certificate/1", "b": [1, "ü"], "a": None}
    canonical = '{"a":null,"b":[1,"ü"],"schema":"revector.certificate/1"}'.encode()
    assert canonical_bytes(document) == canonical
    for text in (json.dumps(document), json.dumps(document, indent=4), canonical.decode()):
        read, given = parse(text)
        assert (digest_of(read), given) == (hashlib.sha256(canonical).hexdigest(), None)


def test_the_envelopes_of_the_commands_are_taken() -> None:
    document = {"schema": "revector.certificate/1"}
    assert parse(json.dumps({"schema": "revector.prove/1", "digest": "d", "certificate": document})) == (document, "d")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        '{"certificate": null}',
        '{"schema": "revector.status/1"}',
        '{"schema": "revector.certificate/1", "schema": "revector.certificate/1"}',
        "[" * 100_000,
    ],
)
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(NotACertificate):
        parse(text)


@pytest.mark.parametrize("value", ["1e999", "NaN", str(2**60)])
def test_numbers_without_a_canonical_form_are_refused(value: str) -> None:
    document, _ = parse(f'{{"schema": "revector.certificate/1", "n": {value}}}')
    with pytest.raises(NotACertificate):
        digest_of(document)


@pytest.mark.parametrize("lsn", [0, 1, 0xFFFF_FFFF, 0x1_0000_0000, 2**64 - 1])
def test_a_position_is_read_as_it_was_written(lsn: int) -> None:
    assert lsn_of(lsn_text(lsn)) == lsn


# --- the command line


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Invoke = Callable[..., Ended]


@pytest.fixture
def settled() -> Proven:
    return asyncio.run(Proven().open())


@pytest.fixture
def invoke(settled: Proven, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "revector.toml").write_text(CONFIG)

    def invoked(*arguments: str) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        frame = Frame(parts=lambda loaded: settled.parts, environ={}, stdout=out, stderr=err)
        return Ended(run(build(), ["certificate", *arguments], frame), out.getvalue(), err.getvalue())

    return invoked


def test_certificates_are_listed_the_newest_first(settled: Proven, invoke: Invoke) -> None:
    asyncio.run(settled.prove())
    listed = invoke("list", "shop", "--json").document
    assert listed["schema"] == "revector.certificate-list/1"
    digests = [c["digest"] for c in listed["certificates"]]
    assert digests == [digest for _, _, digest, _ in reversed(settled.world.database.state.certificates)]
    assert [c["comparison"] for c in listed["certificates"]] == [2, 1]
    lines = invoke("list").out.splitlines()
    assert lines[0] == "shop: certificates of generation v1"
    assert lines[2].split()[0] == digests[0][:12]
    assert len(invoke("list", "--limit", "1", "--json").document["certificates"]) == 1


def test_a_generation_without_certificates_and_one_that_is_not_there(settled: Proven, invoke: Invoke) -> None:
    settled.world.database.state.certificates = ()
    assert "next: revector prove shop" in invoke("list").out
    assert invoke("show").code == ExitCode.NO
    assert invoke("list", "--generation", "v9").code == ExitCode.NO
    assert invoke("show", "--json").document["error"]["id"] == "certificate-absent"


def test_a_saved_certificate_is_its_canonical_bytes_whose_sha256_is_the_digest(
    settled: Proven, invoke: Invoke, tmp_path: Path
) -> None:
    _, document, digest, _ = settled.world.database.state.certificates[-1]
    shown = invoke("show", "latest", "shop", "--output", "proof.json")
    assert (shown.code, shown.out.splitlines()[-1]) == (ExitCode.YES, "saved: proof.json")
    saved = (tmp_path / "proof.json").read_bytes()
    assert hashlib.sha256(saved).hexdigest() == digest
    assert json.loads(saved) == document
    assert invoke("show", digest[:8], "--json").document["certificate"] == document


def test_digests_that_name_none_or_several_are_refused(settled: Proven, invoke: Invoke) -> None:
    assert invoke("show", "0000000000", "--json").document["error"]["id"] == "certificate-absent"
    generation, document, _, at = settled.world.database.state.certificates[-1]
    settled.world.database.state.certificates = tuple((generation, document, d, at) for d in ("abcd1", "abcd2"))
    assert invoke("show", "abcd", "--json").document["error"]["id"] == "certificate-ambiguous"
    assert invoke("show", "abcd2").code == ExitCode.YES
    assert invoke("show", "shop").code == ExitCode.USAGE
    assert invoke("show", "latest", "--output", "absent/proof.json").code == ExitCode.USAGE


def test_what_was_saved_or_printed_is_checked(settled: Proven, invoke: Invoke, tmp_path: Path) -> None:
    invoke("show", "--output", "proof.json")
    (tmp_path / "printed.json").write_text(invoke("show", "--json").out)
    for name in ("proof.json", "printed.json"):
        ended = invoke("check", name, "shop")
        assert ended.code == ExitCode.YES
        assert ended.out.startswith(f"certificate {digest_of(settled.document)}: holds\n  issued here, ")
        assert "  step 8  holds  index of articles" in ended.out
    document = invoke("check", "proof.json", "--json").document
    assert (document["schema"], document["holds"], document["ours"]) == ("revector.certificate-check/1", True, True)
    asyncio.run(note_break(settled))
    ended = invoke("check", "proof.json")
    assert (ended.code, ended.out.splitlines()[0].endswith("does not hold")) == (ExitCode.NO, True)
    assert "  step 1  no     continuity          pulse-missing" in ended.out


def test_a_changed_file_is_none_of_ours_and_says_what_was_given(invoke: Invoke, tmp_path: Path) -> None:
    printed = invoke("show", "--json").document
    printed["certificate"]["position"] = "9/9"
    (tmp_path / "printed.json").write_text(json.dumps(printed))
    ended = invoke("check", "printed.json")
    assert ended.code == ExitCode.NO
    assert f"the file gives another digest, {printed['digest']}" in ended.out
    assert "it is none of ours" in ended.out


def test_away_is_said_and_is_not_yes(settled: Proven, invoke: Invoke) -> None:
    invoke("show", "--output", "proof.json")
    settled.away = {"capture"}
    ended = invoke("check", "proof.json")
    assert (ended.code, ended.out.splitlines()[0].endswith("not known")) == (ExitCode.AWAY, True)
    settled.away = {"target"}
    ended = invoke("check", "proof.json")
    assert ended.code == ExitCode.AWAY
    assert "the target is away: only the digest was computed" in ended.out


def test_a_file_that_is_no_certificate_is_a_usage_error(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "other.json").write_text("{}")
    for name in ("absent.json", "binary", "other.json"):
        assert invoke("check", name).code == ExitCode.USAGE

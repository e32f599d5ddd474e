"""What a running migration notices of its source: a table that is no longer published, or no longer what it was.

Nothing of this shows in the log itself: an unpublished or renamed table is silent, and a silent table looks caught up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from daemon.core.catalog import CatalogColumn, TableCatalog, schema_change
from daemon.errors import REALIGN, IdentityChanged, SchemaChanged, TransientError
from daemon.flow.pulse import check_identity
from daemon.procedures.prove import prove
from tests.fakes import Faults, refuse, then
from tests.flow.test_freshness import A, change, pulses
from tests.flow.world import World

Alter = Callable[[TableCatalog], TableCatalog | None]


def retyped(catalog: TableCatalog) -> TableCatalog:
    """`views` became bigint: values beyond the replica's integer would come."""
    views = replace(catalog.columns[-1], type="bigint", base_type="bigint")
    return replace(catalog, columns=(*catalog.columns[:-1], views))


ALTERED: dict[str, Alter] = {
    "dropped or renamed": lambda catalog: None,
    "column gone": lambda catalog: replace(catalog, columns=catalog.columns[:-1]),
    "column of another type": retyped,
    "another key": lambda catalog: replace(catalog, primary_key=("id", "tenant")),
    "no identity": lambda catalog: replace(catalog, identity="nothing"),
}
HARMLESS: dict[str, Alter] = {
    "a column more": lambda c: replace(
        c, columns=(*c.columns, CatalogColumn("extra", "text", "text", "base", True, False, True))
    ),
    "not null": lambda c: replace(c, columns=tuple(replace(column, nullable=False) for column in c.columns)),
    "full identity": lambda c: replace(c, identity="full"),
}


@pytest.fixture
async def world() -> World:
    opened = await World().open()
    opened.source.seed("articles", {"id": "0", **A}, {"id": "1", **A})
    await opened.begin()
    await opened.copy()
    await opened.embed()
    await opened.indexes.build(opened.table, opened.generation)
    return opened


async def alter(world: World, how: Alter) -> None:
    catalog = await world.source.describe("public", "articles")
    assert catalog is not None
    world.source.catalogs["articles"] = how(catalog)


def breaks(world: World) -> list[str]:
    return [e.id for e in world.database.state.journal if e.kind == "break"]


async def test_a_table_that_is_published_no_longer_is_a_break(world: World) -> None:
    loop = pulses(world)
    await loop.step()
    assert breaks(world) == []
    world.source.unpublished.add("articles")
    world.clock.advance(5)
    await loop.step()
    assert breaks(world) == ["publication-drift"]


async def test_a_break_of_the_publication_outlives_a_turn_that_fails(world: World) -> None:
    script = Faults()
    loop = pulses(world, script)
    world.source.unpublished.add("articles")
    script.at("capture.committed_lsn", then(lambda: change(world, title="x")))
    script.at("feed.data_ends", refuse())
    with pytest.raises(TransientError, match="scripted"):
        await loop.step()
    world.source.unpublished.clear()
    await loop.step()
    assert breaks(world) == ["publication-drift"]


@pytest.mark.parametrize("how", ALTERED.values(), ids=ALTERED)
async def test_a_changed_table_halts_a_running_migration(world: World, how: Alter) -> None:
    loop = pulses(world)
    await loop.step()
    await alter(world, how)
    world.clock.advance(5)
    with pytest.raises(SchemaChanged) as halted:
        await loop.step()
    assert halted.value.id == "table-changed"


def remade(name: str, **changes: Any) -> Alter:
    """A column as after an ALTER, with new files of the table unless they are the same."""
    files = changes.pop("files", "2")

    def how(catalog: TableCatalog) -> TableCatalog:
        columns = tuple(replace(c, **changes) if c.name == name else c for c in catalog.columns)
        return replace(catalog, columns=columns, files=files)

    return how


@pytest.mark.parametrize(
    ("how", "found"),
    [
        (remade("views", number=9, files="1"), ["table-rewritten"]),  # dropped and added again
        (remade("views", altered="2"), ["table-rewritten"]),  # ALTER COLUMN ... TYPE ... USING
        (remade("views", altered="2", files="1"), []),  # another default
        (remade("views"), []),  # TRUNCATE, VACUUM FULL
        (remade("nobody's", number=9), []),
    ],
)
async def test_a_column_whose_values_were_made_anew_without_an_event_is_a_break(
    world: World, how: Alter, found: list[str]
) -> None:
    await alter(world, remade("views", files="1"))
    await pulses(world).step()
    await alter(world, how)
    assert await shortfalls(world) == (["break-open"] if found else [])
    loop = pulses(world)  # another process: what was recorded counts
    await loop.step()
    assert breaks(world) == found
    world.clock.advance(5)
    await loop.step()
    assert breaks(world) == found


async def test_a_rewritten_table_is_said_once_whoever_owns_the_stream_next(world: World) -> None:
    before, meanwhile = pulses(world), pulses(world)
    await before.step()
    await alter(world, remade("views", number=9, files="1"))
    world.clock.advance(5)
    await meanwhile.step()
    assert breaks(world) == ["table-rewritten"]
    world.database.state.journal = ()  # as closed by a comparison
    world.clock.advance(5)
    await before.step()  # which remembers the table as it was
    assert breaks(world) == []


async def test_a_rewritten_table_is_said_though_what_it_was_is_not_recorded_yet(world: World) -> None:
    script = Faults()
    loop = pulses(world, script)
    script.at("feed.data_ends", refuse())
    with pytest.raises(TransientError, match="scripted"):
        await loop.step()
    for _ in range(2):
        await alter(world, remade("views", number=9, files="1"))
        world.clock.advance(5)
        script.at("feed.data_ends", refuse())
        with pytest.raises(TransientError, match="scripted"):
            await loop.step()
    await loop.step()
    assert breaks(world) == ["table-rewritten"]


async def test_a_changed_table_leaves_a_break_for_when_it_is_set_back(world: World) -> None:
    loop = pulses(world)
    await loop.step()
    await alter(world, retyped)
    world.clock.advance(5)
    with pytest.raises(SchemaChanged) as halted:
        await loop.step()
    assert halted.value.command == REALIGN
    world.source.catalogs.clear()
    await pulses(world).step()
    assert breaks(world) == ["table-changed"]


@pytest.mark.parametrize("how", HARMLESS.values(), ids=HARMLESS)
async def test_a_harmless_change_of_a_table_goes_unmentioned(world: World, how: Alter) -> None:
    await alter(world, how)
    await pulses(world).step()
    assert breaks(world) == []


def test_a_replica_identity_that_carries_less_is_a_change() -> None:
    table = replace(World().table, full_identity=True)
    columns = tuple(CatalogColumn(c.name, c.type, c.type, "base", c.nullable, False, True) for c in table.columns)
    catalog = TableCatalog("public", "articles", columns, table.key, False, "default")
    assert schema_change(table, catalog) == "table public.articles: its replica identity was full, is default"
    assert schema_change(table, replace(catalog, identity="full")) is None


async def test_a_source_that_was_set_back_halts_and_is_remembered(world: World) -> None:
    """Of an older state every barrier passes, and later changes would be taken for ones that are applied."""
    await pulses(world).step()
    reached = world.source.lsn
    world.source.lsn -= 50
    with pytest.raises(IdentityChanged, match="log position"):
        await pulses(world).step()
    with pytest.raises(IdentityChanged, match="log position"):
        await check_identity(world.source, world.feed(), world.target())
    assert "identity-changed" in await shortfalls(world)
    world.source.lsn = reached
    await check_identity(world.source, world.feed(), world.target())


async def test_pulses_are_not_written_into_another_cluster(world: World) -> None:
    loop = pulses(world)
    await loop.step()
    world.source.who = replace(world.source.who, system_identifier="of another cluster")
    world.clock.advance(5)
    emitted = len(world.source.log)
    with pytest.raises(IdentityChanged, match="system_identifier"):
        await loop.step()
    assert len(world.source.log) == emitted


async def shortfalls(world: World) -> list[str]:
    async def pause(seconds: float) -> None:
        await world.clock.sleep(seconds)
        await world.follow(stream)

    stream = world.stream()
    await world.compared()
    return [s.id for s in (await prove(world.proof(pause), "proof-1", "2026-01-01T00:00:00Z", 10))[1]]


async def test_no_certificate_for_a_table_whose_changes_do_not_come(world: World) -> None:
    assert await shortfalls(world) == []
    world.source.unpublished.add("articles")
    assert await shortfalls(world) == ["break-open"]
    world.source.unpublished.clear()
    await alter(world, retyped)
    assert await shortfalls(world) == ["halted"]


async def test_a_wait_for_the_target_does_not_make_a_lag_look_shorter(world: World) -> None:
    """The lag is read, then the target is slow: its age counts from before."""
    loop = pulses(world)
    stream = world.stream()
    written_at = world.clock()
    await loop.step()
    await world.follow(stream)
    await loop.step()
    script = Faults()
    late = pulses(world, script)
    late.tracker, late.fresh, late.next_at = loop.tracker, loop.fresh, float("inf")

    async def slowly() -> None:
        world.clock.advance(7)

    for call in range(1, 6):
        script.at("target.begin", then(slowly), call)
    script.at("ledger.load", then(slowly))
    script.at("ledger.observe", then(slowly))
    await late.step()
    script.verify()
    async with world.target().begin() as tx:
        state = await tx.ledger.load()
    assert state.observed is not None and state.observed_age_s is not None
    lag_s = state.observed["generation_lag_s"][str(world.generation.id)]
    assert lag_s + state.observed_age_s >= world.clock() - written_at

"""A tick's first look on a real server: it agrees with what a refresh of each view would have said."""

from __future__ import annotations

from datetime import timedelta

from fleet import ledger
from fleet.ledger import NewRun, State
from fleet.names import RelationName
from tasks.refresh.execute import REFRESH_VIEW
from tasks.refresh.verify import verify
from tasks.refresh.view import record_verified
from tests.integration.tasks.refresh.test_execute import counters_moved

TOP = RelationName.parse("public.top")
BASE = RelationName.parse("public.base")
KEYLESS = RelationName.parse("public.keyless")


def look(system, *targets, entry="fifteen_minutes"):
    found, server = verify(system.connection, system.settings, targets, entry=entry, slot=system.now())
    return {each.view: each for each in found}, server


def test_what_was_never_refreshed_is_not_spared(system):
    assert look(system, TOP, KEYLESS)[0] == {}


def test_an_unchanged_view_is_spared_with_its_upstream_until_something_is_written(system):
    # On 14 a new database has no statistics, and no time of their reset, until the first of them arrive.
    system.write(1)
    counters_moved(system, 21)
    system.refresh("public.top")
    found, server = look(system, TOP)
    assert {(str(v), f.entry) for v, f in found.items()} == {
        ("public.base", "five_minutes"),
        ("public.top", "fifteen_minutes"),
    }
    assert found[TOP].by_counters
    record_verified(system.connection, found, server.clock)
    assert (
        system.scalar("SELECT verified_at FROM upkeep.view_state WHERE view = 'public.top'") == server.clock
    )
    system.write(1)
    counters_moved(system, 22)
    # The upstream view may still be fresh for its own tier's slot; the one that reads it then is as well.
    with system.connection.cursor() as cursor:
        cursor.execute(
            "UPDATE upkeep.view_state SET snapshot_at = snapshot_at - interval '20 min',"
            " verified_at = verified_at - interval '20 min'"
        )
    assert look(system, TOP)[0] == {}
    assert [str(v) for v in look(system, TOP, KEYLESS)[0]] == []


def test_a_recreated_view_is_not_spared(system):
    system.refresh("public.base")
    assert BASE in look(system, BASE)[0]
    system.connection.execute("DROP MATERIALIZED VIEW public.base CASCADE")
    assert look(system, BASE)[0] == {}
    system.connection.execute("CREATE MATERIALIZED VIEW public.base AS SELECT id, n FROM public.t")
    assert look(system, BASE)[0] == {}


def test_a_verification_is_never_later_than_the_counters_that_it_read(system):
    system.refresh("public.base")
    before = system.now()
    _, server = look(system, BASE)
    assert before <= server.clock <= system.now()


def test_a_spared_run_is_final_and_stands_for_its_slot(system):
    slot = system.now()
    key = {"task": REFRESH_VIEW, "target": "public.base", "entry": "five_minutes", "queue": "refresh"}
    made = ledger.insert_all(
        system.connection,
        [
            NewRun(**key, slot=slot, state=State.SKIPPED, reason="its sources have not changed"),
            NewRun(**key | {"target": "public.top"}, slot=slot),
        ],
        worker="w",
    )
    assert {m.target: m.state for m in made} == {"public.base": State.SKIPPED, "public.top": State.QUEUED}
    run = ledger.get(system.connection, made[0].id)
    assert (run.final, run.worker, run.reason, run.as_of) == (True, "w", "its sources have not changed", slot)
    assert run.duration == timedelta()
    # Neither is inserted twice, whatever a second look says.
    assert ledger.insert_all(system.connection, [NewRun(**key, slot=slot)], worker="w") == []
    assert ledger.insert(system.connection, NewRun(**key, slot=slot)) == (run.id, False)

"""After a promotion or a restore everything is refreshed once: whoever finds out first asks, and nobody asks twice."""

from __future__ import annotations

from typing import Any

import pytest

from fleet import ledger
from fleet.ledger import Run, State
from fleet.postgres.catalog.server import read_server
from tasks.refresh.promotion import REFRESH_ALL, refresh_what_is_of_another_timeline
from tests.integration.tasks.refresh.conftest import System

PROMOTED = "UPDATE upkeep.view_state SET timeline = timeline - 1 WHERE view = 'public.base'"
RESTORED = "UPDATE upkeep.view_state SET system_identifier = '1' WHERE view = 'public.base'"


def look(system: System) -> int | None:
    return refresh_what_is_of_another_timeline(
        system.connection, system.settings, read_server(system.connection)
    )


def asked(system: System) -> list[Run]:
    return ledger.history(system.connection, task=REFRESH_ALL)


def test_a_database_that_stayed_where_it_was_has_no_need(system: System) -> None:
    assert look(system) is None  # nothing was refreshed yet
    system.refresh("public.base")
    assert look(system) is None
    # What is no longer managed says nothing.
    system.connection.execute("UPDATE upkeep.view_state SET tier = NULL")
    system.connection.execute(PROMOTED)
    assert look(system) is None
    assert asked(system) == []


@pytest.mark.parametrize(
    ("moved", "why"),
    [(PROMOTED, "promotion to timeline 1"), (RESTORED, "restored in another cluster")],
)
def test_everything_is_asked_for_once(system: System, moved: str, why: str) -> None:
    system.refresh("public.base")
    system.connection.execute(moved)
    run_id = look(system)
    assert run_id is not None
    assert look(system) == run_id  # it is open still: whoever rings may ring again
    (run,) = asked(system)
    assert (run.id, run.target, run.state) == (run_id, "kept", State.QUEUED)
    assert run.requested_by == why
    ledger.finish(system.connection, run_id, State.SUCCEEDED)
    assert look(system) is None
    # A view whose refresh fails for good stays on the old timeline, and asks no second time.
    assert system.scalar(
        "SELECT count(*) FROM upkeep.view_state WHERE timeline = 0 OR system_identifier = '1'"
    )
    assert len(asked(system)) == 1


def test_another_promotion_asks_again(system: System) -> None:
    system.refresh("public.base")
    system.connection.execute(PROMOTED)
    first = look(system)
    ledger.finish(system.connection, first, State.SUCCEEDED)
    system.connection.execute("UPDATE upkeep.run SET request_id = replace(request_id, '/1', '/0')")
    assert look(system) not in {None, first}


@pytest.mark.parametrize("changes", [{}, {"entry": "five_minutes"}])
def test_a_refresh_asks_before_it_overwrites_what_tells(system: System, changes: dict[str, Any]) -> None:
    system.refresh("public.base")
    system.connection.execute(PROMOTED)
    if changes:
        changes["slot"] = system.now()
    run = system.refresh("public.base", **changes)
    assert run.state == State.SUCCEEDED
    assert system.scalar("SELECT timeline FROM upkeep.view_state WHERE view = 'public.base'") == 1
    assert [each.requested_by for each in asked(system)] == ["promotion to timeline 1"]


def test_an_upstream_view_asks_too(system: System) -> None:
    system.refresh("public.top")
    system.connection.execute(PROMOTED)
    system.refresh("public.top")
    assert len(asked(system)) == 1

"""Requests that leave with the commit of a Django transaction, or not at all: one round trip for all of them.

Django itself keeps what was registered with `transaction.on_commit`, and drops what a rolled-back savepoint
registered.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import transaction

from upkeep_client import collecting
from upkeep_client.collecting import Collected
from upkeep_client.errors import InvalidType
from upkeep_client.requests import Key, Parameters
from upkeep_client.upkeep import Upkeep


def request_refresh_after_commit(
    upkeep: Upkeep,
    view: str | Iterable[str],
    *,
    using: str | None = None,
    database: str | None = None,
    keys: Iterable[Key] | None = None,
    parameters: Parameters | None = None,
) -> None:
    """Ask for a refresh when the transaction has committed; outside of one, at once.

    Whatever happens to Redis then, the code that commits is not told: see `on_error` of `Upkeep`.

    Args:
        upkeep: the client, made once, in the settings say.
        view: "schema.view", or several of them.
        using: Django's alias of the database connection.
        database: its name in upkeep.toml; the client's by default.
        keys: which rows changed.
        parameters: what the tags of `invalidates` are filled with.

    Raises:
        InvalidRequest: a wrong type or value.

    """
    if not isinstance(upkeep, Upkeep):
        raise InvalidType("Django's hooks are not asynchronous: they need an Upkeep, no AsyncUpkeep.")
    requests = upkeep.prepare(view, database=database, keys=keys, parameters=parameters)
    collected: list[Collected] = [(upkeep, each) for each in requests]
    connection = transaction.get_connection(using)
    if not connection.in_atomic_block:
        # Django runs it at once, or refuses where commits are the application's own business.
        transaction.on_commit(lambda: collecting.send(collected), using=using, robust=True)
        return
    hooks: list[tuple[Any, ...]] = connection.run_on_commit
    last = hooks[-1][1] if hooks else None
    if isinstance(last, _Send) and last.savepoints == connection.savepoint_ids:
        last.newest.requests.extend(collected)
        return
    sender = next((hook[1] for hook in reversed(hooks) if isinstance(hook[1], _Send)), None)
    gathered = sender.gathered if sender else []
    if sender:
        sender.replaced = True
    collect = _Collect(gathered, collected)
    transaction.on_commit(collect, using=using, robust=True)
    # Registered behind the rest, and under no savepoint, so that it runs last whichever of them is rolled back.
    # Django has no function for that; the list is what its own test tools use.
    sender = _Send(gathered, collect, list(connection.savepoint_ids))
    hooks = connection.run_on_commit
    hooks.append((set(), sender, *hooks[-1][2:]))


class _Collect:
    """Adds what was asked for under a savepoint, if Django gets to call it."""

    def __init__(self, gathered: list[Collected], requests: list[Collected]) -> None:
        self._gathered = gathered
        self.requests = requests

    def __call__(self) -> None:
        self._gathered.extend(self.requests)


class _Send:
    """Sends what those before it have gathered."""

    def __init__(self, gathered: list[Collected], newest: _Collect, savepoints: list[str]) -> None:
        self.gathered = gathered
        self.newest = newest
        self.savepoints = savepoints
        self.replaced = False

    def __call__(self) -> None:
        if not self.replaced:
            collecting.send(self.gathered)

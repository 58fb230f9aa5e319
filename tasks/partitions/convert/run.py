"""Carries a conversion through its steps, back, or over the switch; whatever stops it, the next one goes on from there.

Every step that changes something is one transaction with the note that it is done, but for what PostgreSQL does not let
run in one (CREATE INDEX CONCURRENTLY) or what needs no note because doing it again does nothing (VALIDATE).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Oid

from fleet.errors import PermanentError, TransientError
from fleet.names import RelationName
from fleet.postgres import locks
from fleet.postgres.patience import Deadline, Patience, patiently
from tasks.partitions.calendar import text
from tasks.partitions.convert import attach, fill, views
from tasks.partitions.convert.facts import Row, facts_sql
from tasks.partitions.convert.parent import add_reference, create_parent
from tasks.partitions.convert.plan import How, Plan, beside
from tasks.partitions.convert.state import (
    Conversion,
    acting_as,
    begin,
    get,
    state_sql,
)
from tasks.partitions.convert.switch import switch

Tell = Callable[[str], None]
# Where nobody waits.
UNHURRIED = timedelta(hours=1)
# An operator waits for it: longer than a run of the fleet would.
PATIENCE = Patience(tries=60, total=Patience().total * 5)
LOOK_S = 0.1
# Writers who do not see copies are few once all rows are copied.
LOOKS = 5


@contextmanager
def working_on(connection: psycopg.Connection[Any], *oids: int) -> Iterator[None]:
    """Hold the locks by which all work on these tables excludes each other.

    Raises:
        TransientError: somebody else works on one.
    """
    held: list[str] = []
    try:
        for oid in oids:
            key = locks.relation_key(oid)
            if not locks.acquire_within(connection, key, timeout_s=5.0):
                raise TransientError(
                    "Somebody else is at work on this table: its maintenance, or what was killed a moment ago",
                    remedy="Run it again when that has ended",
                )
            held.append(key)
        yield
    finally:
        locks.release(connection, *held)


def settle(connection: psycopg.Connection[Any]) -> None:
    """What a session needs whose statements take hours: none is cut short but by a step's own deadline."""
    for name, value in (("statement_timeout", "0"), ("lock_timeout", "0"), ("DateStyle", "ISO, YMD")):
        connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))


class Converter:
    """One conversion, on a connection of its own."""

    def __init__(
        self, connection: psycopg.Connection[Any], planned: Plan, conversion: Conversion, tell: Tell
    ) -> None:
        self.connection = connection
        self.plan = planned
        self.conversion = conversion
        self.tell = tell

    @classmethod
    def begin(
        cls,
        connection: psycopg.Connection[Any],
        planned: Plan,
        conversion: Conversion | None,
        *,
        requested_by: str,
        tell: Tell,
    ) -> Converter:
        """Begin one, or go on with the one that is there.

        Raises:
            PermanentError: the plan is refused.
        """
        if planned.refused:
            message, remedy = planned.refused[0]
            raise PermanentError(message, remedy=remedy)
        if conversion is None:
            boundary = None if planned.boundary is None else text(planned.boundary)
            conversion = begin(connection, planned, boundary=boundary, requested_by=requested_by)
        return cls(connection, planned, conversion, tell)

    def prepare(self) -> None:
        """Everything but the switch, as far as it is not done."""
        facts = self.plan.facts
        with working_on(self.connection, facts.oid):
            self._step("parent", self._parent, None)
            self._references()
            if self.plan.asked.how is How.ATTACH:
                self._attach()
            else:
                self._fill()
            self._views()
            if self.conversion.state != "ready":
                self.verify()

    def switch(self) -> None:
        """The switch, after a last look; what is prepared must be."""
        facts = self.plan.facts
        assert self.conversion.parent is not None
        with working_on(self.connection, facts.oid, self.conversion.parent):
            held = views.hold(self.connection, facts)
            try:
                if facts.matviews:
                    self.tell("refreshing what was built")
                views.populate(self.connection, facts)
                self.verify()
                self._wait_for_older_snapshots()
                self.tell("switching")
                self._switch()
            finally:
                locks.release(self.connection, *held)
        self._reread()

    def _switch(self) -> None:
        facts = self.plan.facts
        assert self.conversion.parent is not None
        for _ in range(LOOKS):
            try:
                return patiently(
                    self.connection,
                    lambda deadline: switch(self.connection, deadline, self.plan, self.conversion),
                    budget=self.plan.asked.policy.lock_budget,
                    relations=[
                        *facts.remade,
                        self.conversion.parent,
                        *(each.oid for each in facts.views),
                        *(each.relation for each in facts.incoming),
                    ],
                    doing=f"Switching {facts.name}",
                    patience=PATIENCE,
                )
            except fill.Missed:
                self._redo_missed()
                self._wait_for_older_snapshots()
        raise TransientError(
            f"Rows of {facts.name} were written each time by a transaction that did not see their copies",
            remedy="Switch when there are fewer writers in REPEATABLE READ or SERIALIZABLE",
        )

    def _wait_for_older_snapshots(self) -> None:
        """A transaction in REPEATABLE READ that began before the last copies would find those rows in neither table.

        Raises:
            TransientError: one is open all the time.
        """
        copied = state_sql.current_xid(self.connection)
        ends = time.monotonic() + PATIENCE.total.total_seconds()
        while state_sql.older_snapshots(self.connection, xid=copied):
            if time.monotonic() >= ends:
                raise TransientError(
                    f"A transaction that began before the last rows of {self.plan.facts.name} were copied does not end",
                    remedy="Switch when it is over: SELECT * FROM pg_stat_activity ORDER BY xact_start LIMIT 5",
                )
            time.sleep(LOOK_S)

    def verify(self) -> None:
        """Compare both sides; raises PermanentError where they differ, which nothing should make happen."""
        if self.plan.asked.how is How.FILL:
            self._redo_missed()
        self.tell("comparing both sides")
        said = fill.compare(self.connection, self.plan)
        state_sql.verified(self.connection, id=self.conversion.id, verified=Jsonb(said), ready=said["equal"])
        self._reread()
        if not said["equal"]:
            raise PermanentError(
                f"{self.plan.facts.name} has {said['rows']:,} rows, what is beside it {said['new_rows']:,}, "
                "and what is in them differs: nothing was switched",
                remedy="Has somebody written there, or disabled its triggers? Undo it with --back, and begin again",
            )

    def back(self) -> None:
        """Undo everything, the last step first."""
        facts, conversion = self.plan.facts, self.conversion
        name, parent = facts.name, beside(facts.name)
        referenced = [each.referenced for each in self._outgoing()]
        with working_on(self.connection, facts.oid):
            if conversion.remade:
                self.tell("dropping what was built on it")
                with self.connection.transaction():
                    views.drop(self.connection, conversion)
                    state_sql.remake(self.connection, id=conversion.id, remade=Jsonb([]))
                    for each in ("views", "populated"):
                        state_sql.not_done(self.connection, id=conversion.id, step=each)
            if "attach" in conversion.steps:
                assert conversion.parent is not None
                parent_oid = conversion.parent
                self._undo(
                    "attach",
                    lambda deadline: attach.detach(self.connection, deadline, self.plan, parent_oid),
                    [facts.oid, parent_oid, *referenced],
                )
            if "bound" in conversion.steps:
                self._undo("bound", lambda deadline: attach.unbind(deadline, name), [facts.oid])
            if "mirror" in conversion.steps:
                self._undo(
                    "mirror",
                    lambda deadline: fill.unmirror(deadline, self.plan, name.identifier()),
                    [facts.oid],
                    as_owner=False,
                )
            if "parent" in conversion.steps:
                self._drop_references()
                self._undo(
                    "parent",
                    lambda deadline: deadline.execute(sql.SQL("DROP TABLE {}").format(parent.identifier())),
                    None,
                )
            if self.plan.asked.how is How.ATTACH:
                with acting_as(self.connection, facts.table.owner):
                    attach.drop_keys(self.connection, self.plan)
            with self.connection.transaction():
                state_sql.missed_done(self.connection, relation=Oid(facts.oid))
                state_sql.end(self.connection, id=conversion.id, state="undone")
        self._reread()

    def _outgoing(self) -> list[Row]:
        parent = self.conversion.parent
        if parent is None:
            return list(self.plan.facts.outgoing)
        rows = facts_sql.constraints(self.connection, oid=Oid(parent), as_role="USAGE")
        return [each for each in (Row(**row) for row in rows) if each.kind == "f" and each.ours]

    def _drop_references(self) -> None:
        """The parent's, and with them its partitions'; then those of partitions whose parent had none yet."""
        parent = self.conversion.parent
        assert parent is not None
        rows = facts_sql.partitions(self.connection, oid=Oid(parent))
        parts = [(row["oid"], RelationName(row["schema"], row["name"])) for row in rows]
        for oid, name in ((parent, beside(self.plan.facts.name)), *parts):
            for row in facts_sql.constraints(self.connection, oid=Oid(oid), as_role="USAGE"):
                if row["kind"] == "f" and row["ours"]:
                    statement = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                        name.identifier(), sql.Identifier(row["name"])
                    )
                    self._undo(
                        "references",
                        lambda deadline, statement=statement: deadline.execute(statement),  # type: ignore[misc]
                        [row["referenced"]],
                    )

    def _parent(self, deadline: Deadline) -> None:
        create_parent(deadline, self.plan)

    def _references(self) -> None:
        """One lock at a time: a partition's, and at last the parent's, which takes these over."""
        facts, parent = self.plan.facts, self.conversion.parent
        if "references" in self.conversion.steps or not facts.outgoing:
            return
        assert parent is not None
        parts = [
            (row["oid"], RelationName(row["schema"], row["name"]))
            for row in facts_sql.partitions(self.connection, oid=Oid(parent))
        ]
        for key in facts.outgoing:
            for oid, name in (*parts, (parent, beside(facts.name))):
                if facts_sql.has_constraint(self.connection, oid=Oid(oid), name=key.name) is None:
                    self._patiently(
                        "references",
                        lambda deadline, name=name, key=key: self._do(  # type: ignore[misc]
                            lambda deadline: add_reference(deadline, name.identifier(), key),
                            deadline,
                            as_owner=True,
                        ),
                        [key.referenced],
                    )
        self._note("references")

    def _attach(self) -> None:
        facts = self.plan.facts
        referenced = [each.referenced for each in facts.outgoing]
        if "keys" not in self.conversion.steps:
            self.tell("building the keys")
            with acting_as(self.connection, facts.table.owner):
                try:
                    attach.build_keys(self.connection, self.plan)
                except errors.UniqueViolation as exc:
                    raise PermanentError(
                        f"A key of {facts.name} is not unique with the control column: {exc.diag.message_detail}",
                        remedy="Mend the rows, and run it again",
                    ) from exc
            self._note("keys")
        self._step("bound", lambda deadline: attach.bind(deadline, self.plan), [facts.oid])
        if "attach" not in self.conversion.steps:
            self.tell("validating the boundary")
            with acting_as(self.connection, facts.table.owner):
                try:
                    attach.validate(self.connection, self.plan)
                except errors.CheckViolation as exc:
                    raise PermanentError(
                        f"Rows of {facts.name} came after the boundary {self.conversion.boundary} meanwhile",
                        remedy="Undo it with --back, and begin again: the boundary will be later",
                    ) from exc
        self._step(
            "attach",
            lambda deadline: attach.attach(self.connection, deadline, self.plan),
            [facts.oid, *referenced],
        )

    def _fill(self) -> None:
        self._step(
            "mirror", lambda deadline: fill.mirror(deadline, self.plan), [self.plan.facts.oid], as_owner=False
        )
        if "copy" not in self.conversion.steps:
            self.tell("copying")
            fill.copy(self.connection, self.plan, self.conversion, self.tell)
            with acting_as(self.connection, self.plan.facts.table.owner):
                self.connection.execute(
                    sql.SQL("ANALYZE {}").format(beside(self.plan.facts.name).identifier())
                )
            self._note("copy")

    def _views(self) -> None:
        facts = self.plan.facts
        prepared = {each["oid"]: each["fingerprint"] for each in self.conversion.remade}
        if "views" in self.conversion.steps and prepared != {
            e.oid: views.fingerprint(e) for e in facts.matviews
        }:
            self.tell("what was built has changed: building it anew")
            with self.connection.transaction():
                views.drop(self.connection, self.conversion)
                for each in ("views", "populated"):
                    state_sql.not_done(self.connection, id=self.conversion.id, step=each)
            self._reread()
        if "views" not in self.conversion.steps and facts.matviews:
            self._step(
                "views",
                lambda deadline: views.build_shells(self.connection, deadline, self.plan, self.conversion),
                facts.remade,
                as_owner=False,
            )
        if "populated" not in self.conversion.steps and facts.matviews:
            self.tell("building materialized views")
            views.populate(self.connection, facts)
            self._note("populated")

    def _redo_missed(self) -> None:
        if state_sql.missed(self.connection, relation=Oid(self.plan.facts.oid)):
            patiently(
                self.connection,
                lambda deadline: fill.redo_missed(self.connection, deadline, self.plan),
                budget=self.plan.asked.policy.lock_budget,
                relations=[self.plan.facts.oid],
                doing=f"Copying rows of {self.plan.facts.name} again",
                patience=PATIENCE,
            )

    def _step(
        self,
        name: str,
        do: Callable[[Deadline], object],
        relations: list[int] | None,
        *,
        as_owner: bool = True,
    ) -> None:
        if name in self.conversion.steps:
            return
        self.tell(name)

        def one(deadline: Deadline) -> None:
            self._do(do, deadline, as_owner=as_owner)
            parent = beside(self.plan.facts.name)
            made = facts_sql.oid_of(self.connection, schema=parent.schema, name=parent.name)
            state_sql.done(self.connection, id=self.conversion.id, step=name, parent=made)

        self._patiently(name, one, relations)

    def _undo(
        self,
        name: str,
        do: Callable[[Deadline], object],
        relations: list[int] | None,
        *,
        as_owner: bool = True,
    ) -> None:
        self.tell(f"undoing {name}")

        def one(deadline: Deadline) -> None:
            self._do(do, deadline, as_owner=as_owner)
            state_sql.not_done(self.connection, id=self.conversion.id, step=name)

        self._patiently(f"undoing {name}", one, relations)

    def _do(self, do: Callable[[Deadline], object], deadline: Deadline, *, as_owner: bool) -> None:
        if as_owner:
            with acting_as(self.connection, self.plan.facts.table.owner):
                do(deadline)
        else:
            do(deadline)

    def _patiently(self, name: str, one: Callable[[Deadline], None], relations: list[int] | None) -> None:
        """`relations`: what it locks that somebody may want; None: nothing, so that it may take its time."""
        if relations is None:
            with self.connection.transaction():
                one(Deadline(self.connection, UNHURRIED))
            self._reread()
            return
        patiently(
            self.connection,
            one,
            budget=self.plan.asked.policy.lock_budget,
            relations=relations,
            doing=f"The step {name} of converting {self.plan.facts.name}",
            patience=PATIENCE,
        )
        self._reread()

    def _note(self, step: str) -> None:
        state_sql.done(self.connection, id=self.conversion.id, step=step, parent=None)
        self._reread()

    def _reread(self) -> None:
        self.conversion = get(self.connection, self.conversion.id)

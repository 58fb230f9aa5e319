"""The way of filling: rows are copied in batches by primary key, while a trigger repeats every write.

A batch locks the rows that it copies FOR SHARE. So a write to one of them either comes before, and the batch sees it,
or waits for the batch's end, and its trigger finds the copy. The trigger copies the row as it is, not as the write left
it, because a trigger of the application may have written to it in between. A transaction in REPEATABLE READ does
not see copies made since it began: what it writes to such rows is noted, and they are copied again under a short lock.
Never in the switch itself, where others of them may wait already, who would not see those copies either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Oid

from fleet.postgres.patience import Deadline, patiently
from tasks.partitions.convert.facts import MIRROR, MIRROR_TRUNCATE, Facts
from tasks.partitions.convert.plan import Plan, beside
from tasks.partitions.convert.state import Conversion, acting_as, state_sql

FIRST_BATCH, LEAST_BATCH, MOST_BATCH = 500, 1, 50_000


def _names(columns: Sequence[str], alias: str | None = None) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.Identifier(alias, each) if alias else sql.Identifier(each) for each in columns
    )


def _key(facts: Facts) -> list[str]:
    assert facts.primary_key is not None  # judged before
    return list(facts.primary_key.columns)


def function(oid: int) -> sql.Identifier:
    """The trigger's function, in the fleet's schema."""
    return sql.Identifier("upkeep", f"mirror_{oid}")


def _equal(columns: Sequence[str], left: str, right: str) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(
            sql.Identifier(left, each), sql.SQL("{}.{}").format(sql.SQL(right), sql.Identifier(each))
        )
        for each in columns
    )


_BODY = sql.SQL("""
DECLARE
    copies bigint;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        TRUNCATE {parent};
        DELETE FROM upkeep.conversion_missed WHERE relation = {oid};
        RETURN NULL;
    END IF;
    IF pg_catalog.current_setting('transaction_isolation') <> 'read committed' THEN
        BEGIN
            IF TG_OP <> 'INSERT' THEN
                DELETE FROM {parent} AS p WHERE {p_is_old};
                GET DIAGNOSTICS copies = ROW_COUNT;
                IF copies = 0 THEN
                    RAISE serialization_failure;
                END IF;
            END IF;
            IF TG_OP <> 'DELETE' THEN
                INSERT INTO {parent} ({columns}) OVERRIDING SYSTEM VALUE
                SELECT {o_columns} FROM {table} AS o WHERE {o_is_new};
            END IF;
            RETURN NULL;
        EXCEPTION WHEN serialization_failure OR unique_violation THEN
            NULL;
        END;
        IF TG_OP <> 'INSERT' THEN
            INSERT INTO upkeep.conversion_missed (relation, key)
            VALUES ({oid}, pg_catalog.jsonb_build_object({old_key}));
        END IF;
        IF TG_OP <> 'DELETE' THEN
            INSERT INTO upkeep.conversion_missed (relation, key)
            VALUES ({oid}, pg_catalog.jsonb_build_object({new_key}));
        END IF;
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        DELETE FROM {parent} AS p WHERE {p_is_old};
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF ({old_row}) IS DISTINCT FROM ({new_row}) THEN
            DELETE FROM {parent} AS p WHERE {p_is_old};
        END IF;
    END IF;
    INSERT INTO {parent} ({columns}) OVERRIDING SYSTEM VALUE
    SELECT {o_columns} FROM {table} AS o WHERE {o_is_new}
        ON CONFLICT ({conflict}) DO UPDATE SET ({columns}) = ROW ({excluded});
    RETURN NULL;
END
""")


def mirror(deadline: Deadline, plan: Plan) -> None:
    """From here on every write is done in both; waits for the writers that are at it."""
    facts, control = plan.facts, plan.asked.column
    key = _key(facts)
    conflict = key if control in key else [*key, control]
    pairs = [(sql.Literal(each), sql.Identifier(each)) for each in key]

    def pairs_of(row: str) -> sql.Composed:
        return sql.SQL(", ").join(
            part for name, column in pairs for part in (name, sql.SQL("{}.{}").format(sql.SQL(row), column))
        )

    def row_of(row: str) -> sql.Composed:
        return sql.SQL(", ").join(
            sql.SQL("{}.{}").format(sql.SQL(row), sql.Identifier(each)) for each in conflict
        )

    body = _BODY.format(
        parent=beside(facts.name).identifier(),
        table=facts.name.identifier(),
        oid=sql.Literal(facts.oid),
        old_key=pairs_of("OLD"),
        new_key=pairs_of("NEW"),
        old_row=row_of("OLD"),
        new_row=row_of("NEW"),
        p_is_old=_equal(conflict, "p", "OLD"),
        o_is_new=_equal(key, "o", "NEW"),
        columns=_names(facts.written),
        o_columns=_names(facts.written, "o"),
        conflict=_names(conflict),
        excluded=_names(facts.written, "excluded"),
    )
    deadline.execute(
        sql.SQL(
            "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
            " SET search_path = pg_catalog, pg_temp AS {}"
        ).format(function(facts.oid), sql.Literal(body.as_string()))
    )
    deadline.execute(sql.SQL("REVOKE ALL ON FUNCTION {}() FROM PUBLIC").format(function(facts.oid)))
    table = facts.name.identifier()
    for name, event, each in (
        (MIRROR, "INSERT OR UPDATE OR DELETE", "ROW"),
        (MIRROR_TRUNCATE, "TRUNCATE", "STATEMENT"),
    ):
        deadline.execute(
            sql.SQL("CREATE TRIGGER {} AFTER {} ON {} FOR EACH {} EXECUTE FUNCTION {}()").format(
                sql.Identifier(name), sql.SQL(event), table, sql.SQL(each), function(facts.oid)
            )
        )
        # Also for what a subscription writes.
        deadline.execute(
            sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(table, sql.Identifier(name))
        )


def unmirror(deadline: Deadline, plan: Plan, table: sql.Identifier) -> None:
    """Undo that."""
    for name in (MIRROR, MIRROR_TRUNCATE):
        deadline.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(name), table))
    deadline.execute(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(function(plan.facts.oid)))


def copy(
    connection: psycopg.Connection[Any],
    plan: Plan,
    conversion: Conversion,
    tell: Callable[[str], None],
) -> None:
    """Copy what was there before the mirror, batch by batch; goes on where the last one was committed."""
    facts, key = plan.facts, _key(plan.facts)
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(each)) for each in key)
    descending = sql.SQL(", ").join(sql.SQL("{} DESC").format(sql.Identifier(each)) for each in key)
    end = conversion.end_key
    if end is None:
        row = connection.execute(
            sql.SQL("SELECT pg_catalog.jsonb_build_array({}) FROM {} ORDER BY {} LIMIT 1").format(
                texts, facts.name.identifier(), descending
            )
        ).fetchone()
        if row is None:
            return
        end = row[0]
        state_sql.until(connection, id=conversion.id, end_key=Jsonb(end))
    last, copied, size, told = conversion.last_key, conversion.rows_copied, FIRST_BATCH, time.monotonic()
    budget = plan.asked.policy.lock_budget
    while True:
        beyond = _range(key, last, end)
        row = connection.execute(
            sql.SQL(
                "SELECT pg_catalog.jsonb_build_array({}) FROM (SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT {}) AS b"
                " ORDER BY {} LIMIT 1"
            ).format(
                texts,
                _names(key),
                facts.name.identifier(),
                beyond,
                _names(key),
                sql.Literal(size),
                descending,
            )
        ).fetchone()
        if row is None:
            return
        upper = row[0]

        def batch(deadline: Deadline, last: Any = last, upper: Any = upper) -> int:
            with acting_as(connection, facts.table.owner):
                done = deadline.execute(
                    sql.SQL(
                        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} WHERE {} FOR SHARE"
                        " ON CONFLICT DO NOTHING"
                    ).format(
                        beside(facts.name).identifier(),
                        _names(facts.written),
                        _names(facts.written),
                        facts.name.identifier(),
                        _range(key, last, upper),
                    )
                )
            state_sql.copied(connection, id=conversion.id, last_key=Jsonb(upper), rows=done.rowcount)
            return int(done.rowcount)

        began = time.monotonic()
        try:
            with connection.transaction():
                copied += batch(Deadline(connection, budget))
        except (errors.QueryCanceled, errors.LockNotAvailable, errors.DeadlockDetected):
            if size > LEAST_BATCH:
                size = max(LEAST_BATCH, size // 4)
                continue
            # Somebody has this row for long: wait for him as every step does.
            copied += patiently(
                connection, batch, budget=budget, relations=[], doing=f"Copying rows of {facts.name}"
            )
        last = upper
        took = time.monotonic() - began
        half = budget.total_seconds() / 2
        size = (
            min(MOST_BATCH, size * 2)
            if took < half / 2
            else max(LEAST_BATCH, size // 2)
            if took > half
            else size
        )
        if time.monotonic() - told > 1:
            tell(f"{copied:,} of about {max(facts.table.rows, copied):,} rows copied")
            told = time.monotonic()


def _range(key: Sequence[str], last: Sequence[str] | None, upper: Sequence[str]) -> sql.Composed:
    columns = _names(key)
    wanted = sql.SQL("({}) <= ({})").format(columns, sql.SQL(", ").join(map(sql.Literal, upper)))
    if last is None:
        return wanted
    return sql.SQL("({}) > ({}) AND {}").format(columns, sql.SQL(", ").join(map(sql.Literal, last)), wanted)


class Missed(Exception):
    """Rows were written without being mirrored, by somebody who did not see their copies."""


def refuse_missed(connection: psycopg.Connection[Any], plan: Plan) -> None:
    """Stop a switch that would have to copy rows itself; the old table is locked.

    Raises:
        Missed: there are some.
    """
    if state_sql.missed(connection, relation=Oid(plan.facts.oid)):
        raise Missed


def redo_missed(connection: psycopg.Connection[Any], deadline: Deadline, plan: Plan) -> None:
    """Copy rows again that were written without being mirrored; the old table is locked against writers."""
    facts, key = plan.facts, _key(plan.facts)
    table, parent = facts.name.identifier(), beside(facts.name).identifier()
    deadline.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table))
    if not state_sql.missed(connection, relation=Oid(facts.oid)):
        return
    keys = sql.SQL(
        "SELECT DISTINCT {} FROM upkeep.conversion_missed AS m,"
        " LATERAL pg_catalog.jsonb_populate_record(NULL::{}, m.key) AS r WHERE m.relation = {}"
    ).format(_names(key, "r"), table, sql.Literal(facts.oid))
    deadline.execute(
        sql.SQL("DELETE FROM {} AS p USING ({}) AS k WHERE {}").format(parent, keys, _equal(key, "p", "k"))
    )
    deadline.execute(
        sql.SQL(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS o JOIN ({}) AS k ON {}"
            " ON CONFLICT DO NOTHING"
        ).format(
            parent, _names(facts.written), _names(facts.written, "o"), table, keys, _equal(key, "o", "k")
        )
    )
    state_sql.missed_done(connection, relation=Oid(facts.oid))


def compare(connection: psycopg.Connection[Any], plan: Plan) -> dict[str, Any]:
    """Rows and a sum over all of them that knows no order, of both sides, in one snapshot.

    A write and its mirrored one become visible together, so that no lock is needed.
    """
    facts = plan.facts
    filled = plan.asked.how.value == "fill"
    record = sql.SQL(", ").join(
        sql.SQL("s.{}").format(sql.Identifier(each.name))
        if each.hashable
        else sql.SQL("s.{}::text").format(sql.Identifier(each.name))
        for each in facts.columns
    )
    missed: sql.Composable = sql.SQL("")
    if filled:
        key = _key(facts)
        missed = sql.SQL(
            " WHERE NOT EXISTS (SELECT FROM upkeep.conversion_missed AS m,"
            " LATERAL pg_catalog.jsonb_populate_record(NULL::{}, m.key) AS k WHERE m.relation = {} AND {})"
        ).format(facts.name.identifier(), sql.Literal(facts.oid), _equal(key, "k", "s"))

    def side(table: sql.Identifier) -> tuple[int, str]:
        row = connection.execute(
            sql.SQL(
                "SELECT pg_catalog.count(*),"
                " coalesce(pg_catalog.sum(pg_catalog.hash_record_extended(ROW({}), 0)::numeric), 0)::text"
                " FROM {} AS s{}"
            ).format(record, table, missed)
        ).fetchone()
        assert row is not None
        return int(row[0]), str(row[1])

    before = connection.isolation_level
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            old = side(facts.name.identifier())
            new = side(beside(facts.name).identifier())
    finally:
        connection.isolation_level = before
    return {"rows": old[0], "sum": old[1], "new_rows": new[0], "new_sum": new[1], "equal": old == new}

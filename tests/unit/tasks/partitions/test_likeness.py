"""What a new partition should be, and the statements that make it so, without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import pytest

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Range
from fleet.settings import PartitionSet
from tasks.partitions import likeness, statements
from tasks.partitions.create import newest
from tasks.partitions.likeness import differences, liken
from tasks.partitions.naming import Names, fitting
from tasks.partitions.shape import Column, Constraint, Grant, Shape, split

TABLE = RelationName("app", "t")
JANUARY, FEBRUARY = RelationName("app", "t_y2026m01"), RelationName("app", "t_y2026m02")


def shape(**changes: Any) -> Shape:
    plain = {
        "oid": 7,
        "name": JANUARY,
        "kind": "r",
        "persistence": "p",
        "access_method": "heap",
        "tablespace": "",
        "options": ("fillfactor=80",),
        "toast_options": (),
        "owner": "owner",
        "comment": None,
        "row_security": False,
        "forced_row_security": False,
        "replica_identity": "d",
        "partition_key": "",
        "grants": frozenset({Grant(grantee="owner", privilege="SELECT", grantable=False)}),
        "columns": (column("id"), column("at")),
        "constraints": (),
        "indexes": (),
        "triggers": (),
        "policies": (),
        "statistics": (),
        "publications": (),
    }
    return Shape(**(plain | changes))


def column(name: str, **changes: Any) -> Column:
    plain = {
        "name": name,
        "type": "bigint",
        "not_null": True,
        "expression": None,
        "generated": "",
        "identity": "",
        "storage": "p",
        "compression": "",
        "statistics": -1,
        "options": (),
        "comment": None,
    }
    return Column(**(plain | changes))


def check(name: str, *columns: str, inherited: bool = False) -> Constraint:
    return Constraint(
        name=name, kind="c", definition="CHECK (true)", inherited=inherited, columns=columns, comment=None
    )


def like(pattern: Shape, *, version: int = 180_000, first: bool = False, **changes: Any) -> Shape:
    return liken(
        pattern,
        FEBRUARY,
        policy=PartitionSet.model_validate({"name": TABLE} | changes),
        control="at",
        version=version,
        references={},
        first=first,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t_y2026m01_id_idx", "t_y2026m02_id_idx"),
        ("ix_t_y2026m01", "ix_t_y2026m02"),
        ("by_hand", "t_y2026m02_by_hand"),
    ],
)
def test_names_that_were_made_from_the_tables_are_made_from_the_new_ones(name: str, expected: str) -> None:
    assert Names(((JANUARY.name, FEBRUARY.name),)).unique(name) == expected


def test_the_nearest_tables_name_counts() -> None:
    names = Names((("t_01", "t_02"),)).below("t_01_0", "t_02_0")
    assert names.unique("t_01_0_idx") == "t_02_0_idx"
    assert names.unique("t_01_idx") == "t_02_idx"
    assert names.if_derived("small") == "small"


def test_a_name_that_would_be_cut_keeps_its_difference() -> None:
    several = {fitting("ä" * 40 + each) for each in ("_01_idx", "_02_idx")}
    assert len(several) == 2
    assert all(len(each.encode()) <= 63 for each in several)


def test_checks_keep_their_names_where_the_parent_has_them_and_speak_of_no_other_range() -> None:
    pattern = shape(
        constraints=(
            check("t_y2026m01_of_the_parent", "at", inherited=True),
            check("t_y2026m01_own", "id"),
            check("range", "at"),
        )
    )
    assert [each.name for each in like(pattern).constraints] == ["t_y2026m01_of_the_parent", "t_y2026m02_own"]


def test_the_policy_wins_over_the_sibling() -> None:
    made = like(
        shape(
            options=("fillfactor=80", "autovacuum_enabled=true"), toast_options=("autovacuum_enabled=true",)
        ),
        tablespace="fast",
        storage_parameters={"fillfactor": 70, "toast.autovacuum_enabled": False},
    )
    assert set(made.options) == {"fillfactor=70", "autovacuum_enabled=true"}
    assert made.toast_options == ("autovacuum_enabled=false",)
    assert made.tablespace == "fast"


def test_identity_is_the_partitions_own_only_where_it_is_not_inherited() -> None:
    pattern = shape(columns=(column("id", identity="a"), column("at")))
    assert [each.identity for each in like(pattern, version=160_000).columns] == ["a", ""]
    assert [each.identity for each in like(pattern, version=170_000).columns] == ["", ""]


def test_what_is_divided_by_ranges_fits_no_other_one() -> None:
    with pytest.raises(PermanentError, match="divided by ranges"):
        like(shape(kind="p", partition_key="RANGE (at)"))


def test_a_foreign_table_is_no_pattern() -> None:
    with pytest.raises(PermanentError, match="no ordinary table"):
        like(shape(kind="f"))


def test_all_remainders_or_none() -> None:
    def divided(*bounds: str) -> Shape:
        return shape(
            kind="p",
            partition_key="HASH (id)",
            children=tuple((bound, shape(name=RelationName("app", bound))) for bound in bounds),
        )

    halves = [f"FOR VALUES WITH (modulus 2, remainder {n})" for n in (0, 1)]
    likeness.refuse_incomplete(divided(*halves))
    likeness.refuse_incomplete(
        divided(halves[0], *(f"FOR VALUES WITH (modulus 4, remainder {n})" for n in (1, 3)))
    )
    with pytest.raises(PermanentError, match="no place for 50%"):
        likeness.refuse_incomplete(divided(halves[0]))


def test_a_difference_is_told_by_its_part() -> None:
    wanted = like(shape())
    assert differences(wanted, wanted) == []
    (said,) = differences(wanted, replace(wanted, comment="what"))
    assert said == "comment of app.t_y2026m02: 'what' instead of None"


def test_privileges_are_taken_and_given_until_they_are_the_siblings() -> None:
    def grants(*several: tuple[str, str, bool]) -> Shape:
        return shape(
            grants=frozenset(Grant(grantee=who, privilege=what, grantable=on) for who, what, on in several)
        )

    wanted = grants(("reader", "SELECT", True), ("", "INSERT", False))
    found = grants(("reader", "SELECT", False), ("other", "DELETE", False))
    said = [each.as_string() for each in statements.privileges(wanted, found)]
    assert said == [
        'REVOKE DELETE ON TABLE "app"."t_y2026m01" FROM "other"',
        'REVOKE SELECT ON TABLE "app"."t_y2026m01" FROM "reader"',
        'GRANT INSERT ON TABLE "app"."t_y2026m01" TO PUBLIC',
        'GRANT SELECT ON TABLE "app"."t_y2026m01" TO "reader" WITH GRANT OPTION',
    ]
    assert list(statements.privileges(wanted, wanted)) == []


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (
            Range(lower=date(2026, 1, 1), upper=date(2026, 2, 1)),
            "('2026-01-01'::date) TO ('2026-02-01'::date)",
        ),
        (Range(lower=None, upper=7), "(MINVALUE) TO (7)"),
        (Range(lower=7, upper=None), "(7) TO (MAXVALUE)"),
        (
            Range(lower=UUID(int=0), upper=UUID(int=1)),
            "('00000000000000000000000000000000'::uuid) TO ('00000000000000000000000000000001'::uuid)",
        ),
    ],
)
def test_bounds_are_literals_of_their_type(bounds: Range, expected: str) -> None:
    said = statements.attach(TABLE, FEBRUARY, bounds, key_columns=1).as_string()
    assert said == f'ALTER TABLE "app"."t" ATTACH PARTITION "app"."t_y2026m02" FOR VALUES FROM {expected}'


def test_further_columns_of_the_key_are_open() -> None:
    said = statements.attach(TABLE, FEBRUARY, Range(lower=1, upper=2), key_columns=2).as_string()
    assert said.endswith("FROM (1, MINVALUE) TO (2, MINVALUE)")


def test_nothing_in_quotes_passes_for_a_keyword() -> None:
    text = 'CREATE TRIGGER "x ON app.t" AFTER UPDATE OF "a"" ON app.t" ON ONLY app.t FOR EACH ROW'
    assert split(text, "ON", "app.t") == (
        'CREATE TRIGGER "x ON app.t" AFTER UPDATE OF "a"" ON app.t" ON ',
        " FOR EACH ROW",
    )
    with pytest.raises(ValueError, match="does not follow"):
        split("CREATE INDEX i ON other USING btree (a)", "ON", "app.t")


def test_the_last_ordinary_partition_is_the_pattern() -> None:

    def partition(name: str, bounds: Range | None, **changes: Any) -> Partition:
        plain = {"oid": 1, "name": RelationName("app", name), "kind": "r", "range": bounds}
        return Partition(**(plain | changes))

    moment = datetime(2026, 1, 1, tzinfo=UTC)
    table = PartitionedTable(
        oid=1,
        name=TABLE,
        kind="p",
        partitions=(
            partition("a", Range(lower=None, upper=moment)),
            partition("b", Range(lower=moment, upper=moment.replace(month=2))),
            partition("c", Range(lower=moment.replace(month=2), upper=moment.replace(month=3)), kind="f"),
            partition("d", Range(lower=moment.replace(month=3), upper=None), detach_pending=True),
            partition("e", None),
            partition("f", None, is_default=True),
        ),
    )
    found = newest(table)
    assert found is not None
    assert found.name.name == "b"
    assert newest(replace(table, partitions=())) is None

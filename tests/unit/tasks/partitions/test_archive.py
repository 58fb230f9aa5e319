"""What an archive lacks before it can take a partition, and what nobody can follow."""

from __future__ import annotations

import pytest

from fleet.errors import PermanentError
from fleet.names import RelationName
from tasks.partitions.archive import Column, Following, differences, place_of, view_columns

HOT, ARCHIVE = RelationName("public", "t"), RelationName("archive", "t")
ID = Column(name="id", type="bigint", not_null=True)
NOTE = Column(name="note", type="text", not_null=False)
OF_THE_ARCHIVE = (
    Column(name="archived_at", type="timestamp with time zone", not_null=True),
    Column(name="archive_batch_id", type="uuid", not_null=True),
)


def test_the_same_columns_need_nothing():
    assert differences(HOT, [ID, NOTE], ARCHIVE, [NOTE, ID, *OF_THE_ARCHIVE]) == Following()


def test_a_new_column_and_one_that_may_be_null_now():
    nullable = Column(name="id", type="bigint", not_null=False)
    assert differences(HOT, [nullable, NOTE], ARCHIVE, [ID, *OF_THE_ARCHIVE]) == Following(
        add=(NOTE,), nullable=("id",)
    )


@pytest.mark.parametrize(
    ("hot", "archived", "said"),
    [
        ([ID], [ID, NOTE], "has a column note"),
        ([Column(name="id", type="integer", not_null=True)], [ID], "id is integer"),
        ([ID, Column(name="x", type="text", not_null=False, generated="'a'")], [ID], "generated column x"),
        ([Column(name="note", type="text", not_null=False, collation='"C"')], [NOTE], "COLLATE"),
    ],
)
def test_what_nobody_can_follow_names_the_column_and_a_remedy(hot, archived, said):
    with pytest.raises(PermanentError, match=said) as refused:
        differences(HOT, hot, ARCHIVE, [*archived, *OF_THE_ARCHIVE])
    assert "archive.t" in refused.value.remedy


def test_the_view_keeps_its_order_and_is_made_anew_only_where_a_column_is_gone():
    assert view_columns(["a"], []) == (["a", "archived_at", "archive_batch_id"], True)
    shown = ["a", "archived_at", "archive_batch_id"]
    assert view_columns(["a", "b"], shown) == ([*shown, "b"], True)
    assert view_columns(["b"], shown) == (["b", "archived_at", "archive_batch_id"], False)


def test_a_view_whose_name_would_be_cut_is_refused():
    assert place_of(HOT, "archive") == (ARCHIVE, RelationName("archive", "t_all"))
    with pytest.raises(PermanentError, match="longer than 63 bytes"):
        place_of(RelationName("public", "t" * 60), "archive")

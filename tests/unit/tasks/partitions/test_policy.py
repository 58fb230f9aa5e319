"""What `upkeep check` advises: statements that an operator may paste."""

from __future__ import annotations

from datetime import UTC, datetime

from fleet.names import RelationName
from fleet.settings.partitions import PartitionSet
from tasks.partitions.policy import Surroundings, judge
from tests.unit.tasks.partitions.subjects import NAME, table

NOW = datetime(2026, 11, 21, tzinfo=UTC)
AROUND = Surroundings(role="up-keep", version_num=180_000, may_create_schemas=True)
POLICY = PartitionSet.model_validate({"name": NAME})


def test_membership_in_a_tables_owner_is_advised() -> None:
    (said,) = judge(POLICY, table(may_alter=False), AROUND, clock=NOW)
    assert said.remedy == 'GRANT app TO "up-keep"'


def test_nobody_is_advised_to_make_the_fleet_a_superuser() -> None:
    owned = table(may_alter=False, owner="postgres", owner_is_superuser=True)
    companion = RelationName("app", "companion")
    policy = PartitionSet.model_validate({"name": NAME, "companions": (companion,)})
    around = Surroundings(
        role="up-keep",
        version_num=180_000,
        may_create_schemas=True,
        tables={companion: table(kind="r", may_alter=False, owner="postgres", owner_is_superuser=True)},
    )
    said = judge(policy, owned, around, clock=NOW)
    assert len(said) == 2
    assert not any("GRANT" in each.remedy for each in said)
    assert all("OWNER TO another role" in each.remedy for each in said)


def test_a_table_that_is_partitioned_otherwise_has_a_remedy_that_can_be_read() -> None:
    (said,) = judge(POLICY, table(strategy="list"), AROUND, clock=NOW)
    assert said.message.endswith("is partitioned by list, not by range")
    assert said.remedy == "Partition it by range; or take its policy out of upkeep.toml"

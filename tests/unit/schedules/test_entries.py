"""Entries: what a declared fleet does by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from celery import Celery
from pydantic import SecretStr

from fleet import settings
from fleet.names import RelationName
from fleet.settings import (
    BUILT_IN_TIERS,
    Database,
    Fleet,
    Job,
    PartitionSet,
    Scheduled,
    Settings,
    Tier,
    View,
)
from schedules.entries import entries
from schedules.runs import Runs
from schedules.slots import next_slot
from tasks.partitions.archive_tasks import Archive
from tasks.partitions.tasks import Maintain


def database(name: str, *tiers: str, own: tuple[Tier, ...] = ()) -> Database:
    names = [RelationName("public", f"mv_{number}") for number in range(len(tiers))]
    return Database(
        name=name,
        url=SecretStr(f"postgresql://h/{name}"),
        tiers={**BUILT_IN_TIERS, **{tier.name: tier for tier in own}},
        views={view: View(name=view, tier=tier) for view, tier in zip(names, tiers, strict=True)},
    )


def fleet(*databases: Database) -> Settings:
    return Settings(fleet=Fleet(home=databases[0].name), databases={each.name: each for each in databases})


def test_one_entry_for_each_tier_in_use_and_one_to_prune() -> None:
    made = entries(fleet(database("lending", "daily", "five_minutes", "five_minutes")))
    assert list(made) == ["lending/five_minutes", "lending/daily", "lending/ledger.prune"]
    tick = made["lending/five_minutes"]
    assert tick.name == "lending/five_minutes"
    assert tick.task == "upkeep.refresh.tier"
    assert (tick.database, tick.label, tick.arguments) == (
        "lending",
        "five_minutes",
        {"tier": "five_minutes"},
    )
    assert (tick.cron, tick.timezone) == ("*/5 * * * *", "UTC")
    prune = made["lending/ledger.prune"]
    assert (prune.database, prune.task, prune.label) == ("lending", "upkeep.ledger.prune", "ledger.prune")
    assert (prune.cron, prune.timezone) == ("30 3 * * *", "UTC")


def test_a_database_has_its_own_idea_of_a_tier() -> None:
    night = Tier(name="daily", cron="0 2 * * *", timezone="America/New_York")
    made = entries(fleet(database("lending", "daily"), database("trading", "daily", own=(night,))))
    assert made["lending/daily"].cron == "0 6 * * *"
    assert (made["trading/daily"].cron, made["trading/daily"].timezone) == ("0 2 * * *", "America/New_York")


def test_a_database_without_views_is_pruned_all_the_same() -> None:
    assert list(entries(fleet(database("empty")))) == ["empty/ledger.prune"]


def test_a_database_with_policies_keeps_its_partitions_before_it_moves_any() -> None:
    lending = database("lending")
    policy = PartitionSet(name=RelationName("public", "t"))
    made = entries(fleet(lending.model_copy(update={"partitions": {policy.name: policy}})))
    assert list(made) == [
        "lending/partitions.maintain",
        "lending/partitions.archive",
        "lending/ledger.prune",
    ]
    maintain, archive = made["lending/partitions.maintain"], made["lending/partitions.archive"]
    assert (maintain.task, maintain.label, maintain.cron) == (
        "upkeep.partitions.maintain",
        "partitions.maintain",
        "0 1 * * *",
    )
    assert (archive.task, archive.cron, archive.timezone) == ("upkeep.partitions.archive", "0 2 * * *", "UTC")
    kept = PartitionSet(name=policy.name, archive="none")
    made = entries(fleet(lending.model_copy(update={"partitions": {policy.name: kept}})))
    assert "lending/partitions.archive" not in made


POLICIES = """
[fleet]
home = "payments"
[databases.payments.partitions."public.transactions"]
timezone = "America/New_York"
[databases.payments.partitions."public.audit"]
archive = "none"
[databases.lending]
[schedule.archive_at_lunch]
database = "payments"
task = "upkeep.partitions.archive"
cron = "0 12 * * *"
timezone = "America/New_York"
arguments = { table = "public.transactions" }
"""


def test_partitions_are_made_at_one_and_archived_at_two_in_utc_whatever_else_is_scheduled(
    tmp_path: Path,
) -> None:
    path = tmp_path / "upkeep.toml"
    path.write_text(POLICIES, encoding="utf-8")
    declared = settings.load(
        path, {f"UPKEEP_{name}_URL": "postgresql://localhost/x" for name in ("PAYMENTS", "LENDING")}
    )
    made = entries(declared)
    assert [name for name in made if "ledger" not in name] == [
        "payments/partitions.maintain",
        "payments/partitions.archive",
        "payments/schedule.archive_at_lunch",
    ]
    # The clocks of New York, where the table's days begin, are set forward on the 8th.
    due = {}
    for name, each in made.items():
        slot = datetime(2026, 3, 7, 0, 59, tzinfo=UTC)
        due[name] = [slot := next_slot(each.cron, each.timezone, slot) for _ in range(3)]
    assert due["payments/partitions.maintain"] == [datetime(2026, 3, day, 1, tzinfo=UTC) for day in (7, 8, 9)]
    assert due["payments/partitions.archive"] == [datetime(2026, 3, day, 2, tzinfo=UTC) for day in (7, 8, 9)]
    assert due["payments/schedule.archive_at_lunch"] == [
        datetime(2026, 3, day, hour, tzinfo=UTC) for day, hour in ((7, 17), (8, 16), (9, 16))
    ]
    app = Celery(set_as_current=False)
    runs = Runs({task.name: app.register_task(task) for task in (Maintain(), Archive())}, declared)
    found = {
        name: runs.of(made[f"payments/{name}"], due[f"payments/{name}"][0])
        for name in ("partitions.maintain", "partitions.archive", "schedule.archive_at_lunch")
    }
    assert {name: (run.task, run.target, run.entry, run.queue) for name, run in found.items()} == {
        # A run of the database, which makes one for each of its tables.
        "partitions.maintain": (
            "upkeep.partitions.maintain",
            "payments",
            "partitions.maintain",
            "maintenance",
        ),
        "partitions.archive": ("upkeep.partitions.archive", "payments", "partitions.archive", "archive"),
        "schedule.archive_at_lunch": (
            "upkeep.partitions.archive",
            "public.transactions",
            "schedule.archive_at_lunch",
            "archive",
        ),
    }
    assert {name: run.expires_at for name, run in found.items()} == {
        name: due[f"payments/{name}"][1] for name in found
    }


def test_what_comes_by_itself_comes_at_other_hours_where_somebody_says_so(tmp_path: Path) -> None:
    at_night = POLICIES.replace('arguments = { table = "public.transactions" }\n', "")
    path = tmp_path / "upkeep.toml"
    path.write_text(at_night, encoding="utf-8")
    declared = settings.load(
        path, {f"UPKEEP_{name}_URL": "postgresql://localhost/x" for name in ("PAYMENTS", "LENDING")}
    )
    assert list(entries(declared)) == [
        "payments/partitions.maintain",
        "payments/ledger.prune",
        "lending/ledger.prune",
        "payments/schedule.archive_at_lunch",
    ]


def test_an_uneven_tick_does_not_expire_before_the_next() -> None:
    market = Tier(name="market", cron="0,5 9 * * 1-5", timezone="America/New_York")
    tick = entries(fleet(database("trading", "market", own=(market,))))["trading/market"]
    # Friday's last tick is good until Monday; exactly, although the clocks change on that Sunday.
    friday = datetime(2026, 3, 6, 14, 5, tzinfo=UTC)
    assert tick.expiry(friday) == datetime(2026, 3, 9, 13, 0, tzinfo=UTC)


def test_what_else_is_declared_has_its_place() -> None:
    declared = fleet(database("payments"))
    job = Job(name="settle", database="payments", sql="SELECT 1", cron="*/5 * * * *", catch_up="none")
    asked_for = Job(name="by_hand", database="payments", sql="SELECT 1")
    nightly = Scheduled(
        name="nightly",
        task="upkeep.refresh.all",
        database="payments",
        cron="0 1 * * *",
        timezone="Europe/Berlin",
        jitter=timedelta(minutes=3),
    )
    made = entries(
        declared.model_copy(
            update={"jobs": {"settle": job, "by_hand": asked_for}, "schedule": {"nightly": nightly}}
        )
    )
    assert list(made) == ["payments/ledger.prune", "payments/job.settle", "payments/schedule.nightly"]
    settle, full = made["payments/job.settle"], made["payments/schedule.nightly"]
    assert (settle.task, settle.arguments, settle.catch_up) == ("upkeep.job.run", {"job": "settle"}, "none")
    assert (full.label, full.timezone, full.jitter) == (
        "schedule.nightly",
        "Europe/Berlin",
        timedelta(minutes=3),
    )


def test_jitter_is_the_same_for_every_scheduler_and_another_for_every_slot() -> None:
    tier = Tier(name="spread", cron="*/5 * * * *", jitter=timedelta(minutes=4))
    tick = entries(fleet(database("d", "spread", own=(tier,))))["d/spread"]
    slots = [datetime(2026, 3, 6, 14, 5 * n, tzinfo=UTC) for n in range(12)]
    late = [tick.due_at(slot) - slot for slot in slots]
    assert late == [tick.due_at(slot) - slot for slot in slots]
    assert len(set(late)) == 12
    assert min(late) >= timedelta()
    assert timedelta(minutes=2) < max(late) < timedelta(minutes=4)


def test_a_tick_that_jitter_makes_late_has_its_time() -> None:
    tier = Tier(name="spread", cron="*/5 * * * *", jitter=timedelta(minutes=4))
    tick = entries(fleet(database("d", "spread", own=(tier,))))["d/spread"]
    for minute in range(0, 60, 5):
        slot = datetime(2026, 3, 6, 14, minute, tzinfo=UTC)
        assert tick.expiry(slot) - tick.due_at(slot) > timedelta(minutes=5)
        # And no more than two wait for a worker.
        assert tick.expiry(slot) < slot + 2 * timedelta(minutes=5)


def test_the_same_settings_make_equal_entries() -> None:
    declared = fleet(database("lending", "daily"))
    assert entries(declared) == entries(declared)

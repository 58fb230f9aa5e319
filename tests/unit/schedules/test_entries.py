"""Entries: what a declared fleet does by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pydantic import SecretStr

from fleet.names import RelationName
from fleet.settings import BUILT_IN_TIERS, Database, Fleet, Settings, Tier, View
from schedules.entries import entries


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
    assert tick.kwargs == {"database": "lending", "tier": "five_minutes"}
    assert (tick.cron, tick.timezone, tick.queue) == ("*/5 * * * *", "UTC", "refresh")
    assert tick.expires == timedelta(minutes=5)
    prune = made["lending/ledger.prune"]
    assert (prune.task, prune.kwargs) == ("upkeep.ledger.prune", {"database": "lending"})
    assert (prune.cron, prune.timezone, prune.queue) == ("30 3 * * *", "UTC", "maintenance")
    assert prune.expires == timedelta(days=1)


def test_a_database_has_its_own_idea_of_a_tier() -> None:
    night = Tier(name="daily", cron="0 2 * * *", timezone="America/New_York")
    made = entries(fleet(database("lending", "daily"), database("trading", "daily", own=(night,))))
    assert made["lending/daily"].cron == "0 6 * * *"
    assert (made["trading/daily"].cron, made["trading/daily"].timezone) == ("0 2 * * *", "America/New_York")


def test_a_database_without_views_is_pruned_all_the_same() -> None:
    assert list(entries(fleet(database("empty")))) == ["empty/ledger.prune"]


def test_an_uneven_tick_does_not_expire_before_the_next() -> None:
    market = Tier(name="market", cron="0,5 9 * * 1-5", timezone="America/New_York")
    tick = entries(fleet(database("trading", "market", own=(market,))))["trading/market"]
    assert tick.expires == timedelta(days=3) - timedelta(minutes=5)
    # Friday's last tick is good until Monday; exactly, although the clocks change on that Sunday.
    friday = datetime(2026, 3, 6, 14, 5, tzinfo=UTC)
    assert tick.expiry(friday) == datetime(2026, 3, 9, 13, 0, tzinfo=UTC)


def test_the_same_settings_make_equal_entries() -> None:
    declared = fleet(database("lending", "daily"))
    assert entries(declared) == entries(declared)

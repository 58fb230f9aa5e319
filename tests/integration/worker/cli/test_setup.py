"""init, check, migrate: from a database that nobody keeps to one that can be kept."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fleet.postgres import migrations
from tests.conftest import NewDatabase, NewRole
from tests.integration.worker.cli.conftest import SCHEMA, Upkeep
from tests.servers import Database
from tests.waiting import wait_until

pytestmark = pytest.mark.any_server


@pytest.fixture
def bare(database: Database, upkeep_with: Callable[..., Upkeep]) -> Upkeep:
    """The command for a database with views and without Upkeep."""
    database.connect().execute(SCHEMA)
    return upkeep_with(database.url)


def test_what_init_prints_passes_check_and_holds_no_password(
    database: Database, bare: Upkeep, role: NewRole, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = role(database, "reader")
    said = bare("init", url, "--name", "fresh")
    assert (said.code, said.err) == (0, "")
    assert url.split(":")[2].split("@")[0] not in said.out
    views = tomllib.loads(said.out)["databases"]["fresh"]["views"]
    assert views == {"public.base": {"tier": "five_minutes"}, "public.top": {"tier": "daily"}}
    assert "may not refresh it" in said.out
    bare.write(said.out)
    monkeypatch.setenv("UPKEEP_FRESH_URL", url)
    assert bare("check").code == 0


def test_init_writes_a_new_file_and_never_over_an_old_one(
    database: Database, bare: Upkeep, tmp_path: Path
) -> None:
    path = tmp_path / "new.toml"
    said = bare("init", database.url, "--output", str(path))
    assert said.code == 0
    assert "2 views" in said.out
    before = path.read_text(encoding="utf-8")
    tomllib.loads(before)
    again = bare("init", database.url, "--output", str(path))
    assert again.code == 1
    assert "not overwritten" in again.err
    assert path.read_text(encoding="utf-8") == before
    assert bare("init", database.url, "--output", str(tmp_path / "no" / "x.toml")).code == 1


def test_init_finds_keys_by_statistics_and_by_looking(database: Database, bare: Upkeep) -> None:
    database.connect().execute("""
        CREATE MATERIALIZED VIEW public.by_id AS SELECT id, n FROM public.t;
        CREATE MATERIALIZED VIEW public.by_two AS SELECT n, id % 3 AS m, count(*) FROM public.t GROUP BY 1, 2;
        CREATE MATERIALIZED VIEW public.by_none AS SELECT 1.5::float8 AS x FROM public.t;
        ANALYZE;
    """)
    found = {each["view"]: each["hindrances"] for each in bare("init", database.url, "--json").json["views"]}
    assert found["public.by_id"][0]["remedy"] == 'CREATE UNIQUE INDEX ON public.by_id ("id");'
    assert found["public.by_two"][0]["remedy"] == "CREATE UNIQUE INDEX ON public.by_two (...);"
    probed = bare("init", database.url, "--json", "--probe").json
    found = {each["view"]: each["hindrances"] for each in probed["views"]}
    assert found["public.by_two"][0]["remedy"] == 'CREATE UNIQUE INDEX ON public.by_two ("n", "m");'
    assert found["public.by_none"][0]["remedy"] == "CREATE UNIQUE INDEX ON public.by_none (...);"
    tomllib.loads(probed["toml"])


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("nonsense", 2, "not a connection string"),
        ("mysql://me:geheim@host/db", 2, "mysql://"),
        ("postgresql://me:geheim@127.0.0.1:1/db", 1, "127.0.0.1:1/db"),
    ],
)
def test_a_url_that_leads_nowhere_is_told_without_its_password(
    bare: Upkeep, url: str, code: int, said: str
) -> None:
    for words in (["init", url], ["init", url, "--json"]):
        done = bare(*words)
        assert done.code == code
        assert said in done.out + done.err
        assert "geheim" not in done.out + done.err
        assert "Traceback" not in done.err


def test_a_wrong_password_and_an_unknown_database_are_clear(
    database: Database, bare: Upkeep, role: NewRole
) -> None:
    url = role(database)
    wrong = url.replace(url.split(":")[2].split("@")[0], "geheim")
    said = bare("init", wrong)
    assert (said.code, "password authentication failed" in said.err) == (1, True)
    said = bare("init", f"{database.url}_gone")
    assert (said.code, "does not exist" in said.err) == (1, True)


def test_check_is_silent_on_a_good_configuration(upkeep: Upkeep) -> None:
    said = upkeep("check", "--json")
    assert said.code == 0
    document = said.json
    # top is daily and reads base, which is faster: nothing to say; both have their index.
    assert (document["errors"], document["warnings"], document["problems"]) == (0, 0, [])
    assert "2 views; 0 errors, 0 warnings" in upkeep("check").out


def test_check_tells_everything_of_a_bad_file_at_once(upkeep: Upkeep) -> None:
    upkeep.write("""
        [databases.kept]
        url_env = "UPKEEP_KEPT_URL"
        max_parallel_refreshes = 0
        [databases.kept.views."public.base"]
        tier = "five_minuts"
        [databases.kept.views."no schema"]
        tier = "daily"
    """)
    said = upkeep("check", "--json")
    assert said.code == 1
    assert said.json["errors"] == 3
    text = upkeep("check").out
    assert 'Did you mean "five_minutes"?' in text
    assert "databases were not looked at" in text
    # Any other command refuses it as a whole.
    said = upkeep("status", "--json")
    assert (said.code, len(said.json["error"]["problems"])) == (2, 3)
    assert upkeep("status").err.startswith("error: ")


def test_check_compares_with_the_database(system: Database, upkeep_with: Callable[..., Upkeep]) -> None:
    system.connect().execute("""
        CREATE MATERIALIZED VIEW public.keyless AS SELECT n FROM public.base;
        CREATE MATERIALIZED VIEW public.stray AS SELECT 1 AS one;
        CREATE MATERIALIZED VIEW public.on_stray AS SELECT one FROM public.stray;
        CREATE UNIQUE INDEX ON public.on_stray (one);
        CREATE VIEW public.plain AS SELECT 1;
    """)
    upkeep = upkeep_with(
        system.url,
        {
            "public.base": "daily",
            "public.top": "five_minutes",
            "public.keyless": "daily",
            "public.on_stray": "daily",
            "public.t": "daily",
            "public.plain": "daily",
            "public.gone": "daily",
        },
    )
    said = upkeep("check", "--json")
    assert said.code == 1
    problems = {(each["level"], each["key"].split('"')[1]): each for each in said.json["problems"]}
    assert set(problems) == {
        ("error", "public.t"),
        ("error", "public.plain"),
        ("error", "public.gone"),
        ("warning", "public.keyless"),
        ("warning", "public.stray"),
        ("warning", "public.on_stray"),
        ("info", "public.top"),
    }
    assert "a table" in problems["error", "public.t"]["message"]
    assert "CREATE UNIQUE INDEX ON public.keyless" in problems["warning", "public.keyless"]["remedy"]
    assert "latest slot of daily" in problems["info", "public.top"]["message"]
    assert upkeep("check", "--offline").code == 0


def test_check_tells_every_entry_that_no_scheduler_would_start_with(upkeep: Upkeep) -> None:
    good = upkeep.config.read_text(encoding="utf-8")
    odd = 'public."It\'s ""so"""'
    declared = {
        "misspelt": 'task = "upkeep.refresh.al"',
        "celerys": 'task = "celery.backend_cleanup"',
        "unmanaged": f'task = "upkeep.refresh.view"\narguments = {{ view = {json.dumps(odd)} }}',
        "wordy": 'task = "upkeep.refresh.tier"\narguments = { teir = "daily", tier = "daily" }',
        "good": 'task = "upkeep.refresh.view"\narguments = { view = "public.base" }',
    }
    tables = (f'[schedule.{name}]\ncron = "0 1 * * *"\n{text}\n' for name, text in declared.items())
    upkeep.write(good + "".join(tables))
    for words in (["check", "--json"], ["check", "--json", "--offline"]):
        said = upkeep(*words)
        assert said.code == 1
        found = {each["key"]: each for each in said.json["problems"]}
        assert set(found) == {f"schedule.{name}" for name in declared if name != "good"}
        assert {each["level"] for each in found.values()} == {"error"}
        assert found["schedule.misspelt"]["remedy"] == 'Did you mean "upkeep.refresh.all"?'
        assert "no task named 'celery.backend_cleanup'" in found["schedule.celerys"]["message"]
        assert f"The view {odd} is not managed" in found["schedule.unmanaged"]["message"]
        assert "[databases.kept.views]" in found["schedule.unmanaged"]["remedy"]
        assert "teir" in found["schedule.wordy"]["message"]
    text = upkeep("check").out
    assert "schedule.misspelt = upkeep.refresh.al" in text
    assert "4 errors, 0 warnings" in text


def test_check_judges_the_file_that_it_is_given_and_needs_no_broker(
    upkeep: Upkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere" / "other.toml"
    other.parent.mkdir()
    text = upkeep.config.read_text(encoding="utf-8")
    other.write_text(text + '[jobs.only_here]\nsql = "SELECT 1"\ncron = "0 1 * * *"\n', encoding="utf-8")
    environment = {
        **upkeep.environment,
        "UPKEEP_CONFIG": str(tmp_path / "none.toml"),
        "UPKEEP_REDIS_URL": "redis://127.0.0.1:1/0",
    }
    monkeypatch.setattr(upkeep, "environment", environment)
    done = upkeep.process("check", "--config", str(other), "--json")
    assert (done.returncode, json.loads(done.stdout)["problems"]) == (0, []), done.stdout + done.stderr


def test_a_database_that_is_away_is_a_warning_for_check(upkeep_with: Callable[..., Upkeep]) -> None:
    upkeep = upkeep_with("postgresql://me:geheim@127.0.0.1:1/db")
    said = upkeep("check", "--json")
    assert (said.code, said.json["warnings"]) == (0, 1)
    assert "geheim" not in said.out


def test_a_missing_file_and_a_missing_variable(upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    said = upkeep("status", "--config", "nowhere.toml")
    assert (said.code, "no such file" in said.err) == (2, True)
    monkeypatch.delenv("UPKEEP_KEPT_URL")
    said = upkeep("migrate")
    assert (said.code, "UPKEEP_KEPT_URL" in said.err) == (2, True)


def test_migrate_goes_from_nothing_to_head_and_then_does_nothing(bare: Upkeep) -> None:
    head = migrations.head()
    status = bare("migrate", "--status", "--json")
    assert status.code == 1
    assert status.json["databases"] == [{"database": "kept", "before": None, "after": None, "applied": []}]
    assert "not installed" in bare("migrate", "--status").out
    first = bare("migrate", "--json")
    assert first.code == 0
    assert (first.json["databases"][0]["before"], first.json["databases"][0]["after"]) == (None, head)
    assert "up to date" in bare("migrate").out
    assert bare("migrate", "--status").code == 0
    assert bare("migrate", "--database", "nope").code == 2


def test_a_database_that_cannot_be_migrated_stops_no_other(
    new_database: NewDatabase,
    upkeep_with: Callable[..., Upkeep],
    role: NewRole,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = new_database(), new_database()
    upkeep = upkeep_with(second.url)
    upkeep.write("""
        [fleet]
        home = "good"
        [databases.bad]
        [databases.good]
    """)
    monkeypatch.setenv("UPKEEP_BAD_URL", role(first))
    monkeypatch.setenv("UPKEEP_GOOD_URL", second.url)
    said = upkeep("migrate")
    assert said.code == 1
    assert "may not create the schema upkeep" in said.err
    assert "deploy/grants.sql" in said.err or "CREATE SCHEMA upkeep" in said.err
    assert migrations.current(second.url) == migrations.head()
    # Somebody else's schema is refused in words as well.
    migrations.migrate(first.url)
    for words in (["migrate"], ["migrate", "--status"], ["status"], ["history"], ["plan", "refresh"]):
        said = upkeep(*words, "--database", "bad")
        assert said.code == 1
        assert "permission denied for schema upkeep" in said.err
        assert "Traceback" not in said.err


def test_json_is_the_only_thing_on_stdout(bare: Upkeep) -> None:
    done = bare.process("migrate", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["head"] == migrations.head()


def test_migrating_twice_at_once_is_waited_for(bare: Upkeep, database: Database) -> None:
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: bare.process("migrate", "--json"), range(2)))
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    wait_until(lambda: migrations.current(database.url) == migrations.head())

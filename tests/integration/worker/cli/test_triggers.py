"""`upkeep triggers`, in this process, on a real database."""

from __future__ import annotations

import pytest

from tests.integration.worker.cli.conftest import Upkeep
from tests.servers import Database
from tests.waiting import wait_until
from worker.cli import examining

pytestmark = pytest.mark.any_server

CONFIG = """
[fleet]
home = "kept"
[databases.kept]
url_env = "UPKEEP_KEPT_URL"
lock_timeout = "100ms"
[databases.kept.views."public.base"]
tier = "five_minutes"
[databases.kept.views."public.top"]
tier = "daily"
on_write = {top}
[schedule.cover]
task = "upkeep.refresh.triggers"
cron = "0 * * * *"
"""


def declare(upkeep: Upkeep, *, on_write: bool = True) -> None:
    upkeep.write(CONFIG.replace("{top}", str(on_write).lower()))


@pytest.fixture
def on_write(upkeep: Upkeep) -> Upkeep:
    declare(upkeep)
    return upkeep


def listed(upkeep: Upkeep, *words: str) -> list[tuple[str, str, list[str]]]:
    said = upkeep("triggers", "list", "--json", *words)
    [database] = said.json["databases"]
    return [(each["object"], each["state"], each["views"]) for each in database["triggers"]]


def test_install_list_and_remove(on_write, system: Database):
    said = on_write("triggers", "list")
    assert said.code == 1
    assert "missing" in said.out
    assert "→ upkeep triggers install" in said.out
    assert listed(on_write) == [("public.t", "missing", ["public.top"])]

    said = on_write("triggers", "install", "--dry-run")
    assert said.code == 0
    assert "would install" in said.out
    assert "Nothing was changed" in said.out
    assert listed(on_write) == [("public.t", "missing", ["public.top"])]

    said = on_write("triggers", "install")
    assert said.code == 0
    assert "1 change made of 1." in said.out
    assert on_write("triggers", "list").code == 0
    assert on_write("triggers").code == 0
    assert listed(on_write) == [("public.t", "installed", ["public.top"])]
    said = on_write("triggers", "install", "--json")
    assert said.json["databases"][0]["triggers"][0]["action"] is None

    conn = system.connect()
    conn.execute("INSERT INTO public.t VALUES (1000, 1)")
    assert conn.execute("SELECT view FROM upkeep.refresh_request").fetchall() == [("public.top",)]

    said = on_write("triggers", "remove", "--dry-run", "--json")
    assert [each["action"] for each in said.json["databases"][0]["triggers"]] == ["remove"]
    said = on_write("triggers", "remove", "--json")
    assert said.code == 0
    assert [each["done"] for each in said.json["databases"][0]["triggers"]] == [True]
    assert listed(on_write) == [("public.t", "missing", ["public.top"])]


def test_what_is_declared_no_longer_is_left_over_until_install_or_remove(on_write):
    on_write("triggers", "install")
    declare(on_write, on_write=False)
    said = on_write("triggers", "list")
    assert said.code == 1
    assert "leftover" in said.out
    assert on_write("triggers", "install").code == 0
    assert listed(on_write) == []
    said = on_write("triggers", "install")
    assert (said.code, "There is nothing to do." in said.out) == (0, True)
    said = on_write("triggers", "list")
    assert "No view is declared with on_write = true, and no trigger is there." in said.out


def test_only_some_views(on_write):
    assert on_write("triggers", "install", "PUBLIC.top").code == 0
    assert listed(on_write, "public.top") == [("public.t", "installed", ["public.top"])]
    declare(on_write, on_write=False)
    assert on_write("triggers", "remove", "public.top").code == 0
    assert listed(on_write) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["install", "public.base"], "public.base is not declared with on_write = true"),
        (["install", "public.nothing"], "public.nothing is not declared, and no trigger is for it"),
        (["remove", "public.nothing"], "public.nothing is not declared, and no trigger is for it"),
        (["list", "nothing"], "is not a schema-qualified name"),
        (["list", "--database", "other"], "no database named 'other'"),
    ],
)
def test_a_mistaken_name_does_nothing(on_write, words, said):
    ended = on_write("triggers", *words)
    assert ended.code == 2
    assert said in ended.err
    assert listed(on_write) == [("public.t", "missing", ["public.top"])]


def test_removing_for_a_view_that_is_declared_and_has_none(on_write):
    said = on_write("triggers", "remove", "public.base")
    assert (said.code, "There is nothing to do." in said.out) == (0, True)


def test_a_table_that_stays_busy(on_write, system: Database, monkeypatch):
    monkeypatch.setattr("tasks.refresh.trigger_ddl.TRIES", 1)
    holder = system.connect()
    holder.execute("BEGIN; LOCK public.t IN ROW EXCLUSIVE MODE")
    said = on_write("triggers", "install")
    assert said.code == 1
    assert "failed" in said.out
    assert "public.t was busy at each of 1 tries" in " ".join(said.out.split())
    assert "0 changes made of 1." in said.out
    said = on_write("triggers", "install", "--json")
    [line] = said.json["databases"][0]["triggers"]
    assert (line["done"], said.code) == (False, 1)
    assert line["error"]["remedy"]


def test_a_disabled_one_is_shown_and_left(on_write, system: Database):
    on_write("triggers", "install")
    system.connect().execute("ALTER TABLE public.t DISABLE TRIGGER upkeep_on_write")
    for words in (["list"], ["install"]):
        said = on_write("triggers", *words)
        assert said.code == 1
        assert 'ALTER TABLE "public"."t" ENABLE TRIGGER "upkeep_on_write";' in said.out


def test_a_view_that_is_not_there_and_a_database_that_is_not_migrated(
    on_write, upkeep_with, new_database, system
):
    system.connect().execute("DROP MATERIALIZED VIEW public.top")
    said = on_write("triggers", "list")
    assert said.code == 1
    assert "The materialized view public.top does not exist" in said.out
    bare = upkeep_with(new_database().url)
    declare(bare)
    said = bare("triggers", "list")
    assert said.code == 1
    assert "has no schema upkeep" in said.err
    assert (
        bare("triggers", "install", "--json").json["databases"][0]["error"]["remedy"]
        == "Run `upkeep migrate` once"
    )


def test_the_scheduled_task_installs_and_says_what_it_did(on_write, worker, system: Database):
    said = on_write("run", "upkeep.refresh.triggers", "--wait", "--json")
    assert said.code == 0, said.out + said.err
    assert listed(on_write) == [("public.t", "installed", ["public.top"])]
    conn = system.connect()
    done = "SELECT state, result, reason FROM upkeep.run WHERE task = 'upkeep.refresh.triggers' ORDER BY id"
    assert conn.execute(done).fetchall() == [("succeeded", {"installed": 1, "replaced": 0, "left": 0}, None)]
    assert on_write("run", "upkeep.refresh.triggers", "--wait").code == 0
    assert conn.execute(done).fetchall()[1][2] == "every trigger is in place"
    assert on_write("check").code == 0


@pytest.mark.slow
def test_the_scheduled_task_is_tried_again_for_a_busy_table_and_keeps_what_it_did(
    on_write, worker, system: Database
):
    conn = system.connect()
    conn.execute(
        "CREATE TABLE public.z (n int); DROP MATERIALIZED VIEW public.top;"
        "CREATE MATERIALIZED VIEW public.top AS SELECT z.n FROM public.z JOIN public.base USING (n)"
    )
    holder = system.connect()
    holder.execute("BEGIN; LOCK public.t IN ROW EXCLUSIVE MODE")
    on_write("run", "upkeep.refresh.triggers")
    run = "SELECT state, reason FROM upkeep.run WHERE task = 'upkeep.refresh.triggers'"
    wait_until(
        lambda: (conn.execute(run).fetchone() or ("",))[0] == "waiting",
        timeout=30,
        message=lambda: f"its next attempt: {conn.execute(run).fetchall()}",
    )
    assert "public.t was busy" in conn.execute(run).fetchone()[1]
    assert [state for _, state, _ in listed(on_write)] == ["missing", "installed"]
    holder.execute("COMMIT")
    wait_until(
        lambda: conn.execute(run).fetchone()[0] == "succeeded",
        timeout=60,
        message=lambda: f"its end: {conn.execute(run).fetchall()}",
    )
    assert [state for _, state, _ in listed(on_write)] == ["installed", "installed"]


def test_the_doctor_says_what_is_missing(on_write, system: Database):
    from worker.cli import options  # noqa: PLC0415

    settings = options.load(on_write.config)

    def told() -> list[tuple[str, str, str]]:
        found = examining.examine(settings.home, settings)
        return [(f.level.value, f.object, f.remedy) for f in found if "trigger" in f.message.lower()]

    assert told() == [("warning", "public.t", "upkeep triggers install")]
    on_write("triggers", "install")
    assert told() == [("ok", "triggers", "")]
    system.connect().execute("ALTER TABLE public.t DISABLE TRIGGER upkeep_on_write")
    assert told() == [("warning", "public.t", 'ALTER TABLE "public"."t" ENABLE TRIGGER "upkeep_on_write";')]
    declare(on_write, on_write=False)
    settings = options.load(on_write.config)
    assert told() == [("warning", "public.t", "upkeep triggers install")]

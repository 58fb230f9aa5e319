"""What `upkeep doctor` says of a materialized view: what hinders its refresh; as pure as `worker.doctor`."""

from __future__ import annotations

from collections.abc import Iterator

from fleet.postgres.catalog.definition import Definition
from fleet.postgres.catalog.views import MaterializedView
from tasks.refresh.strategy import PLAIN_LIMIT
from worker.doctor import About, Facts, Finding, Level, quoted

# The privilege to refresh without owning.
MAINTAIN_SINCE = 170_000
# Below this a refresh is over before the order of its rows matters (facts on refreshing: measured at 200,000
# rows).
ORDER_MATTERS_FROM_ROWS = 50_000


def in_the_way(view: MaterializedView, database_name: str) -> list[tuple[str, str]]:
    """What keeps a view from being refreshed concurrently, each with the statement that mends it."""
    found = []
    if view.unique_index is None:
        found.append(
            ("it has no usable unique index", f"CREATE UNIQUE INDEX ON {view.name} (its key columns);")
        )
    if not view.owner_has_temp:
        found.append(
            (
                f"its owner {view.owner} lacks TEMP on the database",
                f"GRANT TEMPORARY ON DATABASE {quoted(database_name)} TO {quoted(view.owner)};",
            )
        )
    return found


def judge_view(
    database: str,
    view: MaterializedView,
    definition: Definition | None,
    *,
    facts: Facts,
    version_num: int,
    allow_blocking: bool,
    usable: bool = True,
) -> list[Finding]:
    """Judge what is in the way of refreshing a view well; `usable`: may the role use its schema."""
    about, found = About(database, str(view.name)), []
    if not view.may_refresh:
        found.append(
            about.error(
                f"The role {facts.role} may not refresh it; it belongs to {view.owner}",
                may_refresh_remedy(view, facts.role, version_num=version_num, usable=usable),
            )
        )
    if not view.populated:
        found.append(
            about.warning(
                "It is not populated: it cannot be read until its first refresh",
                f"REFRESH MATERIALIZED VIEW {view.name};",
            )
        )
    limit = f"{PLAIN_LIMIT.total_seconds() * 1000:.0f} ms"
    for reason, remedy in in_the_way(view, facts.database):
        if allow_blocking:
            message = "Every refresh blocks its readers until it is done (allow_blocking = true): " + reason
            found.append(about.says(Level.INFO, message, remedy))
        else:
            message = (
                f"It cannot be refreshed concurrently, {reason}: it is refreshed only if that takes less than"
            )
            found.append(about.warning(f"{message} {limit}", remedy))
    if definition is not None:
        found += _judge_definition(about, view, definition)
    return found or [about.ok(f"Refreshed concurrently by {view.unique_index}")]


def may_refresh_remedy(view: MaterializedView, role: str, *, version_num: int, usable: bool) -> str:
    """The statements after which a role may refresh a view; from 17 on MAINTAIN is enough."""
    steps = [] if usable else [f"GRANT USAGE ON SCHEMA {quoted(view.name.schema)} TO {quoted(role)};"]
    if version_num >= MAINTAIN_SINCE:
        steps.append(f"GRANT MAINTAIN ON {view.name} TO {quoted(role)};")
    else:
        steps.append(f"GRANT {quoted(view.owner)} TO {quoted(role)};")
    return " ".join(steps)


def _judge_definition(about: About, view: MaterializedView, definition: Definition) -> Iterator[Finding]:
    if definition.stored_timestamps:
        columns = ", ".join(definition.stored_timestamps)
        yield about.warning(
            f"It stores the time of its refresh ({columns}): every refresh rewrites every row, and "
            "CONCURRENTLY "
            "takes almost four times as long as a plain refresh",
            f"Recreate it without {columns}; upkeep.view_freshness has the time",
        )
    rows, key = view.row_estimate or 0, view.unique_key
    if key and rows >= ORDER_MATTERS_FROM_ROWS and definition.ordered_by[: len(key)] != key:
        yield about.says(
            Level.INFO,
            f"Its {rows:,} rows are not in the order of its key: in that order CONCURRENTLY takes about "
            "0.6 of the time",
            f"Recreate it with ORDER BY {', '.join(map(quoted, key))} at the end of its definition",
        )

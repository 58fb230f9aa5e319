"""`upkeep init`: connects, asks, and writes the starter file where it is wanted."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from fleet.errors import ConfigurationError, TransientError, UpkeepError
from fleet.postgres.connect import connect
from fleet.postgres.failures import explain
from fleet.settings import urls
from fleet.settings.findings import NAME
from worker import starter
from worker.cli import options, output
from worker.starter import Described


def init(url: str, *, name: str | None, probe: bool, output_file: Path | None, as_json: bool) -> int:
    """Describe the database and print or write its file."""
    if name is not None and not NAME.fullmatch(name):
        raise options.UsageMistakeError(
            f"{name!r} is not a name for a database",
            remedy="Use a small letter, then small letters, digits and _, 31 characters at most",
        )
    if output_file is not None and output_file.exists():
        raise _in_the_way(output_file)
    try:
        parameters = urls.postgres(url)
    except ConfigurationError as exc:
        raise options.UsageMistakeError(f"The URL cannot be used: {exc.message}", remedy=exc.remedy) from None
    described = _describe(url, parameters, name=name, probe=probe)
    text = starter.write(described, version=version("upkeep"))
    if output_file is not None:
        _write(output_file, text)
    if as_json:
        output.emit(_document(described, text, output_file))
    elif output_file is not None:
        out = output.console()
        out.print(f"Wrote {output_file}: {output.count(len(described.views), 'view')} of {described.where}.")
        out.print(f"Next: export {described.url_env}={described.export}", soft_wrap=True)
        out.print(f"      upkeep check --config {output_file}", soft_wrap=True)
    else:
        output.emit_text(text)
    return 0


def _describe(url: str, parameters: dict[str, str], *, name: str | None, probe: bool) -> Described:
    try:
        connection = connect(url, application_name="upkeep/init", to_read=True)
    except TransientError as exc:
        raise UpkeepError(exc.message, remedy="Is the server up and reachable from here?") from exc
    with connection:
        try:
            connection.execute("SET default_transaction_read_only = on")
            views = starter.gather(connection, probe=probe)
            role = _role(connection)
        except psycopg.Error as exc:
            raise explain(exc, doing="Reading the catalogue") from exc
        info = connection.info
        own = name or starter.names(info.dbname)[0]
        return Described(
            name=own,
            database_name=info.dbname,
            role=role,
            version_num=info.server_version,
            where=f"{info.host or 'the local socket'}:{info.port}/{info.dbname}",
            url_env=starter.names(own)[1],
            # With what libpq filled in from the environment, so that the fleet finds the same database from
            # anywhere.
            export=starter.without_secrets(
                {"user": info.user, "dbname": info.dbname, **parameters}, mark=True
            ),
            views=views,
        )


def _role(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT current_user::text").fetchone()
    assert row is not None
    return str(row[0])


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _in_the_way(path) from None
    except OSError as exc:
        raise UpkeepError(
            f"{path} cannot be written: {exc.strerror}",
            remedy="Name a file in a directory that is there and yours",
        ) from exc


def _in_the_way(path: Path) -> UpkeepError:
    return UpkeepError(
        f"{path} is there already, and is not overwritten",
        remedy="Name another file, or remove that one first",
    )


def _document(described: Described, text: str, output_file: Path | None) -> dict[str, Any]:
    return {
        "database": described.name,
        "where": described.where,
        "role": described.role,
        "url_env": described.url_env,
        "output": str(output_file) if output_file else None,
        "views": [
            {
                "view": str(facts.view.name),
                "owner": facts.view.owner,
                "populated": facts.view.populated,
                "row_estimate": facts.view.row_estimate,
                "size_bytes": facts.view.size_bytes,
                "unique_index": facts.view.unique_index,
                "definition": facts.definition.kind.value if facts.definition else None,
                "reads": [str(name) for name in facts.reads],
                "tier": starter.suggest(facts).tier,
                "why": starter.suggest(facts).why,
                "hindrances": [
                    {"message": m.rstrip(":"), "remedy": r} for m, r in starter.hindrances(facts, described)
                ],
            }
            for facts in described.views
        ],
        "toml": text,
    }

"""Names of relations as people write them, parsed by SQL's rules: no fragment of SQL can hide in one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from psycopg import sql

from fleet import redaction
from fleet.errors import PermanentError

# PostgreSQL's NAMEDATALEN - 1, in bytes; a longer name would be cut silently and then not be found.
MAX_IDENTIFIER_BYTES = 63

_PLAIN = re.compile(r"[a-z_\u0080-\U0010ffff][a-z0-9_$\u0080-\U0010ffff]*")
_PART = re.compile(r'"((?:[^"\x00]|"")+)"|([A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*)')


@dataclass(frozen=True, order=True, slots=True)
class RelationName:
    """A schema-qualified relation name, unquoted, as the catalogue stores it."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read schema.view, with double quotes where SQL needs them, as PostgreSQL would.

        Unquoted parts fold to lower case (ASCII only, as the server does with UTF-8).

        Raises:
            PermanentError: not a string, no schema, anything after the name, a part over 63 bytes.
        """
        if not isinstance(text, str):
            raise PermanentError(
                f"A view's name must be a string, not {type(text).__name__}: {_shown(text)}",
                remedy='Write it as "schema.view"',
            )
        parts: list[str] = []
        position = 0
        while True:
            match = _PART.match(text, position)
            if match is None:
                break
            quoted, plain = match.groups()
            parts.append(quoted.replace('""', '"') if quoted is not None else _fold(plain))
            position = match.end()
            if position < len(text) and text[position] == ".":
                position += 1
                continue
            break
        if position != len(text) or len(parts) != 2:
            raise PermanentError(
                f"{_shown(text)} is not a schema-qualified name",
                remedy="Write it as schema.view, with double quotes around a part that has capitals, "
                'spaces or quotes: public."My View"',
            )
        for part in parts:
            if len(part.encode()) > MAX_IDENTIFIER_BYTES:
                raise PermanentError(
                    f"{_shown(text)} has a part over {MAX_IDENTIFIER_BYTES} bytes",
                    remedy="PostgreSQL cuts longer names; use the name that \\dm shows",
                )
        return cls(*parts)

    def identifier(self) -> sql.Identifier:
        """The name for composing a statement."""
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        return f"{_quoted(self.schema)}.{_quoted(self.name)}"


def _fold(part: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in part)


def _quoted(part: str) -> str:
    if _PLAIN.fullmatch(part):
        return part
    escaped = part.replace('"', '""')
    return f'"{escaped}"'


def _shown(value: object) -> str:
    text = redaction.text(repr(value))
    return text if len(text) <= 120 else f"{text[:117]}…"

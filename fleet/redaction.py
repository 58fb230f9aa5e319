"""Taking passwords out of text and data before anybody sees them.

Logs, error messages and reports quote what they were given: a URL from a driver's error, an argument of a
task, a line of the configuration. This is the one place that knows what a secret looks like in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "***"

# postgresql://user:secret@host, redis://:secret@host; up to the last @ of the word, because a password that
# was not percent-encoded may hold one, or a slash. Of `//host:5432/db?user=a@b` it masks too much: the safe
# mistake.
_URL = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://[^\s:@/'\"]*:)[^\s'\"]*(?=@)", re.IGNORECASE)
# password=secret in a conninfo string or a URL's query, "password": "secret" in JSON or a repr.
_PAIR = re.compile(
    r"""(?P<before>\b(?:\w*(?:password|passwd|passphrase)|\w*secret|pgpass|scram_client_key|scram_server_key)
        (?:\\?['"])?\s*[=:]\s*)
        (?:'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*"|[^\s,;&'")\]}]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_SECRET_KEY = re.compile(
    r"(password|passwd|passphrase|secret|(^|[_.-])(pwd|url|uri|dsn|conninfo|token|api_?key|basic_auth))$",
    re.IGNORECASE,
)


def text(value: str) -> str:
    """The same text with passwords of URLs, conninfo strings and key-value pairs masked."""
    if "://" in value:
        value = _URL.sub(rf"\g<before>{MASK}", value)
    return _PAIR.sub(rf"\g<before>{MASK}", value)


def names_a_secret(key: object) -> bool:
    """Whether what is filed under this key is not to be shown at all: `password`, `redis_url`, `dsn`, ..."""
    return isinstance(key, str) and _SECRET_KEY.search(key) is not None


def data(value: object) -> object:
    """The same data with every secret masked, in strings, keys and values at any depth.

    Containers are copied, never changed; an object that is none of str, bytes, mapping, list, tuple or set is
    left alone, because what it will print is not known yet.
    """
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bytes):
        return text(value.decode(errors="backslashreplace"))
    if isinstance(value, Mapping):
        return {
            data(key): MASK if names_a_secret(key) and each else data(each) for key, each in value.items()
        }
    if isinstance(value, tuple):
        return tuple(data(each) for each in value)
    if isinstance(value, list | set | frozenset):
        return [data(each) for each in value]
    return value

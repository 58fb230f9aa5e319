"""The revisions that this version knows are told from the files' names; what runs them must agree."""

from __future__ import annotations

import subprocess
import sys

from alembic.script import ScriptDirectory

from fleet.postgres.migrations import head, revisions
from fleet.postgres.migrations.upgrade import configuration


def test_alembic_knows_the_same_ones_in_the_same_order() -> None:
    script = ScriptDirectory.from_config(configuration())
    assert revisions() == tuple(each.revision for each in script.walk_revisions())[::-1]
    assert head() == script.get_current_head()


def test_who_does_not_migrate_does_not_load_alembic() -> None:
    loaded = (
        "import sys, worker.app; print([each for each in ('alembic', 'sqlalchemy') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

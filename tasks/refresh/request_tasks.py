"""A refresh request as a plain Celery message, for applications that have Celery and nothing of ours.

    app.send_task("upkeep.refresh.request", kwargs={"view": "public.mv_x", "database": "lending"})

It marks the view, as the client does, and is no run of its own: a burst of messages becomes one refresh.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from celery.exceptions import Reject
from pydantic import model_validator

from fleet.errors import PermanentError
from tasks.base import UNREACHABLE_PAUSE_S, Arguments, LedgeredTask
from tasks.performing import describe
from upkeep_client import InvalidRequest, RequestNotSent, Upkeep

log = structlog.get_logger(__name__)

REQUEST = "upkeep.refresh.request"


class RequestArguments(Arguments):
    """`view`: one or several; `keys` and `parameters` as the client takes them."""

    view: str | list[str] | None = None
    keys: list[str | int] | None = None
    parameters: dict[str, str | int] | list[dict[str, str | int]] | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> RequestArguments:
        if not self.view:
            raise ValueError("name the view")
        if self.run is not None:
            raise ValueError("it is no run")
        return self


class RequestRefresh(LedgeredTask[RequestArguments]):
    """Marks views as written to; what cannot be refreshed is recorded as a rejected request."""

    name = REQUEST
    arguments = RequestArguments

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Celery's entry: judge, mark."""
        try:
            arguments = self._read(args, kwargs)
            database = self.runtime.database(arguments.database)
            asked = [arguments.view] if isinstance(arguments.view, str) else arguments.view or []
            views = [str(database.view(each).name) for each in asked]
        except PermanentError as exc:
            self._record_rejection(exc, kwargs)
            raise
        try:
            Upkeep(self.runtime.redis, on_error="raise").request_refresh(
                views, database=database.name, keys=arguments.keys, parameters=arguments.parameters
            )
        except InvalidRequest as exc:
            error = PermanentError(f"Wrong arguments for {self.name}: {exc}", remedy="Send others")
            self._record_rejection(error, kwargs)
            raise error from None
        except RequestNotSent as exc:
            # The broker keeps the message: it is delivered again.
            log.warning("request.not_marked", error=describe(PermanentError(str(exc)), exc)["message"])
            time.sleep(UNREACHABLE_PAUSE_S)
            raise Reject(str(exc), requeue=True) from exc
        return {"requested": views, "database": database.name}


TASKS = (RequestRefresh,)

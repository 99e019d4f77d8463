"""The connector API over a store."""

from worker import extras
from worker.app.stores import opened
from worker.errors import MisconfiguredError
from worker.logs import get_logger
from worker.settings import Settings
from worker.signals import stopping

log = get_logger(__name__)


async def api(settings: Settings) -> None:
    """Serve the connector API over a SQL store until told to stop."""
    extras.require("api", "the API")
    from worker.api.server import application  # noqa: PLC0415 - the extra `api`
    from worker.api.serving import serve  # noqa: PLC0415
    from worker.stores.sql import SqlStore  # noqa: PLC0415 - commands without a store do without

    with stopping() as stop:
        async with opened(settings) as store:
            if not isinstance(store, SqlStore):
                raise MisconfiguredError(
                    "the API keeps its connectors in a SQL store: set LAST_SYNC_STORE_URL to"
                    " sqlite:///path or postgresql://user@host/database"
                )
            app = application(store, settings.api_keys)
            await serve(app, settings.api_host, settings.api_port, stop)
    log.info("api.stopped")

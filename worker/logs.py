"""Log lines on stderr: pretty on a terminal, JSON elsewhere; never a payload or a secret."""

import logging
import sys
from typing import TextIO

import structlog

from worker.text import escaped

AUDIT = "worker.audit"  # its lines are written whatever the level: they are the lasting record


def configure(level: str = "info", form: str = "auto") -> None:
    """Send structlog and the standard library's loggers (aiokafka, Alembic) through one format."""
    pretty = form == "pretty" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if pretty:
        shared.append(_escaped)
    else:
        # without locals: they hold payloads and secrets
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(transformer))
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if pretty
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _Stderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.captureWarnings(capture=True)  # as those that Elasticsearch sends
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    # a line for each of many requests a second, about what is checked and said elsewhere
    for name in ("aiokafka.cluster", "elastic_transport"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("worker").setLevel(level.upper())
    logging.getLogger(AUDIT).setLevel(logging.INFO)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is now: a progress bar takes its place while it stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def _escaped(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Let no control character of an id or a message reach the terminal; JSON escapes them."""
    return {
        name: escaped(value) if isinstance(value, str) and name != "exception" else value
        for name, value in event.items()
    }

"""What the server logs, to stderr: warnings, or each request too, as text or as one JSON object a line."""

import json
import logging
import sys
from datetime import UTC, datetime

from app.observe.watch import request_id_of


class TextFormatter(logging.Formatter):
    """`2026-03-04 05:06:07 WARNING app.main [request id] message`."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = request_id_of.get()
        record.request = f" [{request_id}]" if request_id else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """An object a line, with the facts of a request where the line is about one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id_of.get() or None,
        }
        line |= getattr(record, "facts", None) or {"message": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(kind: str) -> None:
    """`kind`: the setting `log`."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s%(request)s %(message)s", "%Y-%m-%d %H:%M:%S")
    handler.setFormatter(JsonFormatter() if kind == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("saescope.requests").setLevel(logging.WARNING if kind == "warnings" else logging.INFO)

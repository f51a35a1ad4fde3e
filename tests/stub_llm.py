"""An endpoint that behaves as real ones do: an HTTP server in a thread, with a character and with faults.

It knows what it is asked from the words of the instructions, as a model would, and the truth from `fires`: a function
of a text and its marks. Characters: "oracle" tells the truth, "liar" its contrary, "coin" anything.
"""

import json
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fires = Callable[[str, list[str] | None], bool]  # a text, and what is marked in it, if anything is


@dataclass
class StubLLM:
    """How it behaves; `faults` come first, one a request: names of `FAULTS`."""

    fires: Fires
    character: str = "oracle"
    label: str = "words of the sea"
    style: str = "plain"  # how answers look: plain, prose, fenced, thinking, streamed
    faults: deque[str] = field(default_factory=deque)
    always: str | None = None  # a fault of every answer to a question of this kind: "explain:refusal"
    dies_after: int | None = None  # requests, then every one is a 503
    key: str = ""
    usage: bool = True
    delay: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    most_at_once: int = 0
    base_url: str = ""
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)
    _now: int = 0

    def answer(self, kind: str, body: dict[str, Any]) -> str:
        if kind == "explain":
            return json.dumps({"label": self.label, "certainty": 0.8})
        system, data = body["messages"][0]["content"], json.loads(body["messages"][1]["content"])
        is_own = data["feature"] == self.label
        chosen = []
        for text in data["texts"]:
            said = self.fires(*_unmarked(text["text"], system if kind == "fuzzing" else None)) if is_own else None
            is_yes = self.rng.random() < 0.5 if said is None or self.character == "coin" else said
            if is_yes != (self.character == "liar" and said is not None):
                chosen.append(text["number"])
        return json.dumps({"fires": chosen})

    def styled(self, text: str) -> str:
        match self.style:
            case "prose":
                return f"Sure! Looking at [the texts], I would say:\n{text}\nLet me know if {{that}} helps."
            case "fenced":
                return f"```json\n{text}\n```"
            case "thinking":
                return f'<think>Maybe {{"fires": [1]}}, maybe [2].</think>\n{text}'
        return text


def _unmarked(text: str, system: str | None) -> tuple[str, list[str] | None]:
    if system is None:
        return text, None
    found = re.search(r"marked between (.+?) and (.+?):", " ".join(system.split()))
    assert found is not None
    pattern = re.escape(found[1]) + "(.*?)" + re.escape(found[2])
    return text.replace(found[1], "").replace(found[2], ""), re.findall(pattern, text, re.DOTALL)


def kind_of(body: dict[str, Any]) -> str:
    system = body["messages"][0]["content"]
    return "explain" if "promoted_tokens" in system else "fuzzing" if "right tokens" in system else "detection"


FAULTS = {
    "429": (429, {"retry-after": "3"}, '{"error": {"message": "slow down"}}'),
    "500": (500, {}, "<html>Internal Server Error</html>"),
    "503": (503, {}, ""),
    "malformed": (200, {}, '{"choices": [{"message": {"conte'),
    "no choices": (200, {}, '{"choices": []}'),
    "401": (401, {}, '{"error": {"message": "Incorrect API key provided: KEY."}}'),
    "400": (400, {}, '{"error": {"message": "context length exceeded"}}'),
    "400 max_tokens": (400, {}, '{"error": {"message": "Unsupported parameter: max_tokens"}}'),
    "404": (404, {}, '{"error": "model not found"}'),
}
CONTENTS = {
    "refusal": "I'm sorry, but I can't help with that.",
    "empty": "",
    "null": None,
    "broken": '{"fires": [1, 2',
    "out of range": '{"fires": [0, 99]}',
    "words": '{"fires": ["one"], "label": 7}',
}


class _Handler(BaseHTTPRequestHandler):
    stub: StubLLM

    def do_POST(self) -> None:
        stub = self.stub
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with stub.lock:
            stub._now += 1
            stub.most_at_once = max(stub.most_at_once, stub._now)
            kind = kind_of(body)
            stub.requests.append(body)
            stub.kinds.append(kind)
            fault = stub.faults.popleft() if stub.faults else None
            if stub.dies_after is not None and len(stub.requests) > stub.dies_after:
                fault = "503"
            if stub.always and stub.always.startswith(kind):
                fault = stub.always.partition(":")[2]
            if stub.key and self.headers.get("authorization") != f"Bearer {stub.key}":
                fault = "401"
        time.sleep(stub.delay)
        try:
            self._respond(fault, kind, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever asked has gone
        finally:
            with stub.lock:
                stub._now -= 1

    def _respond(self, fault: str | None, kind: str, body: dict[str, Any]) -> None:
        stub = self.stub
        if fault == "time-out":
            time.sleep(1.0)
            self._send(504, {}, "")
        elif fault == "closes":
            self.close_connection = True
        elif fault in FAULTS:
            status, headers, text = FAULTS[fault]
            self._send(status, headers, text.replace("KEY", self.headers.get("authorization", "")[7:]))
        else:
            content = CONTENTS[fault] if fault in CONTENTS else stub.styled(stub.answer(kind, body))
            self._send_content(content)

    def _send_content(self, content: str | None) -> None:
        usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 10}} if self.stub.usage else {}
        if self.stub.style == "streamed":
            pieces = [content[i : i + 5] for i in range(0, len(content or ""), 5)] if content else [None]
            chunks = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
            chunks.append({"choices": [], **usage})
            lines = "".join(f": ping\n\ndata: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            self._send(200, {"content-type": "text/event-stream; charset=utf-8"}, lines)
        else:
            message = {"role": "assistant", "content": content}
            self._send(200, {}, json.dumps({"id": "x", "choices": [{"index": 0, "message": message}], **usage}))

    def _send(self, status: int, headers: dict[str, str], text: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in ({"content-type": "application/json", "content-length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(stub: StubLLM) -> Iterator[StubLLM]:
    """The stub at `stub.base_url` while it is open."""
    handler = type("Handler", (_Handler,), {"stub": stub, "protocol_version": "HTTP/1.1"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    stub.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

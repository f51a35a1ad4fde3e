"""The endpoint of a language model: any that speaks OpenAI's chat completions (vLLM, Ollama, llama.cpp, LM Studio, …).

A request is repeated after time-outs, 408, 429 and 5xx, with waits that double and vary, no shorter than the endpoint's
own Retry-After. The key is sent and kept nowhere else: it stands in no message, not even where the endpoint repeats it.
"""

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import httpx

from sae_core.errors import AnswerError, ConfigError, EndpointError

Message = dict[str, str]

ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 120.0  # seconds
ANSWER_TOKENS = 1000  # at most; room for models that think aloud
CHARACTERS_PER_TOKEN = 4  # where the endpoint does not say how many it counted
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_UNSUITED = {400, 413, 422}
_BAD_ADDRESS = "The endpoint's address is not understood; write it like http://localhost:11434/v1."


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a language model is asked. `base_url` is the root of its API, as in http://localhost:11434/v1."""

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0  # seconds for one answer
    concurrency: int = 4  # questions at the same time

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^/\s?#]+[^\s?#]*", self.base_url):
            raise ConfigError(_BAD_ADDRESS)
        try:
            httpx.URL(self.base_url)
        except httpx.InvalidURL:
            raise ConfigError(_BAD_ADDRESS) from None
        if not self.model:
            raise ConfigError("No model is named for the endpoint; set SAESCOPE_LLM_MODEL or give --model.")
        if self.concurrency < 1 or not self.timeout > 0:
            raise ConfigError("The endpoint's time-out and number of questions at a time must be above 0.")

    @property
    def name(self) -> str:
        """The address without what may be secret in it."""
        return str(httpx.URL(self.base_url).copy_with(username=None, password=None)).rstrip("/")

    @property
    def login(self) -> tuple[str, str] | None:
        """A name and password that stand in the address."""
        url = httpx.URL(self.base_url)
        return (url.username, url.password) if url.username and not self.key else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model said, and how many tokens that took."""

    text: str
    prompt_tokens: int
    answer_tokens: int


class Client:
    """Asks an endpoint; `async with` closes it."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._sleep, self._rng = sleep, rng or random.Random()
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": ANSWER_TOKENS}
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        self._http = httpx.AsyncClient(timeout=endpoint.timeout, headers=headers, auth=endpoint.login)
        self._places = asyncio.Semaphore(endpoint.concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, messages: Sequence[Message]) -> Reply:
        """The model's answer, which may be empty. Raises EndpointError if there is none to be had, AnswerError if it
        does not take this question."""
        async with self._places:
            problem, wait = "", 0.0
            for attempt in range(ATTEMPTS):
                if attempt:
                    await self._sleep(max(wait, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1))) * self._jitter())
                try:
                    response = await self._post(messages)
                except httpx.TimeoutException:
                    problem, wait = f"no answer within {self.endpoint.timeout:g} s", 0.0
                    continue
                except httpx.TransportError as error:
                    problem, wait = str(error) or type(error).__name__, 0.0
                    continue
                if response.status_code in _AGAIN:
                    problem, wait = f"{response.status_code} {_message(response)}".strip(), _retry_after(response)
                    if wait > LONGEST_WAIT:
                        raise self._error(f"asks to wait {wait:.0f} s ({problem}); try again later")
                    continue
                self._check(response)
                reply = _reply(response, messages)
                if reply is not None:
                    return reply
                problem, wait = "what it sends is not an answer as OpenAI's API gives them", 0.0
            raise self._error(f"does not answer, also after {ATTEMPTS} attempts ({problem}); check that it runs")

    async def _post(self, messages: Sequence[Message]) -> httpx.Response:
        """A request; again without an option that the endpoint does not know."""
        while True:
            body = {"model": self.endpoint.model, "messages": list(messages), "stream": False, **self._options}
            response = await self._http.post(f"{self.endpoint.name}/chat/completions", json=body)  # httpx logs it
            refused = [name for name in self._options if response.status_code in _UNSUITED and name in response.text]
            if not refused:
                return response
            for name in refused:
                del self._options[name]

    def _check(self, response: httpx.Response) -> None:
        code, said = response.status_code, _message(response)
        if code in (401, 403):
            raise self._error(f"refuses the key ({said or code}); set SAESCOPE_LLM_KEY to one that it takes")
        if code == 404:
            raise self._error(
                f"has no such model or address ({said or code}); check SAESCOPE_LLM_BASE_URL and the model"
            )
        if code in _UNSUITED:
            raise AnswerError(self._safe(f"{self.endpoint.name} does not take this question ({said or code})."))
        if not 200 <= code < 300:
            raise self._error(f"answers {code} ({said or 'without a reason'}); check its address")

    def _error(self, what: str) -> EndpointError:
        return EndpointError(self._safe(f"The endpoint {self.endpoint.name} {what}."))

    def _safe(self, text: str) -> str:
        secrets = [self.endpoint.key, httpx.URL(self.endpoint.base_url).password]
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        return text

    def _jitter(self) -> float:
        return self._rng.uniform(1.0, 1.5)


def _retry_after(response: httpx.Response) -> float:
    """Seconds to wait at least; the header has a number of them, or a date."""
    text = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(text)
        said = response.headers.get("date")  # by the same clock, which need not be ours
        now = parsedate_to_datetime(said) if said else datetime.now(UTC)
    except ValueError:
        return 0.0
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now.replace(tzinfo=now.tzinfo or UTC)).total_seconds())


def _message(response: httpx.Response) -> str:
    """Why, in the endpoint's words, on one short line."""
    try:
        found = response.json()
        error = found.get("error", found) if isinstance(found, dict) else found
        text = error.get("message", "") if isinstance(error, dict) else str(error)
    except ValueError:
        text = "" if "html" in response.headers.get("content-type", "") else response.text
    return " ".join(str(text).split())[:200].rstrip(".")


def _reply(response: httpx.Response, messages: Sequence[Message]) -> Reply | None:
    """An answer, in one piece or streamed; None if it is neither."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        events = [line[5:].strip() for line in response.text.splitlines() if line.startswith("data:")]
    else:
        events = [response.text]
    parts: list[str] = []
    usage: Any = {}
    known = False
    for event in events:
        if event == "[DONE]":
            continue
        try:
            found = json.loads(event)
            choices = found["choices"]
            for choice in choices[:1]:
                parts.append(_content(choice.get("message") or choice.get("delta") or {}))
                known = True
            usage = found.get("usage") or usage
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    if not known:
        return None
    text = "".join(parts)
    asked = sum(len(message["content"]) for message in messages)
    return Reply(
        text=text,
        prompt_tokens=_count(usage, "prompt_tokens", asked),
        answer_tokens=_count(usage, "completion_tokens", len(text)),
    )


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):  # of parts
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _count(usage: Any, name: str, characters: int) -> int:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) else -(-characters // CHARACTERS_PER_TOKEN)

"""The client against an endpoint with every fault that real ones have."""

import asyncio
import logging
import random
from collections import deque
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from sae_core.errors import AnswerError, ConfigError, EndpointError
from sae_core.explain.client import ATTEMPTS, Client, Endpoint, Reply, _retry_after
from tests.stub_llm import StubLLM, serving

QUESTION = [{"role": "system", "content": "promoted_tokens"}, {"role": "user", "content": "{}"}]
KEY = "sk-secret-123"


class Waits:
    """Sleeps that only remember how long they would have been."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def ask(stub: StubLLM, *, n: int = 1, waits: Waits | None = None, **endpoint: Any) -> list[Reply]:
    async def run() -> list[Reply]:
        values = {"base_url": stub.base_url, "model": "stub", "key": KEY, **endpoint}
        async with Client(Endpoint(**values), sleep=waits or Waits(), rng=random.Random(0)) as client:
            return await asyncio.gather(*(client.ask(QUESTION) for _ in range(n)))

    return asyncio.run(run())


def make_stub(**values: Any) -> StubLLM:
    return StubLLM(fires=lambda text, marked: True, **values)


@pytest.mark.parametrize("style", ["plain", "streamed"])
@pytest.mark.parametrize("usage", [True, False])
def test_an_answer_in_one_piece_or_streamed(style: str, usage: bool) -> None:
    with serving(make_stub(style=style, usage=usage)) as stub:
        reply = ask(stub)[0]
    assert reply.text == '{"label": "words of the sea", "certainty": 0.8}'
    expected = (100, 10) if usage else (5, 12)
    assert (reply.prompt_tokens, reply.answer_tokens) == expected
    sent = stub.requests[0]
    assert (sent["model"], sent["messages"], sent["temperature"], sent["stream"]) == ("stub", QUESTION, 0, False)


@pytest.mark.parametrize("fault", ["429", "500", "503", "malformed", "no choices", "time-out", "closes"])
def test_what_passes_is_tried_again(fault: str) -> None:
    waits = Waits()
    with serving(make_stub(faults=deque([fault, fault]))) as stub:
        assert ask(stub, waits=waits, timeout=0.3)[0].text
    assert len(stub.requests) == 3
    least = 3.0 if fault == "429" else 1.0
    assert len(waits.seconds) == 2
    assert least <= waits.seconds[0] < 1.5 * least + 1e-9
    assert waits.seconds[1] >= 2.0


def test_waits_double_and_differ() -> None:
    waits = Waits()
    with serving(make_stub(faults=deque(["503"] * ATTEMPTS))) as stub, pytest.raises(EndpointError) as caught:
        ask(stub, waits=waits)
    assert f"after {ATTEMPTS} attempts (503)" in str(caught.value)
    for n, seconds in enumerate(waits.seconds):
        assert 2**n <= seconds <= 1.5 * 2**n
    assert len({seconds / 2**n for n, seconds in enumerate(waits.seconds)}) == ATTEMPTS - 1


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < _retry_after(httpx.Response(429, headers={"retry-after": later})) <= 30
    for text, seconds in (("7", 7.0), ("soon", 0.0), ("-1", 0.0), ("", 0.0)):
        assert _retry_after(httpx.Response(429, headers={"retry-after": text})) == seconds


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("401", EndpointError, "SAESCOPE_LLM_KEY"),
        ("404", EndpointError, "model not found"),
        ("400", AnswerError, "context length exceeded"),
    ],
)
def test_what_does_not_pass_is_said_at_once(fault: str, kind: type[EndpointError], said: str) -> None:
    with serving(make_stub(faults=deque([fault]), key=KEY)) as stub, pytest.raises(kind, match=said) as caught:
        ask(stub)
    assert type(caught.value) is kind and len(stub.requests) == 1
    assert str(caught.value).endswith(".")


def test_an_endpoint_that_is_not_there() -> None:
    with serving(make_stub()) as stub:
        pass
    with pytest.raises(EndpointError, match="check that it runs"):
        ask(stub)


def test_an_option_that_the_endpoint_does_not_know_is_left_out() -> None:
    with serving(make_stub(faults=deque(["400 max_tokens"]))) as stub:
        ask(stub)
    assert "max_tokens" in stub.requests[0] and "max_tokens" not in stub.requests[1]
    assert "temperature" in stub.requests[1]


def test_no_more_at_once_than_asked_for() -> None:
    with serving(make_stub(delay=0.05)) as stub:
        assert len(ask(stub, n=9, concurrency=3)) == 9
    assert stub.most_at_once == 3


def test_the_key_is_nowhere_but_in_the_request(caplog: pytest.LogCaptureFixture) -> None:
    with serving(make_stub(key=KEY)) as stub, caplog.at_level(logging.DEBUG):
        ask(stub)
        with pytest.raises(EndpointError) as caught:
            ask(stub, key="sk-wrong-456")
        stub.faults.append("401")
        with pytest.raises(EndpointError) as echoed:  # the endpoint repeats the key in its answer
            ask(stub)
        with_password = stub.base_url.replace("http://", "http://me:pass-789@")
        stub.key = "other"
        with pytest.raises(EndpointError) as named:
            ask(stub, base_url=with_password)
    everything = caplog.text + repr(Endpoint(base_url="http://x", model="m", key=KEY))
    everything += str(caught.value) + str(echoed.value) + str(named.value)
    assert "***" in str(echoed.value)
    for secret in (KEY, "sk-wrong-456", "pass-789"):
        assert secret not in everything


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://x/v1?key=1", "http://x:port/v1"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="http://localhost:11434/v1"):
        Endpoint(base_url=url, model="m")
    with pytest.raises(ConfigError, match="SAESCOPE_LLM_MODEL"):
        Endpoint(base_url="http://x/v1", model="")

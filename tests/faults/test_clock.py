"""A clock that jumps, hours forwards or backwards: who works is at work, durations are durations, and sessions neither
end for good nor last for ever.
"""

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest

from app.rate_limit import RateLimit
from sae_core import runs, store_access
from sae_core.explain.client import _retry_after
from sae_core.progress import progress_bar, say
from sae_core.runs import list_runs, read_detail, read_run
from sae_core.store import Store
from tests.run_logs import measure, training, training_files

HOUR = 3600.0
JUMPS = pytest.mark.parametrize("by", [-26 * HOUR, -2 * HOUR, 2 * HOUR, 26 * HOUR])
_of_the_day = time.time


def jump(patch: pytest.MonkeyPatch, by: float) -> None:
    class Jumped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(seconds=by)

    patch.setattr(time, "time", lambda: _of_the_day() + by)
    patch.setattr(store_access, "datetime", Jumped)


@JUMPS
def test_a_job_that_is_at_work_is_shown_at_work_and_one_that_was_killed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    with training(tmp_path):
        jump(monkeypatch, by)
        assert read_run(tmp_path, "demo").state == "running"  # before its next sign of life, by its process
        monkeypatch.setattr(runs, "birth", lambda pid: None)
        assert read_run(tmp_path, "demo").state == "stopped"


@JUMPS
def test_a_job_on_a_machine_with_another_clock_is_believed_while_it_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    files, theirs = training_files(tmp_path), _of_the_day() + by
    said = {"event": "started", "at": theirs, "job": f"job{by}", "host": "elsewhere", "pid": 1}
    files.events.write_text(json.dumps(said))

    def beat(later: float) -> None:
        files.progress.write_text(json.dumps({"job": f"job{by}", "at": theirs + later}))

    beat(1)
    assert read_run(tmp_path, "demo").state == "stopped"  # the first we see may be of any age
    beat(2)
    assert read_run(tmp_path, "demo").state == "running"
    assert list_runs(tmp_path)[0].state == "running"
    later = time.monotonic() + runs.FRESH_SECONDS_ELSEWHERE + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert read_run(tmp_path, "demo").state == "stopped"


@JUMPS
def test_time_at_work_pace_and_log_are_those_without_the_jump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    with training(tmp_path) as log, progress_bar(total=1000, what="training") as bar:
        measure(tmp_path, [1])
        log.note("before")
        bar.start_t -= 10
        jump(monkeypatch, by)
        bar.update(500)
        say(bar, "FVU 0.1")
        log.note("after")
        log._write_progress()
        at_work = read_run(tmp_path, "demo")
        measure(tmp_path, [2], at=time.time())
        log.stop()
    assert at_work.progress is not None and at_work.progress.rate == pytest.approx(50, rel=0.2)
    assert at_work.progress.seconds_left == pytest.approx(10, rel=0.2) and at_work.progress.said == "FVU 0.1"
    detail = read_detail(tmp_path, "demo")
    assert 0 <= detail.run.seconds < 30
    assert detail.run.ended_at is not None
    assert abs(detail.run.ended_at.timestamp() - time.time()) < 30  # by the clock as it was at the end
    told = [line.text for line in detail.log if "tokens" not in line.text]
    assert told[1:] == ["before", "after", "stopped"]
    assert [line.text.split()[0] for line in detail.log if "tokens" in line.text] == ["1", "2"]


def test_a_log_of_an_older_version_has_no_negative_time(tmp_path: Path) -> None:
    files = training_files(tmp_path)
    events = [("started", 100000), ("stopped", 130), ("started", 200), ("stopped", 250)]
    files.events.write_text("".join(json.dumps({"event": name, "at": at}) + "\n" for name, at in events))
    assert read_run(tmp_path, "demo").seconds == 50


def test_a_session_goes_on_when_a_clock_that_was_ahead_is_put_right(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/s.db")
    secret = store.accounts.create_token("ana", "reader")
    session = store.accounts.begin_session(secret, days=1)
    assert session is not None
    with pytest.MonkeyPatch.context() as patch:
        jump(patch, 26 * HOUR)
        assert store.accounts.by_session(session, days=1) is None
        ahead = store.accounts.begin_session(secret, days=1)  # which tidies up
        assert ahead is not None and store.accounts.by_session(ahead, days=1) is not None
    assert store.accounts.by_session(session, days=1) is not None
    assert store.accounts.by_session(ahead, days=1) is None  # or it would last a day longer than any may
    assert store.accounts.by_token(secret) is not None
    with pytest.MonkeyPatch.context() as patch:
        jump(patch, -2 * HOUR)
        assert store.accounts.by_session(session, days=1) is None
        again = store.accounts.begin_session(secret, days=1)
        assert again is not None and store.accounts.by_session(again, days=1) is not None
        store.accounts.revoke_token("ana")
        assert store.accounts.by_token(secret) is None
    store.close()


@JUMPS
def test_a_rate_limit_does_not_follow_the_clock_of_the_day(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    limit = RateLimit(None, a_minute=2)  # type: ignore[arg-type]
    taken = [limit._takes("ana", now=time.monotonic()) for _ in range(2)]
    jump(monkeypatch, by)
    taken += [limit._takes("ana", now=time.monotonic()), limit._takes("eva", now=time.monotonic())]
    assert taken == [True, True, False, True]


@JUMPS
def test_an_endpoint_that_says_when_to_come_again_is_read_by_its_own_clock(by: float) -> None:
    theirs = datetime.now(UTC) + timedelta(seconds=by)
    at, now = (format_datetime(theirs + timedelta(seconds=s), usegmt=True) for s in (20, 0))
    assert _retry_after(httpx.Response(429, headers={"retry-after": at, "date": now})) == 20

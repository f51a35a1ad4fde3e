"""Ctrl-C: heard wherever it falls."""

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

import app.__main__
from sae_core.progress import interrupts_heard


class Thing:
    pass


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, as in a terminal; a shell starts its background jobs with deaf ears."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_ctrl_c_that_falls_into_a_callback_is_made_again() -> None:
    def callback(_: object) -> None:
        raise KeyboardInterrupt

    thing = Thing()
    reference = weakref.ref(thing, callback)
    with pytest.raises(KeyboardInterrupt), interrupts_heard():
        del thing
        time.sleep(5)
    assert reference() is None


@pytest.mark.usefixtures("ctrl_c")
def test_a_ctrl_c_of_which_a_library_makes_an_error_ends_the_command() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_heard():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("a part is missing") from None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_without_a_ctrl_c_stays_an_error() -> None:
    with pytest.raises(ImportError), interrupts_heard():
        raise ImportError("a part is missing")


def test_other_errors_of_callbacks_are_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def callback(_: object) -> None:
        raise ValueError("told")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(str(dropped.exc_value)))
    before = sys.unraisablehook
    thing = Thing()
    reference = weakref.ref(thing, callback)
    with interrupts_heard():
        del thing
    assert told == ["told"] and reference() is None
    assert sys.unraisablehook is before


@pytest.mark.slow
def test_ctrl_c_while_a_command_starts_ends_it(tmp_path: Path) -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from app import cli; real = cli.make_parser\n"
        "cli.make_parser = lambda: [print('here', flush=True), real()][1]  # main has been entered\n"
        "sys.exit(cli.main(['train', '--model', 'demo', '--layer', '3', '--corpus', 'python-docs']))\n"
    )
    environment = {**os.environ, "SAESCOPE_HOME": str(tmp_path)}
    for wait in (0.0, 0.05, 0.2, 0.4, 0.8):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130, said
        assert "Traceback" not in said


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_the_command_line_is_loaded_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class PressesCtrlC:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "app.cli":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "meta_path", [PressesCtrlC(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "app.cli", raising=False)
    monkeypatch.delattr(app, "cli", raising=False)
    assert app.__main__.main() == 130
    assert capsys.readouterr().err == "saescope: stopped.\n"


def test_the_command_line_is_loaded_without_what_only_its_commands_need() -> None:
    code = "import sys, app.cli; print([m for m in ('torch', 'fastapi', 'sqlalchemy', 'httpx') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"

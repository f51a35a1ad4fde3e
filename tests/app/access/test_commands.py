"""`saescope token`, `saescope visibility`, `saescope doctor`, and what a server says when it starts."""

from pathlib import Path

import pytest

from app import cli
from app.access.commands import who_may_come
from app.observe.doctor import examine
from app.settings import Settings
from sae_core.store import Store
from tests.factories import make_sae, make_store, make_vocabulary


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the factories' store in it, and no settings of the machine's own."""
    for name in Settings.__dataclass_fields__:
        monkeypatch.delenv(f"SAESCOPE_{name.upper()}", raising=False)
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path))
    make_store(f"sqlite:///{tmp_path}/saescope.db").close()
    return tmp_path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_a_token_is_made_shown_once_listed_and_revoked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "create", "ana", "--role", "editor"]) == 0
    secret = said(capsys).splitlines()[0]
    store = Store.open(f"sqlite:///{home}/saescope.db")
    found = store.accounts.by_token(secret)
    assert found is not None and (found.name, found.role) == ("ana", "editor")
    (entry,) = store.accounts.audit_trail()
    assert entry.name and entry.action.startswith("saescope")
    assert cli.main(["token", "create", "ana"]) == 2 and "already" in said(capsys)
    assert cli.main(["token", "list"]) == 0
    listed = said(capsys)
    assert "ana" in listed and "editor" in listed and "in use" in listed and secret not in listed
    assert cli.main(["token", "revoke", "ana"]) == 0 and "opens nothing" in said(capsys)
    assert store.accounts.by_token(secret) is None
    assert cli.main(["token", "revoke", "ana"]) == 2 and "token list" in said(capsys)
    for incomplete in ("create", "revoke"):
        assert cli.main(["token", incomplete]) == 2 and f"saescope token {incomplete} NAME" in said(capsys)
    store.close()


def test_who_finds_an_sae_is_said_and_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["visibility", "demo", "private"]) == 0 and "private" in said(capsys)
    assert cli.main(["visibility"]) == 0
    assert {tuple(line.split()) for line in said(capsys).splitlines()} == {("unindexed", "public"), ("demo", "private")}
    assert cli.main(["visibility", "nobody", "public"]) == 2 and "There is no SAE" in said(capsys)
    with pytest.raises(SystemExit):
        cli.main(["visibility", "demo", "secret"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""), ({"host": "0.0.0.0", "insecure": True}, "whoever reaches this address may"),
        ({"host": "0.0.0.0"}, "Nobody can log in yet"), ({"login": True, "visitors": True}, "read the 2 public SAEs"),
    ],
)  # fmt: skip
def test_a_server_says_who_may_come(home: Path, changed: dict[str, object], words: str) -> None:
    store = Store.open(f"sqlite:///{home}/saescope.db")
    sentence = who_may_come(Settings(home=home, **changed), store)  # type: ignore[arg-type]
    assert words in sentence and bool(words) == bool(sentence)
    store.accounts.create_token("ana", "admin")
    assert "Nobody can log in" not in who_may_come(Settings(home=home, host="0.0.0.0"), store)
    store.close()


def test_a_doctor_finds_what_is_wrong_and_says_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def problems(**changed: object) -> list[str]:
        return [f.text for f in examine(Settings(home=home, **changed)) if not f.is_well]  # type: ignore[arg-type]

    gone = problems()
    assert [text for text in gone if "GB free" not in text] == [
        f"The weights of {slug} are not at /data/saes/{slug}: its pages work, but no text can be probed; "
        "put them back there."
        for slug in ("unindexed", "demo")
    ]
    assert cli.main(["doctor"]) == 1 and "PROBLEM  The weights of demo" in said(capsys)
    store = Store.open(f"sqlite:///{home}/saescope.db")
    for slug in ("demo", "unindexed"):
        store.delete_sae(slug)
    weights = home / "weights"
    weights.mkdir()
    store.add_sae(make_sae("mine", weights_path=str(weights)), make_vocabulary())
    assert [text for text in problems() if "GB free" not in text] == []
    assert "saescope token create" in problems(host="0.0.0.0")[-1]
    assert "SAESCOPE_INSECURE" in problems(host="0.0.0.0", insecure=True)[-1]
    store.accounts.create_token("ana", "admin")
    assert [text for text in problems(host="0.0.0.0", visitors=True) if "GB free" not in text] == []
    store.close()
    assert problems(database_url="postgresql://ana:s3cret@127.0.0.1:1/db")[-1].startswith("The database postgresql")

"""The pages of an SAE of which only the dashboard is here, and the commands that bring one in and out."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app import cli
from app.dashboard_import import import_dashboard
from app.main import create_app
from app.settings import Settings
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.bulk_files import write_batch, write_bulk_files

SLUG = "gpt2-small-6-res-jb"
SENTENCE = "only the dashboard is here, without weights"


@pytest.fixture
def prober() -> FakeProber:
    return FakeProber()


@pytest.fixture
def client(tmp_path: Path, prober: FakeProber) -> Iterator[TestClient]:
    with closing(Store.open(f"sqlite:///{tmp_path}/saescope.db")) as store:
        import_dashboard(store, write_bulk_files(tmp_path / "bulk"), home=tmp_path)
        with TestClient(create_app(Settings(home=tmp_path), store=store, prober=prober)) as opened:
            yield opened


@pytest.mark.parametrize(
    "path",
    [
        "", "/features", "/features?view=table", "/features?q=wife", "/features/4", "/features/3", 
        "/features/4?embed=1",
        "/features/4/embed", "/features/4/card.png", "/features.csv",
    ],
)  # fmt: skip
def test_its_pages_work(path: str, client: TestClient) -> None:
    answer = client.get(f"/saes/{SLUG}{path}")

    assert answer.status_code == 200, answer.text[:300]
    assert ">nan<" not in answer.text.lower() and "NaN" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/", f"/compare?a={SLUG}/4&b={SLUG}/5", "/learn", "/search?q=wife", "/api/saes", f"/api/saes/{SLUG}",
        f"/api/saes/{SLUG}/features/4",
    ],
)  # fmt: skip
def test_pages_that_show_it_beside_others_work(path: str, client: TestClient) -> None:
    answer = client.get(path)

    assert answer.status_code == 200, answer.text[:300]
    assert ">nan<" not in answer.text.lower() and "NaN" not in answer.text


def test_what_was_not_in_the_files_says_so(client: TestClient) -> None:
    text = client.get(f"/saes/{SLUG}").text

    assert "a dashboard that was imported from files" in text
    assert text.count("not measured") >= 6
    assert "of the variance is not explained" not in text
    assert "saescope index" not in text  # there is nothing to run


def test_it_cannot_be_probed_and_every_way_there_says_why(client: TestClient, prober: FakeProber) -> None:
    assert "Probe" not in client.get(f"/saes/{SLUG}/features/4").text.split("</header>")[0]
    assert "Try it" not in client.get(f"/saes/{SLUG}/features/4").text
    empty = client.get(f"/saes/{SLUG}/probe")
    asked = client.get(f"/saes/{SLUG}/probe?text=hello")
    posted = client.post(f"/api/saes/{SLUG}/probe", json={"text": "hello"})
    walked = client.get(f"/api/learn?slug={SLUG}&text=hello")

    assert (empty.status_code, asked.status_code, posted.status_code, walked.status_code) == (200, 422, 422, 422)
    for answer in (empty, asked, posted, walked):
        assert SENTENCE in answer.text
    assert prober.texts == [] and prober.warmed == []


def test_a_feature_page_shows_the_tokens_and_the_explanation(client: TestClient) -> None:
    text = client.get(f"/saes/{SLUG}/features/0").text

    assert "royal persons" in text and "gpt-4o-mini" in text and " 海" in text
    assert "1 to 2" in text and "30.0% of firings" in text


def test_in_and_out_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SAESCOPE_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    bulk = write_bulk_files(tmp_path / "bulk")

    assert cli.main(["import", str(bulk)]) == 0
    assert f"Next: saescope serve, then open /saes/{SLUG}" in capsys.readouterr().out
    for form in ("neuronpedia", "csv", "parquet"):
        assert cli.main(["export", SLUG, "--format", form]) == 0
        assert "12 features with their examples." in capsys.readouterr().out
        assert (tmp_path / f"{SLUG}-{form}").is_dir()
    assert cli.main(["import", str(tmp_path / f"{SLUG}-neuronpedia"), "--slug", "again"]) == 0
    assert cli.main(["labels", "export", SLUG, "--output", "labels.csv"]) == 0
    assert "(2 labels)" in capsys.readouterr().out
    assert cli.main(["labels", "import", "again", "labels.csv"]) == 0
    assert "0 labels added, 0 replaced by later ones, 2 were here already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "bulk"], "not JSON"),
        (["import", "elsewhere"], "--model"),
        (["import", "elsewhere", "--format", "neuronpedia"], "no features/batch-N.jsonl.gz"),
        (["export", "--format", "csv"], "Name the SAE"),
        (["export", "nobody", "--format", "parquet"], "nobody"),
        (["export", "nobody", "--format", "neuronpedia", "--features", "1"], "--features"),
        (["eval", SLUG, "--corpus", "texts.txt"], SENTENCE),
        (["index", SLUG, "--corpus", "texts.txt"], SENTENCE),
        (["labels", "import", SLUG], "Name the file"),
        (["labels", "export", SLUG, "labels.csv"], "--output"),
        (["labels", "import", SLUG, "labels.txt"], "neither .jsonl nor .csv"),
        (["labels", "export", "nobody"], "nobody"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SAESCOPE_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("Some text.")
    cli.main(["import", str(write_bulk_files(tmp_path / "good"))])
    write_bulk_files(tmp_path / "bulk")
    write_batch(tmp_path / "bulk", "features", 2, ["{"])
    capsys.readouterr()

    assert cli.main(words) == 2

    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("saescope: ") and said in error, error

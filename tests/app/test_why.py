"""The page Why: parts that add up, the choice of token and target, and what was measured without the ticked rows."""

import json
import re
from html import unescape

import pytest
from starlette.testclient import TestClient

from app.causal.why_report import SHOWN_ROWS
from tests.app.fake_prober import FakeProber

TEXT = "the king of the whale hunters saw the sea and said"
WHY = "/saes/demo/why"


def rows(html: str) -> list[list[str]]:
    table = html.split('<table class="numbers parts why">')[1].split("</table>")[0]
    return [
        [
            unescape(re.sub(r"<span class=\"tip\".*?</span>|<[^>]+>", "", cell)).strip()
            for cell in re.split("</t[hd]>", row)
        ]
        for row in table.split("<tbody>")[1].split("<tr")[1:]
    ]


def as_number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def test_the_rows_of_the_page_add_up_to_the_twins_logit(client: TestClient) -> None:
    twin = client.get(f"/api{WHY}", params={"text": TEXT}).json()["attribution"]
    assert len(twin["features"]) > SHOWN_ROWS
    page = client.get(WHY, params={"text": TEXT}).text
    *parts, together = rows(page)
    assert len(parts) == SHOWN_ROWS + 1 + len(twin["others"])
    for column in (3, 4):
        assert sum(as_number(row[column]) for row in parts) == pytest.approx(as_number(together[column]), abs=0.15)
    assert as_number(together[4]) == pytest.approx(twin["explained"], abs=0.006)
    names = [row[1] for row in parts]
    first = twin["features"][0]["feature_index"]
    assert names[0] == f"#{first} {page_label(client, first)}".rstrip()
    assert names[-5:] == [
        f"{twin['n_features'] - SHOWN_ROWS} other features",
        "reconstruction error",
        "b_dec",
        "special tokens",
        "the rest",
    ]
    everything = client.get(WHY, params={"text": TEXT, "all": "1"}).text
    assert len(rows(everything)) == len(twin["features"]) + len(twin["others"]) + 1


def page_label(client: TestClient, feature_index: int) -> str:
    labels = client.get(f"/api/saes/demo/features/{feature_index}").json()["labels"]
    return labels[0]["text"] if labels else ""


def test_tokens_and_targets_can_be_picked_without_a_script(client: TestClient) -> None:
    page = unescape(client.get(WHY, params={"text": TEXT, "token": "3", "corpus": "stories"}).text)
    assert 'name="token" value="3"' in page and 'name="corpus" value="stories"' in page
    assert f"{WHY}?text={TEXT.replace(' ', '+')}&token=3&target=+sea&corpus=stories" in page
    chosen = unescape(client.get(WHY, params={"text": TEXT, "target": " sea", "against": " 中"}).text)
    assert 'name="target" value=" sea"' in chosen and 'name="against" value=" 中"' in chosen
    assert "is above that of" in chosen


def test_ticked_features_are_taken_out_and_measured(client: TestClient) -> None:
    twin = client.get(f"/api{WHY}", params={"text": TEXT}).json()["attribution"]
    first, second = (row["feature_index"] for row in twin["features"][:2])
    asked = {"text": TEXT, "ablate": [first, second]}
    cut = client.get(f"/api{WHY}", params=asked).json()["ablation"]
    assert cut["feature_indices"] == [first, second]
    page = client.get(WHY, params=asked).text
    assert page.count(" checked") == 2
    assert f"Without #{first} and #{second}" in page
    measured = {row[1].split()[0]: row[-2] for row in rows(page)}
    assert as_number(measured[f"#{first}"]) == pytest.approx(cut["alone"][0]["measured"], abs=0.006)
    assert "The gradient predicted" in page and "misleads" not in page
    assert client.get(f"/api{WHY}", params={"text": TEXT}).json()["ablation"] is None


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("text=busy", 503, "waiting for the model"),
        ("text=crash", 500, "unexpected error"),
        ("text=the&token=99", 422, "no token 99"),
        ("text=the&ablate=-1", 422, "ablate"),
        ("text=the&" + "&".join(f"ablate={i}" for i in range(17)), 422, "ablate"),
        ("text=%00", 422, "NUL"),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_sentence(
    query: str, status: int, sentence: str, client: TestClient
) -> None:
    for address in (f"{WHY}?{query}", f"/api{WHY}?{query}"):
        answer = client.get(address)
        assert answer.status_code == status
        assert sentence in unescape(answer.text)


def test_an_empty_text_explains_the_page_and_warms_the_model(client: TestClient, prober: FakeProber) -> None:
    page = client.get(WHY).text
    assert "takes the" in page and prober.warmed == ["demo"]
    answer = client.get(f"/api{WHY}")
    assert answer.status_code == 422 and "empty" in answer.text


def test_an_sae_without_an_index_is_explained_too(client: TestClient) -> None:
    page = client.get("/saes/unindexed/why", params={"text": TEXT}).text
    assert "/saes/unindexed/features/" not in page and len(rows(page)) > 5
    json.loads(client.get("/api/saes/unindexed/why", params={"text": TEXT}).text)

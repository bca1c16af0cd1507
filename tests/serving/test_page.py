"""The web page in a real browser: what it shows is what the API answers, by mouse, by keyboard and on a phone."""

import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from served import save_plain, with_attributes
from take_screenshot import serving

import sasrec

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: make browser installs it"),
]

SETTINGS: dict[str, Any] = {
    "embedding_dim": 16, "n_blocks": 1, "max_seq_len": 8, "threads": 1, "max_epochs": 6, "loss": "cross_entropy",
    "filter_seen": "yes",
}  # fmt: skip
SCRIPT = """<img src=x onerror="document.title='owned'">"""
TITLES = {3: SCRIPT, 4: 'O\'Brien & "Sons" </script>', 5: "Émile au café", 6: "The Sting", 7: "The Stingray"}
expect.set_options(timeout=10_000)
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
KEY = "s3cret kéy"


def title_of(item: int) -> str:
    return TITLES.get(item, f"Film {item}")


@pytest.fixture(scope="module")
def run(markov_log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose items have titles, some of them nasty."""
    folder = tmp_path_factory.mktemp("page") / "films"
    items = range(1, 31)
    titles = pl.DataFrame({"item_id": items, "title": [title_of(i) for i in items]})
    sasrec.fit(markov_log, titles=titles, output=folder, **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[str]:
    with serving(run) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens pages; in the end none of them may have met an error, a violated policy or another host."""
    contexts, faults = [], []

    def opened(address: str, fragment: str = "", faults_expected: str = "(?!)", **settings: Any) -> Page:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)

        def fault(text: str) -> None:
            if not re.search(faults_expected, text):
                faults.append(text)

        page.on("console", lambda message: message.type in ("error", "warning") and fault(message.text))
        page.on("pageerror", lambda error: fault(str(error)))
        page.on("request", lambda request: request.url.startswith(address + "/") or fault(f"asked for {request.url}"))
        page.goto(f"{address}/{fragment}")
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")  # calls may be on their way
        context.close()
    assert not faults


def api(address: str, path: str, body: Any = None) -> Any:
    """What the API answers, without the page."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/{path}", data), timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refused:
        return json.load(refused)


def recommended(address: str, history: list[Any], **filters: Any) -> list[str]:
    return names(api(address, "recommend", {"history": history, **filters}))


def names(answer: Any) -> list[str]:
    return [item.get("title", str(item["item_id"])) for item in answer["items"]]


def results(page: Page) -> Locator:
    return page.locator("#results .name")


def history(page: Page) -> Locator:
    """The history as the page shows it: newest first."""
    return page.locator("#history .name")


def add(page: Page, text: str) -> None:
    page.locator("#search-field").fill(text)
    page.locator("#search-field").press("Enter")
    expect(page.locator("#search-field")).to_have_value("")


def test_without_a_history_the_most_popular_items_are_shown_and_called_so(server: str, open_page: Open) -> None:
    page = open_page(server)
    expect(results(page)).to_have_text(recommended(server, []))
    expect(page.locator("#fallback")).to_contain_text("most popular")
    expect(page.locator("#results .number").first).to_contain_text("events")
    expect(page.locator("#history-empty")).to_be_visible()


def test_typing_finds_items_and_the_arrows_and_enter_choose_one(server: str, open_page: Open) -> None:
    page = open_page(server)
    field, options = page.get_by_role("combobox", name="Add an item"), page.get_by_role("option")
    field.press_sequentially("the sting", delay=20)
    expect(options).to_have_count(3)  # two films, and the words as an id
    expect(field).to_have_attribute("aria-expanded", "true")
    field.press("ArrowDown")
    expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    expect(field).to_have_attribute("aria-activedescendant", options.nth(1).get_attribute("id") or "")
    chosen = options.nth(1).locator(".option-name").inner_text()
    field.press("ArrowDown")
    field.press("ArrowDown")  # beyond the last is the first
    expect(options.nth(0)).to_have_attribute("aria-selected", "true")
    field.press("ArrowDown")
    field.press("Enter")
    expect(history(page)).to_have_text([chosen])
    expect(field).to_be_focused()
    expect(field).to_have_value("")
    expect(field).to_have_attribute("aria-expanded", "false")
    item = next(i for i, title in TITLES.items() if title == chosen)
    expect(results(page)).to_have_text(recommended(server, [item]))


def test_escape_closes_the_list_and_then_empties_the_field(server: str, open_page: Open) -> None:
    page = open_page(server)
    field = page.locator("#search-field")
    field.press_sequentially("film")
    expect(page.get_by_role("listbox")).to_be_visible()
    field.press("Escape")
    expect(page.get_by_role("listbox")).to_be_hidden()
    expect(field).to_have_value("film")
    field.press("Escape")
    expect(field).to_have_value("")


def test_enter_before_the_list_has_come_takes_its_first(server: str, open_page: Open) -> None:
    page = open_page(server)
    field = page.locator("#search-field")
    field.fill("film 1")
    expect(page.get_by_role("option").first).to_be_visible()
    field.fill("emile cafe")  # accents do not matter
    field.press("Enter")
    expect(history(page)).to_have_text(["Émile au café"])


def test_ids_are_typed_or_pasted_and_an_exact_one_comes_first(server: str, open_page: Open) -> None:
    page = open_page(server)
    add(page, "7")
    expect(history(page)).to_have_text(["The Stingray"])
    add(page, "6, 5")
    expect(history(page)).to_have_text(["Émile au café", "The Sting", "The Stingray"])
    expect(results(page)).to_have_text(recommended(server, [7, 6, 5]))


def test_the_plus_beside_an_item_adds_it_and_back_takes_it_away(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10")
    before = recommended(server, [10])
    expect(results(page)).to_have_text(before)
    first = before[0]
    page.get_by_role("button", name=f"Add {first} to the history").click()
    expect(history(page)).to_have_text([first, "Film 10"])
    item = api(server, "recommend", {"history": [10]})["items"][0]["item_id"]
    after = recommended(server, [10, item])
    expect(results(page)).to_have_text(after)
    moved = page.locator("#results .row", has_text=after[0]).locator(".moved")
    by = before.index(after[0]) - 0 if after[0] in before else None
    expect(moved).to_have_text("new" if by is None else re.compile(f"{by}$"))
    page.go_back()
    expect(history(page)).to_have_text(["Film 10"])
    expect(results(page)).to_have_text(before)


def test_scores_are_the_models_and_bars_are_their_shares(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10,20")
    scores = [item["score"] for item in api(server, "recommend", {"history": [10, 20]})["items"]]
    shown = page.locator("#results .number")
    expect(shown).to_have_count(10)
    read = [float(text.replace("\u2212", "-")) for text in shown.all_inner_texts()]
    assert read == pytest.approx(scores, abs=6e-3, rel=1e-3)
    widths = page.locator("#results .fill").evaluate_all("fills => fills.map(fill => parseFloat(fill.style.width))")
    low, high = min(0.0, *scores), max(0.0, *scores)
    assert widths == pytest.approx([max(100 * (s - low) / (high - low), 1) for s in scores], abs=0.01)


def test_the_history_is_reordered_and_shortened_and_the_focus_stays(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10,11,12,10")
    expect(history(page)).to_have_text(["Film 10", "Film 12", "Film 11", "Film 10"])
    up = page.get_by_role("button", name="Make Film 11 newer")
    up.press("Enter")
    expect(history(page)).to_have_text(["Film 10", "Film 11", "Film 12", "Film 10"])
    expect(up).to_be_focused()
    expect(results(page)).to_have_text(recommended(server, [10, 12, 11, 10]))
    page.get_by_role("button", name="Make Film 12 older").click()
    expect(history(page)).to_have_text(["Film 10", "Film 11", "Film 10", "Film 12"])
    page.get_by_role("button", name="Remove Film 11").press("Enter")
    expect(history(page)).to_have_text(["Film 10", "Film 10", "Film 12"])
    expect(page.get_by_role("button", name="Remove Film 10").nth(1)).to_be_focused()
    expect(results(page)).to_have_text(recommended(server, [12, 10, 10]))
    page.get_by_role("button", name="Clear").click()
    expect(history(page)).to_have_count(0)
    expect(page.locator("#search-field")).to_be_focused()


def test_what_is_too_old_for_the_model_is_marked(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=" + ",".join(map(str, [*range(10, 19), "nobody"])))
    expect(page.locator("#history .off .name")).to_have_text(["nobody", "Film 10"])
    expect(page.locator("#history .off .id")).to_have_text(["not known", "too old to be read"])


def test_each_recommendation_has_the_reason_that_the_api_gives(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10,20,3")
    for place, item in enumerate(api(server, "recommend", {"history": [10, 20, 3]})["items"][:5]):
        reasons = api(server, "explain", {"history": [10, 20, 3], "item_id": item["item_id"]})["reasons"]
        helping = [reason["title"] for reason in reasons if reason["contribution"] > 0][:2]
        text = "because of " + " and ".join(helping) if helping else "not because of any single item"
        expect(page.locator("#results .why").nth(place)).to_have_text(text)


def test_an_items_sheet_tells_why_and_what_is_like_it(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10,20")
    best = api(server, "recommend", {"history": [10, 20]})["items"][0]
    opener = page.get_by_role("button", name=best["title"], exact=True)
    opener.click()
    sheet = page.get_by_role("dialog", name=best["title"])
    expect(sheet).to_be_visible()
    similar = api(server, f"items/{best['item_id']}/similar")
    expect(sheet.locator(".similar .name")).to_have_text(names(similar))
    reasons = api(server, "explain", {"history": [10, 20], "item_id": best["item_id"]})["reasons"]
    expect(sheet.locator(".reasons .name")).to_have_text([reason["title"] for reason in reasons])
    shown = [float(t.replace("\u2212", "-")) for t in sheet.locator(".reasons .number").all_inner_texts()]
    assert shown == pytest.approx([reason["contribution"] for reason in reasons], abs=6e-4)
    sheet.locator(".similar .name").first.click()
    expect(page.locator("#sheet-title")).to_contain_text(similar["items"][0]["title"])
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    expect(opener).to_be_focused()
    expect(page).to_have_url(f"{server}/#h=10,20")


def test_a_sheet_changes_history_and_filters_and_keeps_the_focus(server: str, open_page: Open) -> None:
    page = open_page(server, "#i=12")
    expect(page.locator("#sheet-title")).to_contain_text("Film 12")
    page = open_page(server, "#h=10&i=12")
    expect(page.locator("#sheet-title")).to_contain_text("Film 12")
    never = page.get_by_role("button", name="Never recommend", exact=True)
    never.press("Enter")
    expect(never).to_have_attribute("aria-pressed", "true")
    expect(never).to_be_focused()
    page.get_by_role("button", name="Add to history", exact=True).click()
    expect(page.get_by_role("button", name="Add to history again")).to_be_focused()
    page.keyboard.press("Escape")
    expect(history(page)).to_have_text(["Film 12", "Film 10"])
    page.locator("#filters summary").click()
    expect(page.locator("#deny-chips .name")).to_have_text(["Film 12"])


def test_filters_do_what_they_say(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10,11")
    page.locator("#filters summary").click()
    page.get_by_label("How many").fill("4")
    expect(results(page)).to_have_text(recommended(server, [10, 11], k=4))
    page.get_by_label("Items already met").select_option("show")
    expect(results(page)).to_have_text(recommended(server, [10, 11], k=4, keep_seen=True))
    for item in (10, 6, 21, 22, 23):
        page.locator("#allow-field").fill(str(item))
        page.locator("#allow-field").press("Enter")
        expect(page.locator("#allow-chips .name").last).to_have_text(title_of(item))
    allow = [10, 6, 21, 22, 23]
    expect(results(page)).to_have_text(recommended(server, [10, 11], k=4, keep_seen=True, allow=allow))
    worst, second = results(page).all_inner_texts()[:2]
    page.get_by_role("button", name=f"Never recommend {worst}").press("Enter")
    expect(page.locator("#deny-chips .name")).to_have_text([worst])
    expect(results(page).first).to_have_text(second)
    expect(page.get_by_role("button", name=f"Never recommend {second}")).to_be_focused()  # it took the row's place
    expect(page.locator("#filter-count")).to_have_text("8 set")
    page.get_by_role("button", name=f"Take {worst} off the list").last.click()
    expect(page.locator("#deny-chips .name")).to_have_count(0)


def test_nothing_left_after_the_filters_is_said(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10&a=11&d=11")
    expect(page.locator("#results-empty")).to_be_visible()
    expect(results(page)).to_have_count(0)


def test_a_user_of_the_log_gets_the_users_recommendations(server: str, open_page: Open) -> None:
    page = open_page(server, faults_expected="404")
    page.get_by_text("A user of the log").click()
    expect(page.get_by_label("User id")).to_be_focused()
    page.get_by_label("User id").fill("17")
    page.get_by_label("User id").press("Enter")
    expect(results(page)).to_have_text(names(api(server, "users/17/recommendations")))
    expect(page.locator("#results .why:visible")).to_have_count(0)
    page.get_by_label("User id").fill("nobody")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#error-text")).to_have_text(api(server, "users/nobody/recommendations")["error"])
    expect(results(page)).to_have_count(0)
    page.reload()
    expect(page.get_by_label("User id")).to_have_value("nobody")


def test_unknown_items_are_named_and_a_history_of_them_falls_back(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10")
    add(page, "no such film")
    expect(page.locator("#unknown")).to_contain_text("\u201cno such film\u201d")
    expect(results(page)).to_have_text(recommended(server, [10, "no such film"]))
    page.get_by_role("button", name="Remove Film 10").click()
    expect(page.locator("#fallback")).to_contain_text("knows none of these items")
    expect(results(page)).to_have_text(recommended(server, []))


def test_an_address_holds_the_whole_view(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10")
    add(page, "a,b c&d=e#f%")  # three ids that need care in an address
    page.locator("#filters summary").click()
    page.get_by_label("How many").fill("3")
    expect(results(page)).to_have_count(3)
    other = open_page(server, page.url[len(server) + 1 :])
    expect(history(other)).to_have_text(["b c&d=e#f%", "a", "Film 10"])
    expect(results(other)).to_have_text(recommended(server, [10], k=3))
    assert page.url.startswith(server + "/#")  # nothing of it is sent to the server


@pytest.mark.parametrize("fragment", ["#h=%E0%A4&k=0&s=x&m=y&q&=", "#h=,,&a=&k=1e9", "#" + "h" * 5000])
def test_a_damaged_address_is_read_as_far_as_it_goes(fragment: str, server: str, open_page: Open) -> None:
    page = open_page(server, fragment)
    expect(results(page)).to_have_count(10)


def test_markup_in_titles_and_ids_is_text_everywhere(server: str, open_page: Open) -> None:
    page = open_page(server, f"#h=3,4,{urllib.parse.quote(SCRIPT)}&d=3&a=3,4,9&i=3")
    expect(page.locator("#sheet-title")).to_contain_text(SCRIPT)
    expect(page.locator("#sheet .similar .name").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(history(page)).to_have_text([SCRIPT, TITLES[4], SCRIPT])
    expect(page.locator("#unknown")).to_contain_text(SCRIPT)
    expect(page.locator("#deny-chips .name")).to_have_text([SCRIPT])
    page.locator("#search-field").press_sequentially("onerror")
    expect(page.get_by_role("option").first).to_contain_text(SCRIPT)
    listed = open_page(server, "#h=3&a=3,4&s=show")
    expect(results(listed)).to_have_text(recommended(server, [3], allow=[3, 4], keep_seen=True))
    expect(listed.locator("#results .why").first).to_have_text(f"because of {SCRIPT}")
    for seen in (page, listed):
        assert seen.locator("img").count() == 0
        assert "owned" not in seen.title()


def test_each_call_is_shown_with_its_time_in_browser_and_server(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10")
    expect(page.locator("#took")).to_have_text(re.compile(r"^[\d.]+ ms, server [\d.]+ ms$"))
    page.locator("#calls-box summary").click()
    row = page.locator("#calls tbody tr", has_text="POST /v1/recommend").first
    status, histories, browser_ms, server_ms = row.locator(".figure").all_inner_texts()
    assert (status, histories) == ("200", "1")
    assert 0 < float(server_ms) <= float(browser_ms)
    expect(page.locator("#curl")).to_contain_text(f"{server}/v1/recommend")
    expect(page.locator("#curl")).to_contain_text('{"history":["10"],"k":10}')


def test_facts_of_model_and_data_are_shown(server: str, open_page: Open) -> None:
    page = open_page(server)
    facts = api(server, "model")
    expect(page.locator("#summary")).to_contain_text("30 items, 200 users, 2,400 events")
    expect(page.locator("#summary")).to_contain_text(facts["model_version"])
    page.locator("#model-box summary").click()
    expect(page.locator("#model dl")).to_contain_text("the newest 8 items")
    metric = facts["results"][-1]["metrics"]["ndcg@10"]["value"]
    expect(page.locator("#model table").last).to_contain_text(f"{metric:.4f}".lstrip("0"))


def test_another_model_is_noticed(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10")
    expect(results(page)).to_have_count(10)

    def renamed(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "model_version": "newmodel"})

    page.route("**/v1/*", renamed)
    add(page, "11")
    expect(page.locator("#summary")).to_contain_text("newmodel")
    expect(results(page)).to_have_text(recommended(server, [10, 11]))


def test_503_is_tried_again_as_the_server_says(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10", faults_expected="503")
    expect(results(page)).to_have_count(10)
    refusal = {"status": 503, "headers": {"Retry-After": "1"}, "body": '{"error": "too many requests wait"}'}
    page.route("**/v1/recommend", lambda route: route.fulfill(**refusal), times=1)
    add(page, "11")
    expect(page.locator("#notice")).to_have_text("The server says: too many requests wait. Trying again in 1 s.")
    expect(results(page)).to_have_text(recommended(server, [10, 11]))
    expect(page.locator("#notice")).to_be_hidden()


def test_errors_are_shown_in_the_apis_words(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10&k=5000", faults_expected="422")
    expect(page.locator("#error-text")).to_have_text(api(server, "recommend", {"history": [10], "k": 5000})["error"])
    page.get_by_label("How many").fill("5")
    expect(page.locator("#error")).to_be_hidden()
    expect(results(page)).to_have_text(recommended(server, [10], k=5))


def test_a_server_that_is_gone_is_said_and_tried_again(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10", faults_expected="ERR_INTERNET_DISCONNECTED")
    expect(results(page)).to_have_count(10)
    page.context.set_offline(True)
    page.locator("#results .icon").first.click()
    expect(page.locator("#error-text")).to_contain_text("the server does not answer")
    expect(page.locator("#results")).to_have_css("opacity", "0.45")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#results")).to_have_css("opacity", "1")


def test_an_api_key_is_asked_for_and_kept_in_the_tab_only(
    run: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SASREC_API_KEY", KEY)
    with serving(run) as address:
        page = open_page(address, "#h=10", faults_expected="401")
        dialog = page.get_by_role("dialog", name="This server wants an API key")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#error-text")).to_have_text(api(address, "model")["error"])
        page.get_by_role("button", name="Try again").click()
        page.get_by_label("API key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_label("API key", exact=True)).to_have_value("")
        expect(dialog).to_contain_text(api(address, "model")["error"])
        page.get_by_label("API key", exact=True).fill(KEY)
        page.get_by_role("button", name="Use key").click()
        expect(results(page)).to_have_count(10)
        expect(page.locator("#curl")).not_to_contain_text(KEY)
        page.reload()
        expect(results(page)).to_have_count(10)
        assert page.evaluate("JSON.stringify([localStorage, document.cookie])") == '[{},""]'
        assert "s3cret" not in page.url
        page.get_by_role("button", name="Forget key").click()
        expect(dialog).to_be_visible()


def test_a_model_without_titles_and_with_ids_of_any_kind_is_usable(tmp_path: Path, open_page: Open) -> None:
    ids = ["a/b", "x,y", "日本 42", "50%", "../up", "?q=1#2", "é&ß", "<b>", *(f"id {i}" for i in range(8))]
    log = pl.DataFrame(
        [(f"u{u}/x", ids[(u + i) % len(ids)]) for u in range(60) for i in range(8)],
        schema=["user_id", "item_id"], orient="row",
    )  # fmt: skip
    sasrec.fit(log, output=tmp_path / "run", **SETTINGS)
    with serving(tmp_path / "run") as address:
        page = open_page(address)
        for item in ids[:8]:
            page.locator("#search-field").fill(item)
            page.get_by_role("option").filter(has_text=item).first.click()
        expect(history(page)).to_have_text(ids[7::-1])
        expect(results(page)).to_have_text(recommended(address, ids[:8]))
        expect(page.locator("#results .id").first).to_have_text("")
        page.reload()
        expect(history(page)).to_have_text(ids[7::-1])
        for item in ("日本 42", "a/b", "?q=1#2", "../up"):
            page.locator("#history").get_by_role("button", name=item, exact=True).click()
            quoted = urllib.parse.quote(item, safe="")
            expect(page.locator("#sheet .similar .name")).to_have_text(names(api(address, f"items/{quoted}/similar")))
            page.keyboard.press("Escape")
        page.get_by_text("A user of the log").click()
        page.get_by_label("User id").fill("u7/x")
        page.keyboard.press("Enter")
        expect(results(page)).to_have_text(names(api(address, "users/u7%2Fx/recommendations")))


def test_integer_ids_beyond_2_to_the_53_stay_exact(server: str, open_page: Open) -> None:
    page = open_page(server)
    read = page.evaluate("""import('./static/api.js').then(({parseJson}) =>
        parseJson('{"a": 9007199254740993, "b": [-9007199254740995, 12, 1.5, 1e300]}'))""")
    assert read == {"a": "9007199254740993", "b": ["-9007199254740995", 12, 1.5, 1e300]}


def test_all_of_it_goes_by_keyboard(server: str, open_page: Open) -> None:
    page = open_page(server)
    expect(results(page)).to_have_count(10)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the recommendations")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(results(page).first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(results(page).nth(1)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")  # the plus of the first
    popular = recommended(server, [])
    expect(history(page)).to_have_text(popular[:1])
    page.keyboard.press("/")
    expect(page.locator("#search-field")).to_be_focused()
    page.keyboard.type("film 12")
    expect(page.get_by_role("option").first).to_be_visible()
    page.keyboard.press("Enter")
    expect(history(page)).to_have_text(["Film 12", popular[0]])
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(results(page)).to_have_count(10)
    page.keyboard.press("Enter")
    expect(page.locator("#sheet-title")).to_be_focused()
    page.keyboard.press("Escape")
    expect(results(page).first).to_be_focused()


def test_a_phone_of_360_pixels_needs_no_sideways_scrolling(server: str, open_page: Open) -> None:
    page = open_page(server, "#h=3,4,5,10,nobody&a=3,4,9,12,13,14,15&d=9&i=12", **PHONE)
    expect(page.locator("#sheet .similar .name").first).to_be_visible()
    wide = "document.documentElement.scrollWidth + ' ' + document.getElementById('sheet').scrollWidth"
    assert page.evaluate(wide) == "360 360"
    page.locator("#sheet-close").tap()
    for box in ("#model-box", "#calls-box"):
        page.locator(f"{box} summary").tap()
    expect(results(page).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    sizes = page.locator("button:visible:not(.name)").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(box => Math.min(box.width, box.height))"
    )
    assert min(sizes) >= 32
    page.locator("#search-field").tap()
    page.locator("#search-field").fill("stingray")
    page.get_by_role("option", name="The Stingray").tap()
    expect(history(page).first).to_have_text("The Stingray")


def brightness(page: Page) -> float:
    """Of the page's ground, from 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
    return sum(channels) / 3


def test_the_theme_follows_the_device_until_one_is_chosen(server: str, open_page: Open) -> None:
    page = open_page(server, color_scheme="dark")
    assert brightness(page) < 50
    page.emulate_media(color_scheme="light")
    assert brightness(page) > 200
    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    assert brightness(page) < 50
    page.reload()
    assert brightness(page) < 50
    expect(button).to_have_text("Theme: dark")
    button.click()
    expect(button).to_have_text("Theme: system")
    assert brightness(page) > 200


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_those_who_want_it_still(motion: Any, server: str, open_page: Open) -> None:
    page = open_page(server, "#h=10", reduced_motion=motion)
    expect(page.locator("#results .why b").first).to_be_visible()
    page.evaluate("() => { window.moves = 0; Element.prototype.animate = () => { window.moves += 1 } }")
    page.locator("#results .icon").first.click()
    expect(history(page)).to_have_count(2)
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    transitions = page.locator("#results .fill").first.evaluate("fill => getComputedStyle(fill).transitionDuration")
    assert (page.evaluate("window.moves") > 0) == (motion == "no-preference")
    assert (transitions != "0s") == (motion == "no-preference")


@pytest.mark.parametrize(
    "settings", [{"color_scheme": "light"}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"]
)
def test_accessibility_rules_and_contrast_hold(settings: dict[str, Any], server: str, open_page: Open) -> None:
    page = open_page(server, "#h=3,10,nobody&a=9,12,13,14&d=9&k=5", reduced_motion="reduce", **settings)
    results(page).first.scroll_into_view_if_needed()
    expect(page.locator("#results .why").first).not_to_be_empty()
    for box in ("#model-box", "#calls-box"):
        page.locator(f"{box} summary").click()
    assert_accessible(page)
    page.locator("#search-field").fill("film")
    expect(page.get_by_role("option").first).to_be_visible()
    assert_accessible(page)
    page.locator("#search-field").press("Escape")
    results(page).first.click()
    expect(page.locator("#sheet .similar .name").first).to_be_visible()
    assert_accessible(page)


def assert_accessible(page: Page) -> None:
    """No violation of the rules of WCAG 2.2 A and AA that axe can tell."""
    found = Axe().run(
        page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    )
    assert found.violations_count == 0, found.generate_report()


@pytest.fixture(scope="module")
def goods(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same model, whose items have a genre and a price."""
    folder = tmp_path_factory.mktemp("goods") / "run"
    save_plain(with_attributes(sasrec.load(run)), folder)
    with serving(folder) as address:
        yield address


def test_an_expression_filters_and_is_in_the_address(goods: str, open_page: Open) -> None:
    page = open_page(goods, "#h=10")
    page.locator("#filters > summary").click()
    expect(page.locator("#where-hint")).to_contain_text("genre (text), price (number), tags (text, list)")
    field, where = page.get_by_label("Only items where"), "genre = 'drama' and price < 20"
    field.fill(where)
    field.press("Enter")
    expected = recommended(goods, [10], where=where)
    assert expected != recommended(goods, [10])
    expect(results(page)).to_have_text(expected)
    expect(page.locator("#filter-count")).to_have_text("1 set")
    assert f"w={urllib.parse.quote(where, safe='')}" in page.evaluate("location.hash").replace("'", "%27")
    expect(page.locator("#curl")).to_contain_text(json.dumps(where).replace("'", "'\\''"))
    page.go_back()
    expect(results(page)).to_have_text(recommended(goods, [10]))
    shared = open_page(goods, f"#m=user&u=17&w={urllib.parse.quote(where)}&k=3")
    given = {"where": where, "k": 3}
    expect(results(shared)).to_have_text(names(api(goods, f"users/17/recommendations?{urllib.parse.urlencode(given)}")))
    expect(shared.get_by_label("Only items where")).to_have_value(where)


def test_what_is_wrong_with_an_expression_stands_below_its_field(goods: str, open_page: Open) -> None:
    page = open_page(goods, "#h=10&w=prise+%3C+3", faults_expected="422")
    field, error = page.get_by_label("Only items where"), page.locator("#where-error")
    expect(error).to_contain_text("where, character 1: ")
    field.fill("prise < 3")
    field.press("Enter")
    expect(error).to_contain_text("none has this name, perhaps price is meant; the columns are title (text), genre")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#error-text")).to_contain_text("The expression under Filters does not fit")
    assert not Axe().run(page).response["violations"]
    field.fill("price < 3")
    field.press("Enter")
    expect(results(page)).to_have_text(recommended(goods, [10], where="price < 3"))
    expect(error).to_be_hidden()
    expect(field).to_have_attribute("aria-invalid", "false")
    field.fill("")
    field.press("Enter")
    expect(results(page)).to_have_text(recommended(goods, [10]))


def test_diversity_is_a_slider_and_in_the_address(goods: str, open_page: Open) -> None:
    page = open_page(goods, "#h=10")
    page.locator("#filters > summary").click()
    slider = page.get_by_label("Diversity")
    slider.focus()
    for _ in range(18):
        slider.press("ArrowRight")
    expect(page.locator("#diversity-value")).to_have_text("0.9")
    expected = recommended(goods, [10], diversity=0.9)
    assert expected != recommended(goods, [10])
    expect(results(page)).to_have_text(expected)
    assert page.evaluate("location.hash") == "#h=10&v=0.9"
    expect(results(open_page(goods, "#h=10&v=0.9"))).to_have_text(expected)


@pytest.fixture(scope="module")
def measuring(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that measures two models, with some lists and feedback."""
    file = tmp_path_factory.mktemp("measuring") / "f.db"
    with serving(run, "--feedback", file, "--challenger", f"{run}:0.5") as address:
        requests = [{"history": [7], "user_id": user} for user in range(60)]
        for place, answer in enumerate(api(address, "recommend", {"requests": requests})["results"]):
            for kind in ["click"] * (place % 2) + ["buy"] * (place % 4 == 0):
                item = answer["items"][0]["item_id"]
                api(
                    address,
                    "feedback",
                    {"kind": kind, "item_id": item, "recommendation_id": answer["recommendation_id"]},
                )
        yield address


def percent(share: float) -> str:
    """As a browser rounds it: half of a digit goes up, where Python's formats go to the even one."""
    return f"{Decimal(100 * share).quantize(Decimal('0.1'), ROUND_HALF_UP)} %"


def test_hit_rates_and_coverage_are_shown_as_the_api_tells_them(measuring: str, open_page: Open) -> None:
    page = open_page(measuring, "#h=7,6&i=5")
    expect(results(page)).to_have_text(recommended(measuring, [7, 6], shown=False))
    page.locator("#sheet-close").click()
    page.get_by_text("What came of the lists").click()
    told = {version["arm"]: version for version in api(measuring, "online")["versions"]}
    expect(page.locator("#online thead th")).to_have_text(
        ["Version", "Arm", "Lists", "Catalogue shown", "any", "buy", "click"]
    )
    for arm, version in told.items():
        row = page.locator("#online tbody tr", has_text=f"{arm}, now")
        expect(row.locator("td").nth(1)).to_have_text(str(version["exposures"]))
        expect(row.locator("td").nth(2)).to_have_text(percent(version["coverage"]))
        expect(row.locator("td").nth(3)).to_have_text(percent(version["any"]["hit_rate"]))
    assert sum(version["exposures"] for version in told.values()) == 60  # none of this page's own
    page.get_by_text("Model and data").click()
    expect(page.locator("#model")).to_contain_text(f"{told['challenger']['model_version']}, for 50 % of the users")
    assert_accessible(page)


def test_the_figures_fit_a_phone_and_a_server_that_does_not_measure_has_none(
    measuring: str, server: str, open_page: Open
) -> None:
    page = open_page(measuring, **PHONE)
    page.get_by_text("What came of the lists").click()
    expect(page.locator("#online tbody tr")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    plain = open_page(server)
    expect(results(plain)).to_have_count(10)
    expect(plain.locator("#online-box")).to_be_hidden()

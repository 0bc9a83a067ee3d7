"""The page in Debian's Chromium, against a real server: as one uses it, and as it goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, Route, expect, sync_playwright

from tests.serving.generated import HOSTILE
from tests.serving.process import Running, free_port, scorer, started

CHROMIUM: Final = "/usr/bin/chromium"
PICTURES: Final = Path(__file__).resolve().parents[2] / "deploy" / "images"
DESKTOP: Final = {"width": 1280, "height": 860}
PHONE: Final = {"width": 375, "height": 740}
TOKEN: Final = "a secret"

ROWS: Final = ".rec:not(.ghost)"
Open = Callable[..., Page]


@pytest.fixture(scope="session")
def server(page_bundle: Path) -> Iterator[Running]:
    """A server with the settings of a fresh clone."""
    with scorer(page_bundle) as running:
        yield running


@pytest.fixture(scope="session")
def other_server(page_bundle: Path) -> Iterator[Running]:
    """A server that wants a token, and allows Spotify's player."""
    with scorer(page_bundle, token=TOKEN, embed="true") as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; Playwright downloads none of its own."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        # the sandbox needs rights that root in a container has not
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, server: Running) -> Iterator[Open]:
    """Opens the page in a context of its own. No script may fail, and nothing may violate its policy."""
    faults: list[str] = []
    contexts = []

    def heard(message: ConsoleMessage) -> None:
        # Chromium reports statuses such as 503 as errors
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            faults.append(message.text)

    def opened(
        fragment: str = "",
        *,
        viewport: dict[str, int] = DESKTOP,
        dark: bool = False,
        moving: bool = False,
        scale: float = 1,
        url: str = server.url,
        before: Callable[[Page], None] | None = None,
        ready: bool = True,
    ) -> Page:
        context = browser.new_context(
            viewport=viewport,  # type: ignore[arg-type]
            color_scheme="dark" if dark else "light",
            reduced_motion="no-preference" if moving else "reduce",
            device_scale_factor=scale,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", heard)
        page.on("pageerror", lambda error: faults.append(str(error)))
        if before is not None:
            before(page)
        page.goto(f"{url}/{fragment}")
        if ready:
            settled(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def settled(page: Page) -> None:
    """Wait until recommendations are shown that belong to the playlist."""
    expect(page.locator(".ghost")).to_have_count(0, timeout=20_000)
    expect(page.locator(".column.waiting")).to_have_count(0, timeout=20_000)


def until(page: Page, condition: str) -> None:
    """Wait for a condition; Playwright's own way evaluates text in the page, which its policy forbids."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never: {condition}")


def uris(rows: Locator) -> list[str]:
    return [str(uri) for uri in rows.evaluate_all("rows => rows.map(row => row.dataset.uri)")]


def playlist(page: Page) -> list[str]:
    """The URIs of the playlist's tracks."""
    return uris(page.locator("#tracks > li"))


def recommended(page: Page, column: int = 0) -> list[str]:
    """The URIs of what is recommended."""
    return uris(page.locator(".column").nth(column).locator(ROWS))


def names(page: Page) -> list[str]:
    return page.locator("#tracks .name").all_inner_texts()


def api(server: Running, path: str) -> Any:
    """The answer of the API to a GET request."""
    connection = server.connection()
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def popular(server: Running, n: int) -> list[str]:
    return [str(track["uri"]) for track in api(server, f"/api/tracks?n={n}")["tracks"]]


def fragment_of(uris: list[str], title: str = "", more: str = "") -> str:
    ids = "".join(uri.removeprefix("spotify:track:") for uri in uris)
    return f"#p={ids}" + (f"&t={title}" if title else "") + more


# --- at once, and while one builds a playlist


def test_it_is_alive_at_once(open_page: Open) -> None:
    page = open_page()
    assert len(playlist(page)) == 5
    assert len(recommended(page)) == 20
    expect(page.locator("#example")).to_be_visible()
    row = page.locator(ROWS).first
    expect(row.locator(".artist")).not_to_be_empty()
    expect(row.locator(".why")).to_have_text(re.compile("^Goes with ."))
    reasons = set(page.locator(".why em").all_inner_texts())
    assert reasons <= set(names(page))
    expect(page.locator(".column .meta").first).to_have_text(re.compile(r"^ranker version \w+ · [\d.]+ ms$"))
    page.get_by_role("button", name="start from scratch").click()
    expect(page.locator("#playlist-empty")).to_be_visible()
    expect(page.locator("#example")).to_be_hidden()


def test_a_playlist_is_built_by_searching(open_page: Open, server: Running) -> None:
    page = open_page()
    page.get_by_role("button", name="Clear").click()
    track = api(server, "/api/tracks?n=1")["tracks"][0]
    search = page.locator("#search")
    search.press_sequentially(track["name"][:3].upper())
    option = page.get_by_role("listbox").get_by_role("option", name=track["name"]).first
    expect(option.locator("mark").first).to_be_visible()
    option.click()
    expect(search).to_have_value("")
    expect(search).to_be_focused()
    settled(page)
    assert playlist(page) == [track["uri"]]
    assert len(recommended(page)) == 20
    search.fill(track["name"])
    expect(page.get_by_role("listbox").get_by_role("option", name=track["name"]).first.locator(".tag")).to_have_text(
        "in playlist"
    )
    search.press("Enter")
    expect(page.locator("#toast-text")).to_have_text(f"{track['name']} is in the playlist already.")
    assert playlist(page) == [track["uri"]]


def test_what_the_playlist_has_is_never_recommended(open_page: Open) -> None:
    page = open_page()
    for i in range(4):
        chosen = recommended(page)[i]
        page.locator(ROWS).nth(i).locator(".add").click()
        # at once, before the server has answered
        assert chosen not in recommended(page)
        assert playlist(page)[-1] == chosen
        settled(page)
        assert len(recommended(page)) == 20
        assert not set(recommended(page)) & set(playlist(page))
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(ROWS)).to_have_count(40)
    assert not set(recommended(page)) & set(playlist(page))
    assert len(set(recommended(page))) == 40


def test_removing_and_undoing(open_page: Open) -> None:
    page = open_page()
    before = playlist(page)
    page.locator("#tracks .remove").nth(1).click()
    assert playlist(page) == [before[0], *before[2:]]
    expect(page.locator("#toast")).to_be_visible()
    page.locator("#toast-undo").click()
    assert playlist(page) == before
    page.get_by_role("button", name="Clear").click()
    assert playlist(page) == []
    page.locator("#undo").click()
    assert playlist(page) == before
    settled(page)
    assert recommended(page)


def test_dragging_changes_the_order(open_page: Open) -> None:
    page = open_page()
    before = playlist(page)
    grips = page.locator("#tracks .grip")
    start, end = grips.nth(0).bounding_box(), grips.nth(3).bounding_box()
    assert start is not None
    assert end is not None
    page.mouse.move(start["x"] + 10, start["y"] + 10)
    page.mouse.down()
    page.mouse.move(start["x"] + 10, (start["y"] + end["y"]) / 2, steps=4)
    page.mouse.move(end["x"] + 10, end["y"] + 12, steps=4)
    page.mouse.up()
    assert playlist(page) == [*before[1:4], before[0], before[4]]
    page.locator("#undo").click()
    assert playlist(page) == before


def test_a_title_alone_is_enough(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".column .lead").filter(visible=True)).to_contain_text("Nothing to go on yet.")
    assert len(recommended(page)) == 20
    page.get_by_label("Title of the playlist").fill("rock")
    expect(page.locator(".why").first).to_have_text("Fits the title")
    assert len(recommended(page)) == 20
    expect(page).to_have_title("rock · Encore")


def test_surprise_me_makes_a_playlist(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="start from scratch").click()
    page.get_by_role("button", name="Surprise me").click()
    expect(page.locator("#tracks > li")).to_have_count(5)
    settled(page)
    assert not set(recommended(page)) & set(playlist(page))


# --- searching


HELD_BACK: Final = """
const real = window.fetch;
window.held = [];
window.fetch = (address, options) => {
  const answer = () => real(address, { ...options, signal: undefined });
  const isHeld = new URL(address).searchParams.get("q")?.startsWith("hold") || options.body?.includes('"hold');
  if (!isHeld) return answer();
  return new Promise((resolve) => window.held.push(() => resolve(answer())));
};
"""


def release(page: Page, number: int) -> None:
    """Let a request that was held back be answered, and the page hear of it."""
    with page.expect_response("**/api/*") as answer:
        page.evaluate(f"window.held[{number}]()")
    answer.value.finished()
    page.wait_for_timeout(200)


def test_a_late_answer_to_an_old_search_is_ignored(open_page: Open, server: Running) -> None:
    page = open_page(before=lambda page: page.add_init_script(HELD_BACK))
    track = api(server, "/api/tracks?n=1")["tracks"][0]
    search = page.locator("#search")
    search.fill("hold")
    until(page, "window.held.length === 1")
    search.fill(track["name"])
    expect(page.get_by_role("listbox").get_by_role("option").first).to_contain_text(track["name"])
    shown = page.get_by_role("listbox").get_by_role("option").all_inner_texts()
    release(page, 0)
    assert page.get_by_role("listbox").get_by_role("option").all_inner_texts() == shown
    # nor does it open the list again once it is closed
    search.fill("hold on")
    until(page, "window.held.length === 2")
    search.fill("")
    release(page, 1)
    expect(page.locator("#drop")).to_be_hidden()


def test_late_recommendations_for_an_old_playlist_are_ignored(open_page: Open) -> None:
    page = open_page(before=lambda page: page.add_init_script(HELD_BACK))
    page.get_by_label("Title of the playlist").fill("hold")
    until(page, "window.held.length === 1")
    page.get_by_label("Title of the playlist").fill("rock")
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Title of the playlist").fill("rock")
    settled(page)
    expect(page.locator(".why").first).to_have_text("Fits the title")
    shown = recommended(page)
    release(page, 0)
    assert recommended(page) == shown


def test_a_search_without_result_says_so(open_page: Open) -> None:
    page = open_page()
    page.locator("#search").fill("<b>zzzz")
    expect(page.locator("#none")).to_have_text("No track found for “<b>zzzz”.")
    expect(page.locator("#search")).to_have_attribute("aria-expanded", "false")
    expect(page.locator("#status")).to_have_text("No track found for “<b>zzzz”.")


def test_markup_in_names_and_titles_is_text(open_page: Open, server: Running) -> None:
    page = open_page()
    page.locator("#search").fill("document title")
    option = page.get_by_role("listbox").get_by_role("option").filter(has_text=HOSTILE)
    expect(option).to_be_visible()
    option.click()
    page.get_by_label("Title of the playlist").fill(HOSTILE)
    settled(page)
    assert names(page)[-1] == HOSTILE
    page.locator("#tracks .remove").last.click()
    expect(page.locator("#toast-text")).to_have_text(f"Removed {HOSTILE}.")
    expect(page).to_have_title(f"{HOSTILE} · Encore")
    assert page.locator("main img, main script").count() == 0
    # as a recommendation, and as a reason
    (found,) = api(server, "/api/tracks?q=document+title+hacked&n=1")["tracks"]
    page = open_page(fragment_of([found["uri"]], "%3Cscript%3E"))
    expect(page.locator(".why em").filter(has_text=HOSTILE).first).to_be_visible()
    expect(page).to_have_title("<script> · Encore")


# --- the keyboard


def test_everything_works_by_keyboard(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#next")).to_be_focused()
    page.keyboard.press("/")
    search = page.locator("#search")
    expect(search).to_be_focused()
    page.keyboard.type("a")
    options = page.get_by_role("listbox").get_by_role("option")
    expect(options).to_have_count(8)
    expect(search).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(search).to_have_attribute("aria-activedescendant", "found-1")
    expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert search.get_attribute("aria-activedescendant") is None
    page.keyboard.press("ArrowUp")
    expect(search).to_have_attribute("aria-activedescendant", "found-7")
    page.keyboard.press("Escape")
    expect(page.locator("#drop")).to_be_hidden()
    expect(search).to_have_value("a")
    page.keyboard.press("Escape")
    expect(search).to_have_value("")
    page.keyboard.type("a")
    expect(options).to_have_count(8)
    expect(options.locator(".tag").first).to_be_attached()
    free = next(i for i in range(8) if options.nth(i).locator(".tag").count() == 0)
    for _ in range(free + 1):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#tracks > li")).to_have_count(6)
    before = playlist(page)
    page.keyboard.press("Tab")
    grip = page.locator("#tracks .grip").first
    expect(grip).to_be_focused()
    page.keyboard.press("ArrowDown")
    assert playlist(page) == [before[1], before[0], *before[2:]]
    expect(page.locator("#tracks .grip").nth(1)).to_be_focused()
    expect(page.locator("#status")).to_contain_text(": 2 of 6.")
    page.keyboard.press("End")
    assert playlist(page) == [*before[1:], before[0]]
    page.keyboard.press("Delete")
    assert playlist(page) == before[1:]
    expect(page.locator("#tracks .grip").last).to_be_focused()
    page.keyboard.press("Control+z")
    assert playlist(page) == [*before[1:], before[0]]
    # the focus stays in the list as tracks are added from it
    settled(page)
    page.locator(ROWS).nth(2).locator(".add").focus()
    for n in (7, 8):
        page.keyboard.press("Enter")
        expect(page.locator("#tracks > li")).to_have_count(n)
        settled(page)
        expect(page.locator(".add:focus")).to_have_count(1)


# --- importing

CSVS: Final = {
    "Exportify": "Track URI,Track Name,Album URI,Artist URI(s),Added At\r\n"
    '"{0}","One, ""two""",spotify:album:{x},,1\r\n'
    "{1},Three,spotify:album:{x},spotify:artist:{x},2\r\nspotify:local:a:b:c:10,Mine,,,3\r\n",
    "older Exportify": "\ufeffSpotify ID,Artist IDs,Track Name\n{id0},{x},One\n{id1},{x},Two\nspotify:local:me,,Mine\n",
    "TuneMyMusic": "Track name,Artist name,Album,Playlist name,Type,ISRC,Spotify - id\n"
    'One,A,"Al\nbum",Road trip,Playlist,US1,{id0}\nTwo,B,Al,Road trip,Playlist,US2,{id1}\n'
    "Mine,C,,Road trip,Playlist,,\n",
    "a spreadsheet": "Artist;Title;Where\nA;One;https://open.spotify.com/intl-de/track/{id0}?si=1\n"
    "B;Two;https://open.spotify.com/track/{id1}\nB;Mine;\n",
}


@pytest.mark.parametrize("kind", CSVS)
def test_an_exported_file_is_imported(open_page: Open, server: Running, kind: str, tmp_path: Path) -> None:
    page = open_page()
    known = [uri for uri in popular(server, 20) if uri not in playlist(page)][:2]
    ids = [uri.removeprefix("spotify:track:") for uri in known]
    file = tmp_path / "road_trip.csv"
    file.write_text(CSVS[kind].format(*known, id0=ids[0], id1=ids[1], x="0" * 22), encoding="utf-8", newline="")
    page.get_by_role("button", name="Import…").click()
    page.locator("#import-file").set_input_files(file)
    page.get_by_role("button", name="Replace playlist").click()
    expect(page.locator("#import-dialog")).to_be_hidden()
    expect(page.locator("#toast-text")).to_have_text("Added 2 tracks. 1 row without a track of Spotify.")
    assert playlist(page) == known
    assert page.locator("#title").input_value().lower() == "road trip"
    settled(page)
    page.locator("#toast-undo").click()
    assert len(playlist(page)) == 5


def test_a_file_is_dropped(open_page: Open, server: Running) -> None:
    page = open_page()
    page.get_by_role("button", name="Clear").click()
    known = popular(server, 3)
    file = page.evaluate_handle(
        "text => { const data = new DataTransfer(); data.items.add(new File([text], 'my_list.csv')); return data; }",
        "Track URI,Name\n" + "".join(f"{uri},x\n" for uri in known),
    )
    page.dispatch_event("main", "dragenter", {"dataTransfer": file})
    expect(page.locator("#dropping")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": file})
    expect(page.locator("#dropping")).to_be_hidden()
    expect(page.locator("#tracks > li")).to_have_count(3)
    assert playlist(page) == known
    assert page.locator("#title").input_value() == "my list"


def test_links_are_pasted(open_page: Open, server: Running) -> None:
    page = open_page()
    page.get_by_role("button", name="Clear").click()
    known = popular(server, 4)
    ids = [uri.removeprefix("spotify:track:") for uri in known]
    text = (
        f"https://open.spotify.com/track/{ids[0]}?si=abc\n{known[1]} open.spotify.com/embed/track/{ids[2]}\n"
        f"https://open.spotify.com/album/{ids[3]} spotify:track:{'0' * 22} spotify:track:{ids[0]}"
    )
    page.locator("#search").evaluate(
        """(input, text) => {
          const data = new DataTransfer();
          data.setData("text/plain", text);
          input.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
        }""",
        text,
    )
    expect(page.locator("#tracks > li")).to_have_count(3)
    assert playlist(page) == known[:3]
    expect(page.locator("#toast-text")).to_have_text("Added 3 tracks. 1 not in this catalogue.")


def test_what_cannot_be_imported_is_explained(open_page: Open) -> None:
    page = open_page()
    before = playlist(page)
    page.get_by_role("button", name="Import…").click()
    page.get_by_role("button", name="Add to playlist").click()
    expect(page.locator("#import-error")).to_have_text("Paste something, or choose a file.")
    page.locator("#import-text").fill("Name,Artist\nOne,A\n")
    page.get_by_role("button", name="Add to playlist").click()
    expect(page.locator("#import-error")).to_contain_text("No links, URIs or ids")
    page.keyboard.press("Escape")
    assert playlist(page) == before


def test_a_playlist_of_the_lake_is_opened(open_page: Open, server: Running) -> None:
    tracks = api(server, "/api/tracks?n=3")["tracks"]
    asked: list[Any] = []

    def heard(request: Request) -> None:
        if request.url.endswith("/api/recommend"):
            asked.append(request.post_data_json)

    def with_lake(page: Page) -> None:
        known = {**api(server, "/api/settings"), "playlists": True}
        page.route("**/api/settings", lambda route: route.fulfill(json=known))
        page.route(
            "**/api/playlists/*",
            lambda route: (
                route.fulfill(json={"pid": 7, "title": "Lake", "tracks": tracks})
                if route.request.url.endswith("/7")
                else route.fulfill(status=404, json={"error_code": "X", "message": "no such playlist"})
            ),
        )
        page.on("request", heard)

    page = open_page(before=with_lake)
    page.get_by_role("button", name="Import…").click()
    page.locator("#import-pid").fill("8")
    page.get_by_role("button", name="Add to playlist").click()
    expect(page.locator("#import-error")).to_have_text("There is no playlist 8.")
    page.locator("#import-pid").fill("7")
    page.get_by_role("button", name="Replace playlist").click()
    expect(page.locator("#title")).to_have_value("Lake")
    settled(page)
    assert playlist(page) == [track["uri"] for track in tracks]
    # so that a model which was trained on it does not find the playlist itself
    assert asked[-1]["pid"] == 7
    assert "n=7" in page.evaluate("location.hash")


# --- sharing


def test_a_playlist_is_shared_by_its_address(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Title of the playlist").fill("Jazz & blues #1 + more")
    page.locator("#tracks .remove").first.click()
    page.get_by_role("button", name="Compare models").click()
    page.get_by_label("Other model").select_option("adjacency")
    settled(page)
    fragment = page.evaluate("location.hash")
    assert len(fragment) < 5 * 22 + 80
    other = open_page(fragment)
    assert playlist(other) == playlist(page)
    assert other.locator("#title").input_value() == "Jazz & blues #1 + more"
    for column in (0, 1):
        assert recommended(other, column) == recommended(page, column)
    # another address in the same tab
    one = playlist(page)[:1]
    other.evaluate("fragment => { location.hash = fragment }", fragment_of(one))
    expect(other.locator("#tracks > li")).to_have_count(1)
    expect(other.locator(".column")).to_have_count(1)
    assert playlist(other) == one


def test_a_link_with_unknown_tracks_shows_the_rest(open_page: Open, server: Running) -> None:
    known = popular(server, 2)
    page = open_page(fragment_of([*known, "spotify:track:" + "0" * 22]))
    assert playlist(page) == known
    expect(page.locator("#toast-text")).to_have_text("1 track of this link is not in this catalogue.")


def test_the_link_is_copied(open_page: Open) -> None:
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#toast-text")).to_have_text("The link is copied.")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.url
    assert "#p=" in copied
    assert playlist(open_page("#" + copied.split("#")[1])) == playlist(page)
    page.get_by_role("button", name="Copy tracks").click()
    expect(page.locator("#toast-text")).to_contain_text("5 tracks copied.")
    assert page.evaluate("navigator.clipboard.readText()").split("\n") == playlist(page)


# --- models


def test_two_models_are_compared(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Compare models").click()
    page.get_by_label("Other model").select_option("adjacency")
    expect(page.locator(".column").nth(1).locator(".meta")).to_contain_text("adjacency version")
    settled(page)
    first, second = recommended(page), recommended(page, 1)
    common = set(first) & set(second)
    assert common
    assert set(first) != set(second)
    expect(page.locator("#common")).to_have_text(f"{len(common)} of 20 tracks are in both lists.")
    for column, own, other in ((0, first, second), (1, second, first)):
        rows = page.locator(".column").nth(column).locator(ROWS)
        for i, uri in enumerate(own):
            expected = f"also no. {other.index(uri) + 1}" if uri in common else ""
            tag = rows.nth(i).locator(".both")
            assert (tag.inner_text() if tag.is_visible() else "") == expected
    # both follow the playlist
    page.locator(".column").nth(1).locator(".add").first.click()
    settled(page)
    assert playlist(page)[-1] == second[0]
    assert second[0] not in recommended(page) + recommended(page, 1)
    page.get_by_role("button", name="Compare models").click()
    expect(page.locator(".column")).to_have_count(1)
    expect(page.locator(".both:visible")).to_have_count(0)


def test_a_model_without_recommendations_says_so(open_page: Open) -> None:
    def empty(route: Route) -> None:
        content = route.fetch().json()
        route.fulfill(json={**content, "recommendations": []})

    page = open_page()
    page.route("**/api/recommend", empty)
    page.locator("#tracks .remove").first.click()
    lead = page.locator(".column .lead").filter(visible=True)
    expect(lead).to_contain_text("This model has nothing to recommend for this playlist.")
    assert recommended(page) == []


# --- what goes wrong


def test_a_busy_server_is_asked_again(open_page: Open) -> None:
    page = open_page()
    before = recommended(page)
    asked = []

    def busy(route: Route) -> None:
        asked.append(route.request.post_data)
        if len(asked) < 3:
            headers = {"Retry-After": "1", "Content-Type": "application/json"}
            route.fulfill(status=503, headers=headers, body='{"error_code": "X", "message": "busy"}')
        else:
            route.continue_()

    page.route("**/api/recommend", busy)
    page.locator("#tracks .remove").first.click()
    expect(page.locator(".problem")).to_contain_text("The server is busy or starting.")
    # what was there stays
    assert recommended(page) == before
    expect(page.locator(".problem")).to_be_hidden()
    settled(page)
    assert len(asked) == 3
    assert len(recommended(page)) == 20


def test_a_server_that_refuses_the_example_can_still_be_used(open_page: Open) -> None:
    def broken(page: Page) -> None:
        page.route("**/api/recommend", lambda route: route.fulfill(status=500, json={"message": "broken"}))

    page = open_page(before=broken, ready=False)
    expect(page.locator("#playlist-empty")).to_be_visible()
    expect(page.locator(ROWS)).to_have_count(20)
    page.locator(ROWS).first.locator(".add").click()
    expect(page.locator(".problem p")).to_have_text("broken")
    assert playlist(page)[0] not in recommended(page)
    page.unroute("**/api/recommend")
    page.locator(ROWS).first.locator(".add").click()
    expect(page.locator(".problem")).to_be_hidden()
    settled(page)
    assert len(recommended(page)) == 20


def test_a_refusal_is_shown_and_not_repeated(open_page: Open) -> None:
    page = open_page()
    page.route(
        "**/api/recommend",
        lambda route: route.fulfill(status=400, json={"error_code": "X", "message": "tracks: expected at most 3"}),
    )
    page.locator("#tracks .remove").first.click()
    expect(page.locator(".problem p")).to_have_text("tracks: expected at most 3")
    expect(page.get_by_role("button", name=re.compile("Try now"))).to_have_count(0)
    page.unroute("**/api/recommend")
    page.locator("#tracks .remove").first.click()
    expect(page.locator(".problem")).to_be_hidden()


def test_it_survives_a_restart_of_the_server(open_page: Open, page_bundle: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "encore.serving"]
    environment = {"ENCORE_SERVE_MODEL": str(page_bundle), "ENCORE_SERVE_PORT": str(port)}
    with started(command, port, environment) as first:
        page = open_page(url=first.url)
        os.kill(first.process.pid, signal.SIGTERM)
        assert first.process.wait(timeout=30) == 0
        page.locator(ROWS).first.locator(".add").click()
        expect(page.locator(".problem")).to_contain_text("The server does not answer. This page tries again.")
        page.locator("#search").fill("a")
        expect(page.locator("#none")).to_have_text("The server does not answer.")
        page.locator("#search").fill("")
    with started(command, port, environment):
        page.get_by_role("button", name=re.compile("Try now")).click(timeout=1000, force=True)
        expect(page.locator(".problem")).to_be_hidden(timeout=40_000)
        settled(page)
        assert len(playlist(page)) == 6
        assert len(recommended(page)) == 20
        assert not set(recommended(page)) & set(playlist(page))


def test_a_server_that_starts_later_is_awaited(open_page: Open) -> None:
    asked = []

    def starting(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) < 2:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error_code": "X", "message": "starting"})
        else:
            route.continue_()

    page = open_page(before=lambda page: page.route("**/api/models", starting), ready=False)
    expect(page.locator(".problem")).to_contain_text("The server is busy or starting.")
    expect(page.locator("#tracks > li")).to_have_count(5)
    settled(page)
    expect(page.locator(".problem")).to_be_hidden()


def test_a_token_is_asked_for(open_page: Open, other_server: Running) -> None:
    page = open_page(url=other_server.url, ready=False)
    page.get_by_label("Token", exact=True).fill("wrong")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_label("Token", exact=True)).to_have_value("")
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#token-dialog")).to_be_hidden()
    expect(page.locator("#tracks > li")).to_have_count(5)
    settled(page)
    assert recommended(page)


# --- Spotify's player


def test_nothing_is_loaded_from_elsewhere(open_page: Open, server: Running) -> None:
    asked: list[str] = []
    page = open_page(before=lambda page: page.on("request", lambda request: asked.append(request.url)))
    page.locator("#search").fill("a")
    expect(page.get_by_role("listbox").get_by_role("option").first).to_be_visible()
    assert page.locator(".play").count() == 0
    assert [url for url in asked if not url.startswith(server.url)] == []
    connection = server.connection()
    connection.request("GET", "/")
    answer = connection.getresponse()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert not re.search("spotify|unsafe|http", policy)
    html = answer.read().decode()
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|javascript:", html)


def test_the_player_is_shown_where_it_is_allowed(open_page: Open, other_server: Running) -> None:
    def with_token(page: Page) -> None:
        page.add_init_script(f"if (self === top) sessionStorage.setItem('encore-token', {json.dumps(TOKEN)})")
        page.route(
            "https://open.spotify.com/**", lambda route: route.fulfill(body="<p>a player", content_type="text/html")
        )

    page = open_page(url=other_server.url, before=with_token)
    assert page.locator("iframe").count() == 0
    rows = page.locator(ROWS)
    for i in (0, 1):
        button = rows.nth(i).locator(".play")
        button.click()
        expect(button).to_have_attribute("aria-expanded", "true")
        expect(page.locator("iframe")).to_have_count(1)
        expect(page.frame_locator("iframe").locator("p")).to_have_text("a player")
        track = recommended(page)[i].removeprefix("spotify:track:")
        assert rows.nth(i).locator("iframe").get_attribute("src") == f"https://open.spotify.com/embed/track/{track}"
    rows.nth(1).locator(".play").click()
    expect(page.locator("iframe")).to_have_count(0)


# --- for everyone


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_is_accessible(open_page: Open, viewport: dict[str, int], dark: bool) -> None:
    page = open_page(viewport=viewport, dark=dark)
    passes(page)
    page.locator("#search").fill("a")
    expect(page.get_by_role("listbox").get_by_role("option").first).to_be_visible()
    page.keyboard.press("ArrowDown")
    passes(page)
    page.locator("#search").fill("")
    page.get_by_role("button", name="Compare models").click()
    settled(page)
    passes(page)
    page.locator("#tracks .remove").first.click()
    page.get_by_role("button", name="Import…").click()
    passes(page)
    page.keyboard.press("Escape")
    page.route("**/api/recommend", lambda route: route.abort())
    page.locator("#tracks .remove").first.click()
    expect(page.locator(".problem").first).to_be_visible()
    passes(page)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#playlist-empty")).to_be_visible()
    passes(page)


def passes(page: Page) -> None:
    """No violation of what axe checks, and nothing beyond the width of the window."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_controls_of_a_phone_are_large_enough(open_page: Open) -> None:
    page = open_page(viewport=PHONE)
    for box in page.locator("main button:visible, main input:visible, main select:visible").evaluate_all(
        "all => all.filter(e => !e.classList.contains('link')).map(e => [e.offsetWidth, e.offsetHeight, e.outerHTML])"
    ):
        assert min(box[:2]) >= 24, box[2]


def test_nothing_moves_for_who_prefers_it(open_page: Open) -> None:
    count = "document.getAnimations({ subtree: true }).length"
    page = open_page()
    page.locator(ROWS).nth(3).locator(".add").click()
    assert page.evaluate(count) == 0
    settled(page)
    assert page.evaluate(count) == 0
    moving = open_page(moving=True)
    moving.locator(ROWS).nth(3).locator(".add").click()
    assert moving.evaluate(count) > 0


# --- pictures


def test_pictures(open_page: Open, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Writes the pictures of the README where --pictures is given; else it only tries whether they can be made."""
    folder = PICTURES if request.config.getoption("--pictures") else tmp_path
    page = open_page(viewport={"width": 1200, "height": 800}, scale=1.5)
    page.get_by_label("Title of the playlist").fill("Late summer")
    page.locator(ROWS).first.locator(".add").click()
    settled(page)
    page.mouse.move(0, 0)
    page.screenshot(path=folder / "page.png")
    page.get_by_role("button", name="Compare models").click()
    page.get_by_label("Other model").select_option("ials")
    settled(page)
    page.screenshot(path=folder / "page-compare.png")
    phone = open_page(viewport={"width": 375, "height": 900}, scale=2, dark=True)
    phone.get_by_label("Title of the playlist").fill("Late summer")
    phone.locator("#title").blur()
    settled(phone)
    phone.screenshot(path=folder / "page-phone.png")
    assert all((folder / f"{name}.png").stat().st_size > 20_000 for name in ("page", "page-compare", "page-phone"))

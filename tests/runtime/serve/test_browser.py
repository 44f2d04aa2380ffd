"""The page in a real browser: type, get hits, watch the moment, drop a picture, see what went wrong."""

import io
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from dgl_runtime import Encoder
from dgl_runtime.gallery.gallery import Clip, Gallery
from dgl_runtime.serve.app import ServeSettings, create_app
from dgl_runtime.serve.galleries import ServedGallery
from dgl_runtime.serve.guard import GuardSettings
from tests.helpers.described_client import HOSTS

sync_api = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
TOKEN = "a-token-of-some-length"


def serving(bundle, folder, token=None):
    served = ServedGallery("holiday", folder, Encoder(bundle, threads=1))
    app = create_app([served], ServeSettings(GuardSettings(HOSTS, token)))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def address(bundle, library):
    yield from serving(bundle, library / "gallery")


@pytest.fixture(scope="module")
def guarded_address(bundle, library):
    yield from serving(bundle, library / "gallery", TOKEN)


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 800), (390, 844)], ids=["desktop", "phone"])
def page(request, chromium, address):
    """The page, with every error and every request to elsewhere noted."""
    context = chromium.new_context(
        viewport=dict(zip(("width", "height"), request.param, strict=True))
    )
    page = context.new_page()
    page.faults, page.strangers = [], []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
    page.on(
        "request",
        lambda one: (
            page.strangers.append(one.url)
            if not one.url.startswith((address, "blob:", "data:"))
            else None
        ),
    )
    page.goto(address)
    page.get_by_text("Describe a moment").wait_for()
    yield page
    assert page.strangers == []
    context.close()


def ask(page, text="a red circle"):
    page.get_by_role("searchbox").fill(text)
    page.get_by_role("searchbox").press("Enter")
    page.locator(".card").first.wait_for()


def until(page, condition, timeout_s=20):
    """Wait for a condition in JavaScript; playwright's own way is against the page's security policy."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def shot(page, name):
    """Keep a picture, where somebody wants to look."""
    if folder := os.environ.get("DGL_SCREENSHOTS"):
        width = page.viewport_size["width"]
        page.screenshot(path=str(Path(folder) / f"{name}-{width}.png"))


def test_type_look_and_watch_from_the_right_second(page):
    shot(page, "welcome")
    ask(page)
    until(page, "[...document.images].every(one => one.complete && one.naturalWidth)")
    shot(page, "hits")
    titles = page.locator(".title").all_inner_texts()
    assert set(titles) <= {"0.mp4", "1.mp4", "2.mp4", "größe.avi"}
    number = next(n for n, title in enumerate(titles) if title.endswith(".mp4"))
    card = page.locator(".card").nth(number)
    when = card.locator(".when").inner_text().split(" \N{EN DASH} ")[0]
    card.click()
    start_s = 60 * int(when[0]) + int(when[2:])
    until(page, "document.querySelector('video').readyState >= 2")
    now = page.evaluate("document.querySelector('video').currentTime")
    assert start_s - 0.05 <= now <= start_s + 2.5
    shot(page, "player")
    bars = page.locator(".weights button")
    assert bars.count() == 4
    bars.nth(2).click()
    page.keyboard.press("Escape")
    assert not page.locator("#player").is_visible()
    assert page.evaluate("document.activeElement.className") == "card"
    assert page.faults == []


def test_a_query_that_is_cut_is_told(page):
    ask(page, "dog " * 40)
    until(
        page, "document.querySelector('#status').textContent.includes('is too long for this model')"
    )


def test_what_the_browser_cannot_play_gets_a_preview(page):
    ask(page)
    page.get_by_role("button", name="größe.avi").first.click()
    page.get_by_text("A preview of this moment.").wait_for()
    until(page, "document.querySelector('video').readyState >= 2")


def test_a_dropped_picture_finds_moments(page):
    picture = io.BytesIO()
    Image.new("RGB", (90, 60), "red").save(picture, "PNG")
    page.evaluate(
        """bytes => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "red.png", { type: "image/png" }));
            for (const kind of ["dragenter", "drop"])
                document.dispatchEvent(new DragEvent(kind, { dataTransfer: files, cancelable: true }));
        }""",
        list(picture.getvalue()),
    )
    page.locator(".card").first.wait_for()
    assert "red.png" in page.locator("#status").inner_text()
    assert page.faults == []


def test_filters_the_address_and_the_back_button(page):
    ask(page)
    page.get_by_label("Where").fill("camera = 'north'")
    page.get_by_label("Where").press("Enter")
    until(page, "[...document.querySelectorAll('.title')].every(one => one.innerText === '0.mp4')")
    assert "camera" in page.url
    page.go_back()
    until(page, "[...document.querySelectorAll('.title')].some(one => one.innerText !== '0.mp4')")
    page.reload()
    page.locator(".card").first.wait_for()
    assert page.get_by_role("searchbox").input_value() == "a red circle"


def test_empty_and_error_states_say_what_to_do(page):
    ask(page)
    page.get_by_label("Where").fill("start_s > 9999")
    page.get_by_label("Where").press("Enter")
    page.get_by_text("Nothing found").wait_for()
    shot(page, "empty")
    page.get_by_label("Where").fill("colour = 1")
    page.get_by_label("Where").press("Enter")
    page.get_by_text("no such column: colour").wait_for()
    shot(page, "error")
    page.get_by_label("Where").fill("")
    page.route("**/search", lambda route: route.abort())
    page.get_by_role("searchbox").press("Enter")
    page.get_by_text("The service does not answer").wait_for()
    page.unroute("**/search")
    page.get_by_role("button", name="Try again").click()
    page.locator(".card").first.wait_for()


def test_it_can_be_used_by_keyboard_alone(page):
    page.locator("body").press("/") if page.evaluate(
        "document.activeElement.id"
    ) != "query" else None
    page.keyboard.type("a ring")
    page.keyboard.press("Enter")
    page.locator(".card").first.wait_for()
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    assert (
        page.evaluate("[...document.querySelectorAll('.card')].indexOf(document.activeElement)")
        == 1
    )
    page.keyboard.press("Enter")
    page.locator("#player").wait_for()
    page.keyboard.press("p")
    assert page.locator("#player-facts").inner_text().startswith("1 of ")
    page.keyboard.press("Escape")


def test_nothing_sticks_out_and_texts_can_be_read(page):
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = page.evaluate(
        """[...document.querySelectorAll('button, select, input')]
            .filter(one => one.checkVisibility() && one.getBoundingClientRect().height < 30)
            .map(one => one.outerHTML.slice(0, 60))"""
    )
    assert small == []


@pytest.fixture(scope="module")
def large_address(bundle, library, tmp_path_factory):
    """The library, and a thousand clips of a video that is gone, with a long name."""
    folder = tmp_path_factory.mktemp("large") / "gallery"
    shutil.copytree(library / "gallery", folder)
    with Gallery.open(folder, writable=True) as gallery:
        rows = np.random.default_rng(0).standard_normal((1000, gallery.facts.embed_dim), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        weights = np.full(
            (1000, gallery.facts.num_frames), 1 / gallery.facts.num_frames, np.float32
        )
        name = "/videos/" + "a very long name of a holiday in the mountains " * 4 + ".mp4"
        clips = [Clip(name, "gone", second, second + 1, 1000) for second in range(1000)]
        gallery.ingest(clips, rows, weights)
    yield from serving(bundle, folder)


def test_a_thousand_hits_are_shown_and_only_pictures_in_sight_are_asked_for(
    chromium, large_address
):
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    page, pictures = context.new_page(), []
    page.on("request", lambda one: pictures.append(one.url) if "thumbnail" in one.url else None)
    page.goto(f"{large_address}/?q=a+dog&hits=1000&show=none")
    until(page, "document.querySelectorAll('.card').length == 1000")
    page.get_by_text("No picture: the video is gone or damaged").first.wait_for()
    shot(page, "thousand")
    assert 0 < len(pictures) < 200
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


def test_the_token_is_asked_for_once(chromium, guarded_address):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(guarded_address)
    page.get_by_role("textbox", name="Token").fill("wrong-token-of-some-length")
    page.get_by_role("button", name="Enter").click()
    page.get_by_text("this is not the token").wait_for()
    page.get_by_role("textbox", name="Token").fill(TOKEN)
    page.get_by_role("button", name="Enter").click()
    page.get_by_text("Describe a moment").wait_for()
    page.reload()
    page.get_by_text("Describe a moment").wait_for()
    ask(page)
    until(page, "[...document.images].every(one => one.complete && one.naturalWidth)")
    context.close()

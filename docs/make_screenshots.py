"""Take the docs' screenshots of dgl-serve's page: make_screenshots.py ADDRESS QUERY; needs Chromium."""

import io
import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

SIZES = {"": (1280, 860, "light", 1.5), "-phone": (390, 844, "dark", 2.0)}


def until(page: Page, condition: str) -> None:
    """Wait for a condition in JavaScript; playwright's own way is against the page's security policy."""
    while not page.evaluate(condition):
        time.sleep(0.1)


def keep(page: Page, name: str) -> None:
    """Write a picture of few colours beside this file."""
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        few.save(Path(__file__).with_name(f"{name}.png"), optimize=True)


def main(address: str, query: str) -> None:
    """Search, then play the first hit, on a desktop and on a phone."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for suffix, (width, height, scheme, scale) in SIZES.items():
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme=scheme,  # type: ignore[arg-type]
                device_scale_factor=scale,
            )
            page.goto(address)
            page.get_by_role("searchbox").fill(query)
            page.keyboard.press("Enter")
            page.locator(".card").first.wait_for()
            page.evaluate("document.activeElement.blur()")
            until(page, "[...document.images].slice(0, 8).every(one => one.naturalWidth)")
            keep(page, f"page{suffix}")
            page.locator(".card").first.click()
            until(page, "document.querySelector('video').readyState >= 2")
            time.sleep(0.6)
            keep(page, f"player{suffix}")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

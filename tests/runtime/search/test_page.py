"""The page of hits, whatever its videos are called: names are shown as they are, and links lead to them."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

from dgl_runtime.search.moments import Hit
from dgl_runtime.search.page import write_page
from tests.helpers.odd_videos import write_video


class Page(HTMLParser):
    """Its tags, the texts of its links and paragraphs, and where the links lead."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.texts, self.inside = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "a":
            self.links.append(dict(attributes))
        if tag in ("a", "p"):
            self.inside.append(tag)
            self.texts.append("")

    def handle_endtag(self, tag):
        if tag in ("a", "p"):
            assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


NAMES = [
    "<b>bold.mp4",
    "a&amp;b & c.mp4",
    "\"double\" 'single' onclick=x.mp4",
    "größe 猫 😀.mp4",
    "50%25 #1?t=3;x=y.mp4",
    "javascript:alert(1).mp4",
    "two\nlines\tand a \\ .mp4",
    "]]><!--.mp4",
    "{$title} $parts.mp4",
    "caf\udce9.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_and_its_link_leads_to_it(tmp_path, name):
    video = write_video(tmp_path / f"in {name}" / name, 5)
    hits = [Hit(str(video), 0.1, 0.25, 0.5, (1.0,), 0)]
    write_page(tmp_path / "page.html", [(name, hits)])
    page = Page(tmp_path / "page.html")
    (link,) = page.links
    assert link.keys() == {"href"}
    address = urlsplit(link["href"])
    assert (address.scheme, address.netloc, address.query) == ("file", "", "")
    assert address.fragment == "t=0.100,0.250"
    assert unquote_to_bytes(address.path) == bytes(video)
    shown = name.encode("utf-8", "replace").decode()
    assert page.texts == [shown, "0:00.1 - 0:00.2, similarity 0.500"]
    body = page.tags[page.tags.index("body") :]
    assert body == ["body", "h2", "ol", "li", "a", "img", "br", "p"]


def test_what_is_wrong_with_a_video_is_shown_as_it_is(tmp_path):
    video = tmp_path / "<i>&'\".mp4"
    video.write_bytes(b"no video")
    write_page(tmp_path / "page.html", [("a", [Hit(str(video), 0.0, 1.0, 0.5, (1.0,), 0)])])
    page = Page(tmp_path / "page.html")
    assert "i" not in page.tags
    assert "img" not in page.tags
    assert any(str(video) in text and "is not a video" in text for text in page.texts)
    assert Path(unquote_to_bytes(urlsplit(page.links[0]["href"]).path).decode()) == video

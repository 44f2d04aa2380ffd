"""A page of hits for people: pictures and playable moments, in one file that needs nothing else."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template

from dgl_runtime.errors import MediaError
from dgl_runtime.media.preview import picture
from dgl_runtime.search.moments import Hit
from dgl_runtime.times import timestamp

_SIDE = 480
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>
:root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif; }
body { max-width: 1200px; margin: 24px auto; padding: 0 16px; }
h2 { margin: 32px 0 12px; overflow-wrap: anywhere; }
ol { list-style: none; padding: 0; display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); }
img { width: 100%; aspect-ratio: 16 / 9; object-fit: cover; border-radius: 8px; background: #8884; }
a { color: inherit; text-decoration: none; overflow-wrap: anywhere; }
p { margin: 4px 0; font-size: .88rem; opacity: .75; }
</style></head><body>
$parts
</body></html>
""")


def write_page(path: Path, found: Sequence[tuple[str, Sequence[Hit]]]) -> None:
    """Write queries and their hits; a click plays the video from the moment on.

    Args:
        path: The file to write; missing folders are made, an old file is replaced.
        found: Queries, and their hits best first.
    """
    parts = []
    for query, hits in found:
        cards = "\n".join(_card(hit) for hit in hits) or "<li>nothing found</li>"
        parts.append(f"<h2>{_text(query)}</h2>\n<ol>\n{cards}\n</ol>")
    title = _text("; ".join(query for query, _ in found))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PAGE.substitute(title=title, parts="\n".join(parts)), encoding="utf-8")


def _card(hit: Hit) -> str:
    video = Path(hit.video)
    address = f"{video.as_uri()}#t={hit.start_s:.3f},{hit.end_s:.3f}"
    when = f"{timestamp(hit.start_s)} - {timestamp(hit.end_s)}"
    try:
        jpeg = base64.b64encode(picture(video, (hit.start_s + hit.end_s) / 2, _SIDE)).decode()
        image = f'<img alt="" src="data:image/jpeg;base64,{jpeg}">'
    except MediaError as error:
        image = f"<p>{_text(str(error))}</p>"
    return (
        f'<li><a href="{_text(address)}">{image}<br>{_text(video.name)}</a>'
        f"<p>{when}, similarity {hit.similarity:.3f}</p></li>"
    )


def _text(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())

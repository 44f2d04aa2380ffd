"""Index videos, search them by text, and embed a clip oneself.

python examples/search_videos.py BUNDLE VIDEOS GALLERY
"""

import sys
from pathlib import Path

from dgl_runtime import DglError, Encoder, Retriever
from dgl_runtime.media.video import read_clips
from dgl_runtime.media.windows import Span


def main(bundle: str, videos: str, gallery: str) -> None:
    """Print the best hit for a text, and its similarity computed from its frames again."""
    query = "a dog jumps into the lake"
    with Retriever(bundle, gallery) as retriever:
        report = retriever.add_videos(videos, window_s=2, stride_s=1)
        print(f"{report.clips_added} clips of {report.num_videos} videos added")
        hit = retriever.search(query, top_k=1)[0]
    print(f"{hit.video} {hit.start_s:.1f} s to {hit.end_s:.1f} s: {hit.similarity:.4f}")

    encoder = Encoder(bundle)
    span = Span(hit.start_s, hit.end_s)
    clips = list(read_clips(Path(hit.video), [span], encoder.input_spec.frames))
    similarity = encoder.embed_texts([query]) @ encoder.embed_clips(clips).embeddings.T
    print(f"embedded again: {similarity[0, 0]:.4f}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except DglError as error:
        sys.exit(f"Error: {error}")

"""What models want of their inputs, for tests."""

from dataclasses import replace

from dgl_runtime.bundle.input_spec import InputSpec, clip_frames, clip_texts


def frame_spec(num_frames, size, **changes):
    """CLIP's rules for frames, with some of them changed."""
    return replace(clip_frames(num_frames, size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), **changes)


def text_spec(max_tokens=32, **changes):
    """CLIP's rules for texts, with some of them changed."""
    return replace(clip_texts(max_tokens), **changes)


def input_spec(num_frames, size, max_tokens=32):
    """CLIP's rules for both."""
    return InputSpec(frame_spec(num_frames, size), text_spec(max_tokens))

"""The sound of a moment, for its preview: AAC, as far as the file's own sound can be decoded."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dgl_runtime.media.container import media_faults, open_container, packets_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av import AudioFrame, AudioStream
    from av.container import InputContainer, OutputContainer

_RATE, _LAYOUT = 48_000, "stereo"


def add_sound(path: Path, container: "OutputContainer") -> "AudioStream | None":
    """Make room for sound in a container whose header is not written yet; None: the file has none."""
    with open_container(path) as source:
        decodable = [one for one in source.streams.audio if one.codec_context is not None]
    return container.add_stream("aac", rate=_RATE, layout=_LAYOUT) if decodable else None


def _decoded(source: "InputContainer", audio: "AudioStream") -> "Iterator[AudioFrame]":
    """Frames from where the container stands; what does not decode, as the first packet in mpg, is skipped."""
    for packet in packets_of(source, [audio]):
        with suppress(*media_faults()):
            yield from cast("list[AudioFrame]", packet.decode())


def write_sound(
    path: Path, container: "OutputContainer", stream: "AudioStream", start_s: float, end_s: float
) -> None:
    """Encode the sound between two times of the file's own clock, seconds; ``start_s`` becomes 0.

    Sound that does not decode is left out: a preview is worth more without it than not at all.
    """
    from av import AudioResampler

    resampler = AudioResampler("fltp", _LAYOUT, _RATE)
    written: int | None = None  # samples, from where the sound begins
    with suppress(*media_faults()), open_container(path) as source:
        audio = next(one for one in source.streams.audio if one.codec_context is not None)
        if audio.time_base is not None:
            source.seek(int(start_s / audio.time_base), stream=audio)
        for frame in _decoded(source, audio):
            if frame.time is None or frame.time + frame.samples / frame.sample_rate <= start_s:
                continue
            if frame.time >= end_s:
                break
            if written is None:
                written = round(max(frame.time - start_s, 0.0) * _RATE)
            for part in resampler.resample(frame):
                part.pts, part.time_base = written, stream.time_base
                written += part.samples
                container.mux(stream.encode(part))
    container.mux(stream.encode(None))

"""Open a file that holds pictures, choose the stream a player would show, and yield its packets.

PyAV is imported on use.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgl_runtime.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from av import Packet, VideoStream
    from av.container import InputContainer
    from av.stream import Stream

_FORMATS = ",".join(
    "3g2 3gp aac apng asf av1 avi bmp_pipe dv flac flv gif gxf h264 hevc ivf j2k_pipe jpeg_pipe "
    "jpegxl_pipe m4v matroska mjpeg mov mp3 mpeg mpegts mpegvideo mxf nut obu ogg png_pipe ppm_pipe rm "
    "tiff_pipe wav webm webp_pipe wtv yuv4mpegpipe".split()
)
"""Containers that hold their pictures themselves. Playlists of any kind (concat, hls, dash, sdp) are left out:
they make FFmpeg open other files, which whoever wrote the playlist chose."""

_HEADER = 0x80
"""Bit of the first byte of a Theora packet that is no frame."""

_NO_FILM = "attached_pic timed_thumbnails still_image dependent metadata".split()
"""Dispositions of streams that accompany the pictures: covers, thumbnails, layers of another stream."""


def open_container(path: Path) -> InputContainer:
    """Open a file that holds its own pictures or sound.

    Raises:
        MediaError: It does not.
    """
    import av

    try:
        # "file:" keeps a colon in a file name from being read as a protocol.
        return av.open(
            f"file:{path}",
            mode="r",
            metadata_errors="ignore",
            options={"format_whitelist": _FORMATS},
        )
    except media_faults() as fault:
        raise MediaError(
            f"{path} is not a video or is damaged ({one_line(fault)}). "
            "Play it to check, and copy or download it again."
        ) from fault


def picture_streams(path: Path, container: InputContainer) -> list[VideoStream]:
    """The streams that may be the film, the one that players prefer first.

    As ffmpeg does, one that is marked as the default comes first, then the larger picture, then the
    first in the file.

    Raises:
        MediaError: There is none that can be decoded.
    """
    from av.stream import Disposition

    beside = Disposition(0)
    for name in _NO_FILM:
        beside |= Disposition[name]
    films = [stream for stream in container.streams.video if not stream.disposition & beside]
    if not films:
        found = [s.type.replace("video", "cover picture") for s in container.streams]
        raise MediaError(
            f"{path} has no picture stream, only: {', '.join(found) or 'nothing'}. "
            "Give a file with moving pictures, or leave it out."
        )
    decodable = [stream for stream in films if stream.codec_context is not None]
    if not decodable:
        raise MediaError(
            f"{path} has pictures in a codec that PyAV cannot decode, or is damaged. "
            "Play it to check, and convert it to H.264."
        )

    def preference(stream: VideoStream) -> tuple[bool, int]:
        codec = stream.codec_context
        return not stream.disposition & Disposition.default, -codec.width * codec.height

    return sorted(decodable, key=preference)


@contextmanager
def open_stream(
    path: Path, number: int, threads: int
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video at its first packet.

    Args:
        path: The video.
        number: Of the picture stream in the container, as its packet index says.
        threads: Decoder threads, 1 or more.

    Yields:
        The container and the stream.

    Raises:
        MediaError: It cannot be opened, or is not what was indexed.
    """
    with open_container(path) as container:
        stream = next(
            (one for one in picture_streams(path, container) if one.index == number), None
        )
        if stream is None:
            raise MediaError(
                f"{path} changed while it was read. Read it again when it is complete."
            )
        stream.thread_count = threads
        stream.thread_type = "FRAME"
        yield container, stream


@dataclass
class End:
    """How reading a container ended.

    Attributes:
        fault: What stopped it before its end; None: nothing.
        is_other: Behind the last packet asked for came a stream that was not there when the file was opened,
            as where another recording follows.
    """

    fault: str | None = None
    is_other: bool = False


def packets_of(
    container: InputContainer, streams: Sequence[Stream], end: End | None = None
) -> Iterator[Packet[Any]]:
    """Yield the packets of some streams that hold data, up to where the file can be read.

    Packets of no bytes ("show the last frame again") are left out, since a decoder takes one as the
    end of the stream; so are the headers with which a second recording begins in an ogg.

    Args:
        container: The open file.
        streams: Some of its streams.
        end: Filled in as the reading ends.
    """
    end = end or End()
    theora = {
        one.index for one in streams if one.type == "video" and one.codec_context.name == "theora"
    }
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError:  # PyAV, of a packet whose stream appeared only now
            end.is_other = True
            packets = container.demux(streams)
            continue
        except media_faults() as fault:
            end.fault = one_line(fault)
            return
        if packet.size and not (packet.stream_index in theora and memoryview(packet)[0] & _HEADER):
            end.is_other = False
            yield packet


def packet_time(packet: Packet[Any]) -> int | None:
    """When the frame of a packet is shown, ticks; its decode time if it does not say."""
    return packet.dts if packet.pts is None else packet.pts


def media_faults() -> tuple[type[Exception], ...]:
    """Whatever PyAV raises for a file that is not as it should be."""
    from av.error import FFmpegError

    return (FFmpegError, OSError, ValueError, EOFError, ArithmeticError, LookupError, RuntimeError)


def one_line(fault: BaseException) -> str:
    """What a fault says, on one line and without repeating the path."""
    text = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
    return " ".join(str(text).split())

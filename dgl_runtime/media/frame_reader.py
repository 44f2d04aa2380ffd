"""Chosen frames of one video, in one forward pass that decodes as little as it can.

Three things are skipped: stretches up to a keyframe (by a seek), frames nobody wants that no other
frame refers to, and the frames behind the last one before a seek (the decoder is emptied instead).
Each packet behind a seek, and each frame found, must then have exactly the time the packet index says;
where a file does not keep to its index, the pass begins again and decodes everything.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from dgl_runtime.errors import MediaError
from dgl_runtime.media.container import media_faults, one_line, open_stream, packet_time, packets_of
from dgl_runtime.media.orientation import as_shown
from dgl_runtime.media.stills import read_still

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from av import Packet, VideoFrame, VideoStream
    from numpy.typing import NDArray

    from dgl_runtime.media.packet_index import PacketIndex

SEEK_SAVES_PACKETS = 8
"""Seek only where that skips at least this many packets.

Measured on mp4, a seek wins from 4 packets on; it costs more where there is no seek table.
"""

MAX_LOST_S = 1.0
"""Seconds a frame may stand in for frames that do not decode; a longer loss is an error."""


class FrameReader:
    """Reads frames of a video by their number in order of display.

    Attributes:
        packets_read: Packets that went into the decoder so far.
        frames_decoded: Frames that came out of it.
    """

    def __init__(
        self, path: Path, index: PacketIndex, *, threads: int = 1, may_skip: bool = True
    ) -> None:
        """Prepare to read; the file is opened by ``read``.

        Args:
            path: The video.
            index: Its packet index.
            threads: Decoder threads, 1 or more.
            may_skip: False: decode every frame from the first on.
        """
        self.packets_read = self.frames_decoded = 0
        self._path = path
        self._index = index
        self._threads = threads
        self._may_skip = may_skip and not index.is_counted
        self._has_jumps, self._has_sought = index.has_jumps, False
        self._may_seek = not index.has_jumps
        self._opened = ExitStack()
        self._fault = "the stream ends early"

    def read(self, numbers: Sequence[int]) -> Generator[tuple[int, NDArray[np.uint8]]]:
        """Yield frames; to be called once.

        A packet that the decoder refuses is skipped and the frame before it stays on display, as
        in a player, for ``MAX_LOST_S`` at most.

        Args:
            numbers: Frame numbers in order of display, ascending.

        Yields:
            The number and the picture as it is shown (turned and mirrored as the video says), uint8
            [H, W, 3] RGB.

        Raises:
            MediaError: If the file cannot be opened, or frames are lost for longer.
        """
        from av.video.reformatter import VideoReformatter

        if self._index.is_still:
            yield from ((number, read_still(self._path)) for number in numbers)
            return
        reformatter = VideoReformatter()
        shown = self._index.shown[list(numbers)]
        targets = shown.tolist()
        keys = self._index.keyframes_before(shown).tolist()
        stops = self._index.positions_at(shown).tolist()
        self._wanted = frozenset(targets)
        with self._opened:
            self._start()
            for number, target, key, stop, next_key in zip(
                numbers, targets, keys, stops, [*keys[1:], None], strict=True
            ):
                self._seek_if_it_saves(key)
                self._stop = stop if next_key is None or self._pays(next_key, stop + 1) else -1
                frame = self._frame_on_display(target)
                try:
                    # One thread: by default swscale starts one per core.
                    rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                except media_faults() as fault:
                    raise MediaError(
                        f"{self._path}: frame {number} cannot be converted to RGB "
                        f"({one_line(fault)}). Convert the video to H.264."
                    ) from fault
                yield number, as_shown(frame, np.asarray(rgb, np.uint8))

    def _start(self) -> None:
        """Open the file at its first packet."""
        self._opened.close()
        self._container, self._stream = self._opened.enter_context(
            open_stream(self._path, self._index.stream, self._threads)
        )
        self._go_on(0, packets_of(self._container, [self._stream]))

    def _start_again(self) -> None:
        """Decode everything from the first packet on."""
        self._may_skip = self._has_sought = False
        self._start()

    def _go_on(self, position: int, packets: Iterator[Packet[VideoStream]]) -> None:
        """Decode from a position in file order on."""
        self._position = position
        self._decoded = self._decode(packets)
        self._shown: tuple[int, VideoFrame] | None = None
        self._ahead: tuple[int, VideoFrame] | None = None

    def _frame_on_display(self, target: int) -> VideoFrame:
        """The last frame shown at or before a time in ticks, else the first that decodes."""
        while self._ahead is None or self._ahead[0] <= target:
            if self._ahead is not None:
                self._shown, self._ahead = self._ahead, None
            if self._shown is not None and self._shown[0] >= target:
                break
            self._ahead = next(self._decoded, None)
            if self._ahead is None:
                break
        found = self._shown or self._ahead
        if self._may_skip and (found is None or found[0] != target):
            self._start_again()
            return self._frame_on_display(target)
        if found is None or abs(found[0] - target) * self._index.tick_s > MAX_LOST_S:
            raise MediaError(
                f"{self._path} cannot be decoded at second {self._index.second(target):.2f} "
                f"({self._fault}). Play it to check, and copy or download it again."
            )
        return found[1]

    def _decode(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield frames in order of display with their display times, ticks.

        Behind the packet to stop at the decoder gives what it holds and nothing more.
        """
        codec = self._stream.codec_context
        for packet in packets:
            if self._has_sought and not self._is_next(packet):
                return
            self._follow_clock(packet)
            self._position += 1
            self.packets_read += 1
            is_wanted = packet_time(packet) in self._wanted or not self._may_skip
            codec.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            yield from self._decode_packet(packet)
            if self._may_skip and self._position == self._stop + 1:
                break
        yield from self._decode_packet(None)

    def _is_next(self, packet: Packet[VideoStream]) -> bool:
        """Whether a packet has the time that the index says of this place."""
        times = self._index.times
        return self._position < len(times) and packet_time(packet) == times[self._position]

    def _follow_clock(self, packet: Packet[VideoStream]) -> None:
        """Where the clock jumps, give a packet the time of the index."""
        if self._has_jumps and self._position < len(self._index.times):
            packet.pts = int(self._index.times[self._position])

    def _decode_packet(
        self, packet: Packet[VideoStream] | None
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the frames a packet completes; None: those the decoder still holds."""
        try:
            frames = self._stream.codec_context.decode(packet)
        except media_faults() as fault:
            self._fault = one_line(fault)
            return
        for frame in frames:
            self.frames_decoded += 1
            yield self._display_time(frame), frame

    def _display_time(self, frame: VideoFrame) -> int:
        shown = self._index.shown
        if self._index.is_counted:
            return int(shown[min(self.frames_decoded, len(shown)) - 1])
        stamps = (frame.pts, frame.dts, self._shown and self._shown[0])
        return next((stamp for stamp in stamps if stamp is not None), int(shown[0]))

    def _pays(self, key: int, position: int) -> bool:
        """Whether to seek to a keyframe from a position in file order."""
        return self._may_skip and self._may_seek and key - position >= SEEK_SAVES_PACKETS

    def _seek_if_it_saves(self, key: int) -> None:
        """Jump to a keyframe, or leave the pass where it is.

        A jump that lands behind the keyframe is useless: the pass then begins again. One that saves
        nothing, or leads back, is the last that is tried.
        """
        if not self._pays(key, self._position):
            return
        for ticks in self._seek_times(key):
            packets = self._seek(ticks)
            if (found := self._keyframe_behind(packets, key)) is not None:
                landed, first = found
                self._may_seek = landed - self._position >= SEEK_SAVES_PACKETS
                self._has_sought = True
                self._go_on(landed, chain([first], packets))
                return
        self._start_again()

    def _seek_times(self, key: int) -> tuple[int, int, int]:
        """Times to seek to for a keyframe, ticks.

        Containers disagree on whether a seek goes by display time or by decode time; where it lands
        within a picture, the keyframe is behind it only if the seek began earlier.
        """
        decoded = int(self._index.decode_times[key])
        return int(self._index.times[key]), decoded, decoded - round(1 / self._index.tick_s)

    def _keyframe_behind(
        self, packets: Iterator[Packet[VideoStream]], key: int
    ) -> tuple[int, Packet[VideoStream]] | None:
        """The first keyframe behind a seek that is where the index says; None: none up to the one wanted.

        A seek in a program stream lands within a picture. The rest of it takes the stamps of the next,
        that one those of the one behind it, and so on until the stream states a time again.
        """
        for packet in packets:
            time = packet_time(packet)
            if time is not None and time > self._index.times[key]:
                return None
            if packet.is_keyframe and (landed := self._index.keyframe_of(packet)) is not None:
                return landed, packet
        return None

    def _seek(self, ticks: int) -> Iterator[Packet[VideoStream]]:
        """Packets from a keyframe near a time on; none if the container cannot seek."""
        try:
            self._container.seek(ticks, stream=self._stream)
        except media_faults():
            return iter(())
        return packets_of(self._container, [self._stream])

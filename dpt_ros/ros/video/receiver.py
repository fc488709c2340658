# SPDX-License-Identifier: Apache-2.0
"""Decodes the packets of a camera on a thread of its own; the executor gets the newest picture.

Every packet has to be decoded, in order, because the next one refers to it; in the executor that
would delay all callbacks. The frame itself is built on the executor's thread, as of any image.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from rclpy.node import Node

from dpt_ros.ros.messages.cdr import VideoPacket
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.video.decoder import WAITING, Picture, VideoDecoder

QUEUE = 64  # packets; 2 s at 30 Hz
_MOST_BYTES = 1 << 26  # of the packets that wait
_REPLACED = "replaced by a newer frame"  # as the pipeline says


class VideoReceiver:
    """The decoder of one camera.

    Args:
        node: its executor calls ``deliver``.
        deliver: takes pictures; older ones are left out while it has no time.
        drop: takes the reason for each packet that becomes no frame and is no fault.
        fail: takes the error of each packet that cannot be decoded.
    """

    def __init__(
        self,
        node: Node,
        decoder: VideoDecoder,
        deliver: Callable[[Picture], None],
        drop: Callable[[str], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._node = node
        self._decoder = decoder
        self._deliver = deliver
        self._drop = drop
        self._fail = fail
        self._changed = threading.Condition()
        self._waiting: deque[tuple[VideoPacket, int, bool]] = deque()
        self._paused = self._closed = False
        self._newest: Picture | None = None  # the thread's
        self._ready: Picture | None = None
        self._guard = node.create_guard_condition(self._hand_over)
        self._thread = threading.Thread(target=self._run, name="dpt_video", daemon=True)
        self._thread.start()

    def take(self, packet: VideoPacket, received_ns: int, gap: bool) -> None:
        """Take the next packet; ``gap``: whether there were others before it."""
        with self._changed:
            gap |= self._paused
            self._paused = False
            size = sum(one.data.size for one, _, _ in self._waiting) + packet.data.size
            if len(self._waiting) >= QUEUE or size > _MOST_BYTES:
                for _ in self._waiting:
                    self._drop("the decoder is too slow")
                self._waiting.clear()
                gap = True
            self._waiting.append((packet, received_ns, gap))
            self._changed.notify()

    def pause(self) -> None:
        """A packet was not given: until a keyframe the next ones are of no use."""
        with self._changed:
            self._paused = True

    def close(self) -> None:
        """End the thread; what was not delivered is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._node.destroy_guard_condition(self._guard)
        left = [*self._waiting, self._ready, self._newest, *self._decoder.restart()]
        for _ in filter(None, left):
            self._drop("closed")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                packet, received_ns, gap = self._waiting.popleft()
            try:
                self._sort(self._decoder.decode(packet, received_ns, gap))
            except Exception as error:  # a bad packet must never end the stream
                self._fail(error)
            if not self._waiting and self._newest is not None:
                self._convert(self._newest)
                self._newest = None

    def _sort(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            if picture.error is None:
                if self._newest is not None:
                    self._drop(_REPLACED)
                self._newest = picture
            elif picture.error.reason == WAITING:
                self._drop(WAITING)
            else:
                self._fail(picture.error)

    def _convert(self, picture: Picture) -> None:
        try:
            picture = picture.converted()
        except MessageError as error:
            self._fail(error)
            return
        with self._changed:
            replaced, self._ready = self._ready, picture
        if replaced is not None:
            self._drop(_REPLACED)
        self._guard.trigger()

    def _hand_over(self) -> None:
        """Called by the executor."""
        with self._changed:
            picture, self._ready = self._ready, None
        if picture is not None:
            self._deliver(picture)

# SPDX-License-Identifier: Apache-2.0
"""Whether the images of a topic come from one camera, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_WINDOW = 30  # frames
_OFTEN = 3  # times in the window


class _Image(NamedTuple):
    stamp: int
    frame_id: str
    size: tuple[int, int]
    sender: bytes


class FrameOrder:
    """Examines the last frames of a topic and the resets of the filter."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._images: deque[_Image] = deque(maxlen=_WINDOW)
        self._resets: deque[str] = deque(maxlen=_WINDOW)

    def add(self, stamp_ns: int, frame_id: str, size: tuple[int, int], sender: bytes) -> None:
        """Add the next image; ``sender`` is its publisher, empty where that is not known."""
        self._images.append(_Image(stamp_ns, frame_id, size, sender))

    def published(self, reset: str) -> None:
        """Add a published frame; ``reset`` is why the filter was reset at it, "" if it was not."""
        self._resets.append(reset)

    def warning(self, publishers: list[str]) -> str:
        """What is wrong with the order of the frames of these nodes, "" if nothing is."""
        images = list(self._images)
        pairs = list(pairwise(images))
        if len(pairs) < _OFTEN:
            return ""
        stamps = {one.stamp for one in images}
        if len(stamps) == 1:
            value = "0" if stamps == {0} else f"the same ({stamps.pop()} ns)"
            return (
                f"The stamps of the images on {self._topic} are all {value}: the filter"
                " is reset at each frame, so without smoothing and ego-motion, and nothing can be"
                " matched by time. Have the driver set header.stamp to the time of exposure."
            )
        signs = {
            "their publishers alternate": _returns([one.sender for one in images]),
            "their frame_id alternates": _returns([one.frame_id for one in images]),
            "their size alternates": _returns([one.size for one in images]),
            "their stamps go back and forth": sum(b.stamp <= a.stamp for a, b in pairs),
        }
        found = [
            f"{sign} ({n} times in {len(images)})" for sign, n in signs.items() if n >= _OFTEN
        ]
        if found:
            who = f" Publishers: {', '.join(publishers)}." if publishers else ""
            return (
                f"The images on {self._topic} are not from one camera in order:"
                f" {', '.join(found)}.{who} Give each camera a topic of its own, and stop players"
                " of bags on the same topic."
            )
        return self._reset_warning()

    def _reset_warning(self) -> str:
        resets = [reset for reset in list(self._resets) if reset]
        if len(resets) < 10 or len(resets) < len(self._resets) / 2:
            return ""
        common = max(set(resets), key=resets.count)
        cure = " Set smoothing.max_gap above the camera's period." if common == "gap" else ""
        return (
            f"The filter was reset at {len(resets)} of the last {len(self._resets)} frames"
            f" ({common}), so that smoothing has no effect.{cure}"
        )


def _returns(values: Sequence[object]) -> int:
    """How often an earlier value returns; a camera that is replaced once counts 0."""
    return sum(a != b for a, b in pairwise(values)) - (len(set(values)) - 1)

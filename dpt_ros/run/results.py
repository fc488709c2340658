# SPDX-License-Identifier: Apache-2.0
"""Depth and labels of pictures, videos and webcams, one after another."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from dpt_ros.engine.faults import first_line, is_out_of_memory
from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.inference.predict import crop, predict_image
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.pipeline import make_runner
from dpt_ros.engine.runner.host import Ticket
from dpt_ros.engine.settings import Settings, parameter_name
from dpt_ros.engine.text import one_line
from dpt_ros.run.pictures import read_picture
from dpt_ros.run.sources import Source, find_sources
from dpt_ros.run.videos import VideoReader

_AHEAD = 2  # pictures or frames that are read before their turn
# Settings of which a picture allows these values only.
_ONLY = {"output_size": ("input",), "points_stride": (1,), "scale_source": ("auto", "network")}
_Item = TypeVar("_Item")
OnError = Callable[[Path, str], None]


@dataclass(frozen=True, eq=False)
class Result:
    """Depth and labels of a picture or of a frame.

    Args:
        source: the file, or the device of a webcam.
        picture: (H, W, 3) uint8 RGB, as it was read; with ``kitti_crop`` what is left of it.
        depth: (H, W) float32 metres of a metric network, else None. Of a video NaN is unknown
            and +Inf beyond range; of a picture it is as published.
        inverse_depth: (H, W) float32 of a relative network, else None.
        labels: (H, W) uint8 class ids from 1; None without a label network.
        number: of the frame in the video, from 0.
        stamp_ns: of the frame in the video, nanoseconds from its start.
    """

    source: Path
    picture: np.ndarray
    depth: np.ndarray | None
    inverse_depth: np.ndarray | None
    labels: np.ndarray | None
    number: int = 0
    stamp_ns: int = 0


def run(
    source: str | int | Path,
    settings: Settings | Mapping[str, Any] | None = None,
    *,
    networks: Networks | None = None,
    recursive: bool = False,
    every: int = 1,
    kitti_crop: bool = False,
    on_error: OnError | None = None,
) -> Iterator[Result]:
    """Predict pictures exactly as published, and videos steadily over time.

    Args:
        source: a picture, a video, a folder of them; or a webcam: N or /dev/videoN.
        settings: the node's parameters by name, ``{"depth_network": "dpt_hybrid_nyu",
            "depth_weights": "download"}``, or as Settings.
        networks: from ``load_networks(settings)``, to load them once for several calls.
        recursive: whether to look into sub folders.
        every: of videos, take one frame out of so many.
        kitti_crop: predict the bottom centre 352 x 1216 only, as KITTI's benchmark does.
        on_error: takes the path and the reason for what cannot be read, which is passed over;
            by default that is a warning.

    Returns:
        An iterator of results: pictures in the order of their names, then videos.

    Raises:
        ValueError: the source does not exist, has nothing of use, or a setting is wrong.
        NetworkError: the networks cannot be loaded.
    """
    if not isinstance(settings, Settings):
        settings = Settings.parse(settings or {})
    check_settings(settings)
    if every < 1:
        raise ValueError(f"every is {every}, but must be at least 1.")
    sources, _ = find_sources(source, recursive)
    if networks is None:
        networks = load_networks(settings)
        for text in networks.warnings:
            warnings.warn(text, stacklevel=2)
    return _results(sources, networks, settings, every, kitti_crop, on_error or _warn)


def _warn(path: Path, reason: str) -> None:
    warnings.warn(f"{path}: {reason}", stacklevel=2)


def _results(
    sources: list[Source],
    networks: Networks,
    settings: Settings,
    every: int,
    kitti_crop: bool,
    on_error: OnError,
) -> Iterator[Result]:
    pictures = [source for source in sources if source.kind == "picture"]
    yield from predict_pictures(pictures, networks, settings, kitti_crop, on_error)
    for source in sources:
        if source.kind == "picture":
            continue
        try:
            reader = VideoReader(source.path, source.kind == "webcam", every)
            yield from predict_video(source, reader, networks, settings, kitti_crop)
            problem = reader.problem
        except (ValueError, cv2.error) as error:
            problem = one_line(first_line(error))
        if problem:
            on_error(source.path, problem)


def check_settings(settings: Settings) -> None:
    """Check that no setting asks for what a picture does not have.

    Raises:
        ValueError: one does.
    """
    for name, values in _ONLY.items():
        if (value := getattr(settings, name)) not in values:
            parameter = parameter_name(Settings.__dataclass_fields__[name])
            known = " or ".join(map(str, values))
            raise ValueError(f"{parameter} is {value}, but must be {known} for pictures.")


def predict_pictures(
    sources: Iterable[Source],
    networks: Networks,
    settings: Settings,
    kitti_crop: bool,
    on_error: OnError,
) -> Iterator[Result]:
    """Pictures, each for itself; see ``run``."""
    for source, picture in ahead((source, _read(source)) for source in sources):
        try:
            if isinstance(picture, ValueError):
                raise picture
            found = predict_image(networks, picture, kitti_crop, settings)
        except (ValueError, MemoryError, cv2.error, RuntimeError) as error:
            full = is_out_of_memory(error) or "can't allocate memory" in str(error)  # of a CPU
            if isinstance(error, RuntimeError) and not full:
                raise
            on_error(source.path, one_line(first_line(error)))
            continue
        depth = found.get("depth")
        metric = networks.metric
        yield Result(
            source.path,
            crop(picture) if kitti_crop else picture,
            depth if metric else None,
            None if metric else depth,
            found.get("labels"),
        )


def _read(source: Source) -> np.ndarray | ValueError:
    try:
        return read_picture(source.path)
    except OSError as error:
        return ValueError(f"it cannot be read: {error.strerror or error}.")
    except (ValueError, MemoryError) as error:
        return ValueError(str(error) or "it needs more memory than there is.")


def predict_video(
    source: Source, reader: VideoReader, networks: Networks, settings: Settings, kitti_crop: bool
) -> Iterator[Result]:
    """Frames in order, each smoothed with those before it; see ``run``.

    Raises:
        ValueError: the frames are smaller than the crop, or too long for the network.
    """
    runner = make_runner(networks, settings, warnings.warn)
    metric = networks.metric
    request = OutputRequest(
        depth=metric,
        inverse=networks.depth is not None and not metric,
        labels=networks.labels is not None,
    )
    tickets: deque[Ticket] = deque()
    for number, stamp, pixels in ahead(iter(reader)):
        if kitti_crop:
            pixels = np.ascontiguousarray(crop(pixels))
        frame = Frame(pixels, "bgr8", stamp, source=source.name, context=number)
        while len(tickets) >= runner.in_flight:
            yield from _finished(tickets.popleft(), source)
        tickets.append(runner.start([frame], request, settings))
    while tickets:
        yield from _finished(tickets.popleft(), source)


def _finished(ticket: Ticket, source: Source) -> Iterator[Result]:
    """Copies, for the runner's buffers return to it."""
    made = [_result(prediction, source) for prediction in ticket.wait()]
    ticket.release()
    yield from made


def _result(prediction: Prediction, source: Source) -> Result:
    frame = prediction.frame
    maps = (prediction.depth, prediction.inverse, prediction.labels)
    depth, inverse, labels = (None if one is None else one.copy() for one in maps)
    picture = cv2.cvtColor(frame.pixels, cv2.COLOR_BGR2RGB)
    return Result(source.path, picture, depth, inverse, labels, frame.context, frame.stamp_ns)


def ahead(items: Iterator[_Item], count: int = _AHEAD) -> Generator[_Item]:
    """The items, ``count`` of them made on another thread before their turn."""
    end = object()
    thread = ThreadPoolExecutor(1, "dpt_read")
    try:
        waiting = deque(thread.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)

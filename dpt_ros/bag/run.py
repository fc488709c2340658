# SPDX-License-Identifier: Apache-2.0
"""Runs the networks over a recorded bag: every frame, in order, the same result every time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial

import cv2

from dpt_ros.bag.frames import STATIC_FRAMES, Frames, Item
from dpt_ros.bag.job import Job, Result, made_from
from dpt_ros.bag.reader import BagError, BagReader, Once
from dpt_ros.bag.salvage import Channel
from dpt_ros.bag.topics import Camera, choose_cameras
from dpt_ros.bag.types import serialised, with_definition
from dpt_ros.bag.writer import OutputBag, offered_qos
from dpt_ros.engine.frame import Kind, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.pipeline import make_runner
from dpt_ros.engine.provenance import machine, networks_for
from dpt_ros.engine.runner.chain import is_refined
from dpt_ros.engine.runner.host import Ticket
from dpt_ros.engine.text import one_line
from dpt_ros.ros.camera.frame_order import FrameOrder
from dpt_ros.ros.messages.prediction import LABEL_INFO, PredictionMessages
from dpt_ros.ros.messages.types import type_name
from dpt_ros.run.results import ahead

# In a file: some seconds of work, so that little is lost and the files are few.
_LEAST_FRAMES = {"cpu": 64, "cuda": 512}
_MOST_FILES = 256  # readers of rosbag2 open all at once
_AHEAD = 8  # messages read and decoded before their turn
_PENDING = 64  # messages that wait for a frame before them to be computed
_MOST_REASONS = 20  # of failures, counted one by one


def convert(
    job: Job,
    warn: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Result:
    """Make the bag of a job, resuming where an earlier run was interrupted.

    Args:
        job: what to make.
        warn: takes warnings, each once.
        progress: takes the number of images done and the total, if that is known.

    Raises:
        BagError: the input cannot be used, or the output is something else.
        NetworkError: the networks cannot be loaded.
        OSError: the output cannot be written.
    """
    reader = BagReader(job.source)
    cameras, warnings = choose_cameras(reader.channels, job.chosen, job.settings)
    if job.out.resolve() in (job.source.resolve(), *job.source.resolve().parents):
        raise BagError(f"{job.out} contains the input; choose another name for the output.")
    networks = networks_for(job.settings)
    warn_once = Once(warn)
    for warning in (*reader.warnings, *warnings):
        warn_once(warning)
    made = made_from(job, reader, cameras, networks)
    with OutputBag(job, made, machine(networks)) as output:
        if known := output.finished:
            problems = tuple(known["notes"])
            return Result(known["frames"], 0, known["failed"], 0.0, "done before", problems)
        if output.warning:
            warn_once(output.warning)
        return _Run(job, reader, cameras, networks, output, warn_once, progress).all()


class _Run:
    """Three threads: one reads, the caller's gives frames to the device, one writes."""

    def __init__(
        self,
        job: Job,
        reader: BagReader,
        cameras: list[Camera],
        networks: Networks,
        output: OutputBag,
        warn: Callable[[str], None],
        progress: Callable[[int, int | None], None],
    ) -> None:
        self._job = job
        self._reader = reader
        self._output = output
        self._warn = warn
        self._progress = progress
        self._runner = make_runner(networks, job.settings, warn)
        self._refined = is_refined(networks, job.settings)
        self._before = output.progress
        self._done = replace(output.progress, failed=dict(output.progress.failed))
        self._orders = {camera.name: FrameOrder(camera.image) for camera in cameras}
        self._prefixes = {camera.name: camera.prefix for camera in cameras}
        settings = {c.name: replace(job.settings, **job.own.get(c.name, {})) for c in cameras}
        self._converters = {
            name: PredictionMessages(networks, partial(settings.__getitem__, name))
            for name in self._prefixes
        }
        self._topics, copied = self._open_output(cameras)
        self._total = reader.count([camera.image for camera in cameras])
        least = _LEAST_FRAMES[networks.device.type]
        self._file_frames = job.file_frames or max(least, (self._total or 0) // _MOST_FILES)
        self._decode_thread = ThreadPoolExecutor(2, "dpt_decode")
        self._write_thread = ThreadPoolExecutor(1, "dpt_write")
        self._frames = Frames(cameras, settings, self._request, copied, self._decode_thread, warn)
        self._backlog: list[Item] = []
        self._in_flight: deque[Future[None]] = deque()
        self._failed = False

    def _wanted(self, camera: str, topic: str) -> bool:
        return topic in self._job.outputs and topic in self._converters[camera].topics

    def _request(self, camera: str, calibrated: bool) -> OutputRequest:
        return self._converters[camera].request(partial(self._wanted, camera), calibrated)

    def _open_output(self, cameras: list[Camera]) -> tuple[list[str], list[str]]:
        """The topics to read, and those of them that are copied."""
        outputs = []
        for name, converter in self._converters.items():
            for note in filter(None, (converter.depth_note, converter.label_note)):
                self._warn(f"{name}: {note}" if name else note)
            outputs += [
                Channel(
                    f"/{self._prefixes[name]}{topic}",
                    type_name(kind),
                    qos=offered_qos(latched=topic == LABEL_INFO),
                )
                for topic, kind in converter.topics.items()
                if self._wanted(name, topic)
            ]
        if not outputs:
            raise BagError(
                f"The networks have none of the outputs {', '.join(self._job.outputs)}."
            )
        inputs = self._reader.channels if self._job.with_input else {}
        if both := [channel.topic for channel in outputs if channel.topic in inputs]:
            raise BagError(
                f"The input has a topic {both[0]}, as the output has; give the camera a name"
                " with -p cameras:=[NAME], or leave --with-input out."
            )
        defined = [with_definition(channel) for channel in (*outputs, *inputs.values())]
        channels = [channel for channel in defined if channel is not None]
        self._output.open(channels)
        copied = [channel.topic for channel in channels[len(outputs) :]]
        for topic in inputs.keys() - set(copied):
            self._warn(f"{topic} is not copied: its type {inputs[topic].msgtype} is not known.")
        topics = {topic for camera in cameras for topic in camera.topics} | set(copied)
        if STATIC_FRAMES in self._reader.channels:
            topics.add(STATIC_FRAMES)
        return sorted(topics), copied

    def all(self) -> Result:
        """Run to the end of the bag."""
        before = self._before
        self._runner.load_state_dict(before.engine)
        for camera, state in before.outputs.items():
            self._converters[camera].inverse_near = state["inverse_near"]
        start = time.monotonic()
        self._report_progress()
        try:
            self._compute_all(before.position)
        finally:
            self._failed = True  # nothing more is written
            self._write_thread.submit(self._output.abort).result()
            for thread in (self._write_thread, self._decode_thread):
                thread.shutdown(cancel_futures=True)
        if not self._done.frames:
            problems = [*self._reader.problems, *self._done.failed]
            raise BagError(" ".join(["No image of this bag can be read.", *problems]))
        problems = self._output.finish(self._reader.problems)
        return Result(
            self._done.frames,
            self._done.frames - before.frames,
            sum(self._done.failed.values()),
            time.monotonic() - start,
            "damaged" if problems else "done",
            tuple(problems),
        )

    # The caller's thread

    def _compute_all(self, position: int) -> None:
        in_file = self._done.frames + sum(self._done.failed.values())
        in_file %= self._file_frames
        # Some messages are read and decoded before their turn, on a thread of their own.
        found = self._frames.items(self._reader.messages(self._topics), position)
        with closing(ahead(found, _AHEAD)) as items:
            for item in items:
                position = item.number + 1
                self._add(item)
                if item.camera is None:
                    continue
                in_file += 1
                if in_file == self._file_frames:
                    self._end_file(position)
                    in_file = 0
        self._end_file(position)

    def _add(self, item: Item) -> None:
        """Compute an item as soon as enough wait to be computed together."""
        if item.decoding is not None:
            try:
                item.frame = item.decoding.result()
            except ValueError as error:  # a compressed image that is damaged
                item.error = str(error)
            item.decoding = None
        if item.frame is not None and not self._fits_batch(item):
            self._launch()
        self._backlog.append(item)
        frames = sum(one.frame is not None for one in self._backlog)
        full = frames >= self._runner.max_batch or len(self._backlog) >= _PENDING
        if full or (item.camera is not None and not frames):
            self._launch()

    def _fits_batch(self, item: Item) -> bool:
        """Whether a frame can be computed with those that wait."""
        waiting = [one for one in self._backlog if one.frame is not None]
        if not waiting:
            return True
        # The filter needs the state after a frame for the next one of the same camera.
        if self._refined and item.camera in [one.camera for one in waiting]:
            return False
        return _kind(item) == _kind(waiting[0])

    def _launch(self) -> None:
        """Give the waiting frames to the device, and all waiting items to the writing thread."""
        items, self._backlog = self._backlog, []
        while len(self._in_flight) >= self._runner.in_flight:
            self._in_flight.popleft().result()
        frames = {item: item.frame for item in items if item.frame is not None}
        ticket = None
        if frames:
            request = next(iter(frames)).request
            try:
                ticket = self._runner.start([*frames.values()], request, self._job.settings)
            except (ValueError, cv2.error) as error:  # frames of a kind that cannot be computed
                for item in frames:
                    item.frame, item.error = None, str(error)
        self._in_flight.append(self._write_thread.submit(self._write, items, ticket))

    def _end_file(self, position: int) -> None:
        """Wait until all frames are written, and save the state of the run."""
        self._launch()
        while self._in_flight:
            self._in_flight.popleft().result()
        self._done.position = position
        self._done.engine = self._runner.state_dict()
        self._done.outputs = {
            name: {"inverse_near": converter.inverse_near}
            for name, converter in self._converters.items()
        }
        progress = replace(self._done, failed=dict(self._done.failed))
        # SQLite wants every call from one thread.
        self._write_thread.submit(self._output.checkpoint, progress).result()

    # The writing thread

    def _write(self, items: list[Item], ticket: Ticket | None) -> None:
        if self._failed:
            return
        try:
            predictions = iter(ticket.wait() if ticket is not None else ())
            for item in items:
                if item.copy is not None:
                    self._output.write(*item.copy)
                if item.frame is not None:
                    self._write_prediction(item, next(predictions))
                elif item.error:
                    self._count_failure(one_line(item.error))
                self._report_progress()
            if ticket is not None:
                ticket.release()
        except BaseException:  # raised again in the caller's thread; nothing more is written
            self._failed = True
            raise

    def _write_prediction(self, item: Item, prediction: Prediction) -> None:
        assert item.camera is not None
        time_ns = prediction.frame.context.received_ns
        if not self._done.frames:
            for name, converter in self._converters.items():
                if self._wanted(name, LABEL_INFO):
                    self._write_message(name, LABEL_INFO, time_ns, converter.label_info())
        converter, wanted = self._converters[item.camera], partial(self._wanted, item.camera)
        for topic, message in converter.messages(prediction, wanted):
            self._write_message(item.camera, topic, time_ns, message)
        self._done.frames += 1
        self._check_order(item.camera, prediction)

    def _check_order(self, camera: str, prediction: Prediction) -> None:
        """Warn once of images whose order prevents smoothing."""
        order, frame = self._orders.get(camera), prediction.frame
        if order is None:
            return
        order.add(frame.stamp_ns, frame.frame_id, frame.context.size, b"")
        order.published(prediction.reset if self._job.settings.smoothing_strength else "")
        if warning := order.warning([]):
            self._warn(warning)
            del self._orders[camera]

    def _write_message(self, camera: str, topic: str, time_ns: int, message: object) -> None:
        self._output.write(f"/{self._prefixes[camera]}{topic}", time_ns, serialised(message))

    def _count_failure(self, reason: str) -> None:
        reasons = self._done.failed
        if reason not in reasons and len(reasons) >= _MOST_REASONS:
            reason = "other faults"
        reasons[reason] = reasons.get(reason, 0) + 1

    def _report_progress(self) -> None:
        self._progress(self._done.frames + sum(self._done.failed.values()), self._total)


def _kind(item: Item) -> Kind:
    assert item.frame is not None
    return Kind.of(item.frame, item.request)

# SPDX-License-Identifier: Apache-2.0
"""What dpt_run does once its arguments are parsed: pictures, then videos, into files."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import torch
from PIL import Image

from dpt_ros.apps.command_line import fail
from dpt_ros.apps.progress import print_above, progress_bar
from dpt_ros.engine.faults import DeviceLostError, first_line
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.loading import NetworkError
from dpt_ros.engine.parameter_file import read_settings
from dpt_ros.engine.provenance import machine, made_with, networks_for
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.text import one_line
from dpt_ros.model import model_spec
from dpt_ros.run.folder import FolderError, ResultFolder, check_folder
from dpt_ros.run.outputs import Files
from dpt_ros.run.results import Result, check_settings, predict_pictures, predict_video
from dpt_ros.run.sources import Source, find_sources
from dpt_ros.run.videos import VideoReader, VideoWriter

_WRITERS, _WAITING = 2, 8  # threads that write results, and results that wait for them
_MOST_NAMES = 5  # of files that are passed over


def run(args: argparse.Namespace) -> int:
    """Predict what the arguments name. Returns the exit code of ``dpt_run``."""
    # OpenCV's readers write about damaged files to the terminal; the message is ours.
    silence = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, 5
    silence(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        warnings.showwarning = lambda message, *_: print_above(one_line(str(message)))
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        settings = _settings(args)
        check_folder(args.out)
        sources, others = find_sources(args.source, args.recursive, leave_out=args.out)
    except ValueError as error:
        return fail("dpt_run", error, 2)
    if others:
        names = ", ".join(path.name for path in others[:_MOST_NAMES])
        more = ", ..." if len(others) > _MOST_NAMES else ""
        print_above(one_line(f"{len(others)} files are no pictures or videos: {names}{more}"))
    try:
        networks = networks_for(settings)
        for text in networks.warnings:
            print_above(text)
        _check_outputs(args, networks)
        folder = ResultFolder(args.out, _made_with(args, settings, networks), args.overwrite)
    except (FolderError, NetworkError, OSError) as error:
        return fail("dpt_run", error, 1)
    work = _Run(args, settings, networks, folder)
    try:
        work.all(sources)
    except KeyboardInterrupt:
        return fail("dpt_run", work.resumption(sources), 130)
    except (OSError, DeviceLostError, torch.OutOfMemoryError) as error:
        return fail("dpt_run", error, 1)
    finally:
        folder.close()
    print(work.summary())
    if not work.problems:
        return 0
    return 3 if work.made or work.before else 1


def _settings(args: argparse.Namespace) -> Settings:
    """The node's settings, with --network and --weights. Raises ValueError for wrong ones."""
    given = []
    if args.network:
        chosen: dict[str, str] = {}
        for name in args.network:
            for task in model_spec(name).tasks:
                if task in chosen:
                    raise ValueError(f"--network: {chosen[task]} and {name} both predict {task}.")
                chosen[task] = name
        for task, prefix in (("depth", "depth"), ("labels", "label")):
            given.append(f"{prefix}_network:={chosen.get(task, 'none')}")
    if args.weights:
        value = json.dumps(args.weights)  # which is YAML, whatever is in it
        given += [f"depth_weights:={value}", f"label_weights:={value}"]
    settings, _ = read_settings(args.params, [*given, *args.given])
    check_settings(settings)
    return settings


def _check_outputs(args: argparse.Namespace, networks: Networks) -> None:
    """Leave out what the networks do not have. Raises NetworkError if it was asked for by name."""
    labels = {"labels", "overlay"}
    missing = set() if networks.labels else labels
    missing |= set() if networks.depth else {"png", "pfm", "npy", "color"}
    if names := [name for name in args.outputs or () if name in missing]:
        raise NetworkError(f"The networks have no {', '.join(names)}: choose others (--network).")
    for kind, outputs in args.outputs_by_kind.items():
        args.outputs_by_kind[kind] = tuple(name for name in outputs if name not in missing)


def _made_with(
    args: argparse.Namespace, settings: Settings, networks: Networks
) -> dict[str, object]:
    """Everything that the results depend on beside the pictures."""
    here = machine(networks)
    versions = {name: here[name] for name in ("precision", "torch", "dpt_ros")}
    names = ("absolute_depth", "kitti_crop", "every")
    options = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    return {**made_with(settings, networks), **options, **versions}


class _Run:
    """One run over all sources; ``made``, ``before``: pictures and videos of this run, and those
    complete before; ``problems``: what could not be read."""

    def __init__(
        self, args: argparse.Namespace, settings: Settings, nets: Networks, folder: ResultFolder
    ) -> None:
        self.made = self.before = 0
        self.problems: list[str] = []
        self._frames, self._start = 0, time.monotonic()
        self._args, self._settings, self._networks = args, settings, nets
        self._folder = folder
        self._waiting: deque[Future[None]] = deque()

    def all(self, sources: Sequence[Source]) -> None:
        """Pictures first, then videos."""
        missing = [s for s in sources if not self._folder.has(s, self._outputs(s))]
        self.before = len(sources) - len(missing)
        if self.before:
            print_above(f"{self.before} complete before, passed over.")
        self._writers = ThreadPoolExecutor(_WRITERS, "dpt_write")
        try:
            self._pictures([source for source in missing if source.kind == "picture"])
            for source in missing:
                if source.kind != "picture":
                    self._video(source)
        finally:
            self._writers.shutdown(cancel_futures=True)

    def _outputs(self, source: Source) -> tuple[str, ...]:
        kind = "picture" if source.kind == "picture" else "video"
        return tuple(self._args.outputs_by_kind[kind])

    def _failed(self, path: Path, reason: str) -> None:
        self.problems.append(one_line(f"{path}: {reason}"))
        print_above(self.problems[-1])

    def _pictures(self, sources: Sequence[Source]) -> None:
        if not sources:
            return
        by_path = {source.path: source for source in sources}
        args = self._args
        with progress_bar("pictures", "picture") as show:
            show(0, len(sources))

            def on_error(path: Path, reason: str) -> None:
                self._failed(path, reason)
                show(self.made + len(self.problems), len(sources))

            for result in predict_pictures(
                sources, self._networks, self._settings, args.kitti_crop, on_error
            ):
                self._wait(_WAITING - 1)
                work = self._writers.submit(self._write_picture, by_path[result.source], result)
                self._waiting.append(work)
                self.made += 1
                show(self.made + len(self.problems), len(sources))
            self._wait(0)

    def _write_picture(self, source: Source, result: Result) -> None:
        self._folder.write(source, self._files(source).files(result))

    def _files(self, source: Source) -> Files:
        how = self._args.absolute_depth, self._settings.color_range
        return Files(self._networks, self._outputs(source), *how)

    def _wait(self, most: int) -> None:
        """Until at most so many results wait to be written."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def _video(self, source: Source) -> None:
        try:
            reader = VideoReader(source.path, source.kind == "webcam", self._args.every)
            self._frames_of(source, reader)
        except (ValueError, cv2.error) as error:
            self._failed(source.path, first_line(error))
            return
        if reader.problem:
            self._failed(source.path, reader.problem)

    def _frames_of(self, source: Source, reader: VideoReader) -> None:
        outputs = self._outputs(source)
        frames = [name for name in outputs if name != "video"]
        files, stamps = self._files(source), list[tuple[int, int]]()
        writer = None
        if "video" in outputs:
            writer = VideoWriter(self._folder.file(source, "video"), reader.rate)
        self._folder.begin_frames(source, frames)
        try:
            with progress_bar(source.path.name, "frame") as show:
                show(0, reader.frames)
                try:
                    for result in predict_video(
                        source, reader, self._networks, self._settings, self._args.kitti_crop
                    ):
                        if writer is not None:
                            writer.write(files.side_by_side(result), result.stamp_ns)
                        if frames:
                            self._folder.write(source, files.files(result), result.number)
                        stamps.append((result.number, result.stamp_ns))
                        show(len(stamps), reader.frames)
                except KeyboardInterrupt:
                    if source.kind != "webcam" or not stamps:
                        raise
                    print_above(f"Stopped after {len(stamps)} frames.")  # the way to end it
            if stamps:
                if writer is not None:
                    writer.close()
                self._folder.end_frames(source, frames, stamps)
                self.made += 1
                self._frames += len(stamps)
        finally:
            if writer is not None:
                writer.abort()

    def resumption(self, sources: Sequence[Source]) -> str:
        """Where the same command continues after an interruption."""
        again = " A video is started anew." if any(s.kind == "video" for s in sources) else ""
        done = self.made + self.before
        return (
            f"Interrupted after {done} of {len(sources)}. The same command passes over what is"
            f" complete and computes the rest.{again}"
        )

    def summary(self) -> str:
        """What was done, in one line."""
        seconds = time.monotonic() - self._start
        frames = f" ({self._frames} frames of videos)" if self._frames else ""
        parts = [f"{self.made} done{frames} in {seconds:.1f} s"]
        parts += [f"{self.before} done before"] if self.before else []
        parts += [f"{len(self.problems)} could not be read"] if self.problems else []
        return one_line(f"{', '.join(parts)}; results in {self._folder.path}")

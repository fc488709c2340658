# SPDX-License-Identifier: Apache-2.0
"""Steps as ONNX files, run: ONNX Runtime computes, the host's part is here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from dpt_ros.data import class_names, palette
from dpt_ros.engine.export.file import (
    FIELDS,
    KIND,
    NETWORK,
    SPEC,
    ExportError,
    open_session,
    read_metadata,
)
from dpt_ros.engine.export.step import NEW_STATE, STATE, number_places
from dpt_ros.engine.frame import Frame, Prediction
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.runner.cameras import Cameras
from dpt_ros.engine.runner.chain import Chain, depth_limit
from dpt_ros.engine.runner.step import frame_numbers
from dpt_ros.engine.scale.estimator import ScaleState
from dpt_ros.engine.settings import Settings

_NUMPY = {"tensor(float)": np.float32, "tensor(double)": np.float64}


class _HostNetwork(Network):
    """What the host has to know of a depth network."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = cast(Any, SimpleNamespace(**spec))


class _File:
    """One file of ``StepModule`` in ONNX Runtime."""

    def __init__(self, path: str | os.PathLike[str], providers: Sequence[Any], threads: int):
        metadata = {key: json.loads(value) for key, value in read_metadata(path).items()}
        if metadata.get(KIND) != "step":
            raise ExportError(f"{path} is no step: write one with dpt_export --step.")
        self.path, self.names = os.fspath(path), metadata[NETWORK]
        self.spec, self.fields = metadata[SPEC], metadata[FIELDS]
        told = {
            name: {key: part.get(key) for key in ("offset", "shape", "meaning")}
            for name, part in self.fields["numbers"].items()
        }
        if told != number_places():
            raise ExportError(
                f"{path} is of another version of dpt_ros, which gave a step other numbers: export"
                " it again."
            )
        self.session = open_session(self.path, providers, threads)
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.state = {
            one.name.removeprefix(STATE): (tuple(one.shape[1:]), _NUMPY[one.type])
            for one in self.session.get_inputs()
            if one.name.startswith(STATE)
        }
        shapes = ("map_size", "luma_size", "label_shape")
        known: dict[str, Any] = {name: tuple(self.spec[name]) for name in shapes}
        # What ``Cameras.plan`` asks of a chain.
        self.chain = cast(
            Chain,
            SimpleNamespace(smoothed=self.spec["smoothed"], refined=True, seen=None, **known),
        )

    def fits(self, frame: Frame) -> bool:
        spec = self.spec
        same = (frame.encoding, list(frame.pixels.shape)) == (spec["encoding"], spec["pixels"])
        return same and frame.lens is None  # files do not rectify

    def fitted(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A camera's state as this file takes it, (1, ...) each; see ``fitted_state``."""
        maps = state.get("maps")
        same = maps is not None and maps.shape[1:] == self.state.get("maps", (None,))[0]
        found = {}
        for name, (shape, dtype) in self.state.items():
            value = state.get(name) if same or name in ScaleState._fields else None
            if value is None or value.shape[1:] != shape:
                value = np.zeros((1, *shape), dtype)
            found[name] = value.astype(dtype, copy=False)
        return found


class StepSession:
    """Cameras whose frames go through files of ``StepModule``.

    The files are of the same networks and settings, for frames of different kinds. A camera keeps
    its state from file to file, as it does from chain to chain: at a change of size the scale
    stays and the filter begins anew.

    Args:
        paths: of the files.
        providers: of ONNX Runtime, by preference.
        threads: of ONNX Runtime for one operation; 0 leaves the choice to it.

    Attributes:
        settings: of the export; live settings (smoothing_strength, smoothing_max_gap, max_range)
            may be replaced at any time.
        class_names: of the labels; that of id k + 1 is at k.

    Raises:
        ImportError: onnxruntime is not installed.
        OSError, ExportError: a file cannot be read, is no step, or of other networks or settings.
    """

    def __init__(
        self,
        *paths: str | os.PathLike[str],
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        threads: int = 0,
    ) -> None:
        self._files = [_File(path, providers, threads) for path in paths]
        first = self._files[0]
        for file in self._files[1:]:
            for name in ("depth", "settings", "classes"):
                if file.names != first.names or file.spec[name] != first.spec[name]:
                    raise ExportError(
                        f"{file.path} and {first.path} cannot be used together: they are of"
                        f" different networks or settings ({name})."
                    )
        given: dict[str, Any] = first.spec["settings"]
        lists = {name: tuple(one) for name, one in given.items() if isinstance(one, list)}
        self.settings = Settings(**given | lists)
        self.class_names = class_names(first.path)
        self._networks = Networks(
            depth=_HostNetwork(first.spec["depth"]),
            labels=None,
            device=torch.device("cpu"),
            precision="fp32",
            class_names=self.class_names,
            palette=palette(first.path),
            floor=tuple(first.spec["floor"]),
        )
        self._cameras = Cameras(self._networks, self.settings)
        self._states: dict[str, dict[str, np.ndarray]] = {}

    def reset(self) -> None:
        """Forget the past of all cameras."""
        self._cameras.reset()

    def state_dict(self) -> dict[str, Any]:
        """The state of all cameras, as ``Runner.state_dict`` gives it, but as arrays."""
        records = self._cameras.state_dict()
        return {name: {"record": records[name], "state": self._states[name]} for name in records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the ``state`` that ``state_dict`` gave, here or of a runner with the same
        networks and settings."""
        self._cameras.load_state_dict({name: parts["record"] for name, parts in state.items()})
        self._states = {
            name: {key: np.asarray(value) for key, value in parts["state"].items()}
            for name, parts in state.items()
        }

    def __call__(self, frames: Sequence[Frame]) -> list[Prediction]:
        """Process a frame of each of up to B cameras, B the batch of the files.

        Args:
            frames: of different cameras, which are told apart by ``source``.

        Returns:
            Their predictions, in the same order.

        Raises:
            ValueError: no file takes frames of this kind, or there are too many.
        """
        frames = [frame.decoded() for frame in frames]
        file = self._file_of(frames)
        if self._cameras.forget():
            self._states.clear()
        plans = [self._cameras.plan(frame, file.chain, self.settings) for frame in frames]
        limit = depth_limit(self._networks, self.settings)
        states = [file.fitted(self._states.get(frame.source, {})) for frame in frames]
        pixels = np.stack([frame.pixels for frame in frames])
        numbers = np.stack([frame_numbers(plan.numbers, limit) for plan in plans])
        feed = {"pixels": pixels, "numbers": numbers}
        feed |= {
            STATE + name: np.concatenate([one[name] for one in states]) for name in file.state
        }
        # The rest of the batch repeats the last frame.
        rest = file.spec["batch"] - len(frames)
        feed = {
            name: np.concatenate([value, *[value[-1:]] * rest]) for name, value in feed.items()
        }
        results = dict(zip(file.outputs, file.session.run(None, feed), strict=True))
        self._cameras.accept(frames, plans)
        for k, frame in enumerate(frames):
            self._states[frame.source] = {
                name: results[NEW_STATE + name][k : k + 1] for name in file.state
            }
        arrays = {name: value for name, value in results.items() if NEW_STATE not in name}
        predictions = [Prediction(frame) for frame in frames]
        self._cameras.fill(predictions, plans, arrays)
        return predictions

    def _file_of(self, frames: Sequence[Frame]) -> _File:
        kinds = {(frame.encoding, frame.pixels.shape) for frame in frames}
        for file in self._files:
            if all(file.fits(frame) for frame in frames):
                if len(frames) > file.spec["batch"]:
                    raise ValueError(
                        f"There are {len(frames)} frames, but {file.path} takes at most"
                        f" {file.spec['batch']}; export with a larger batch."
                    )
                return file
        known = ", ".join(
            f"{file.spec['encoding']} {tuple(file.spec['pixels'])}" for file in self._files
        )
        given = ", ".join(f"{encoding} {shape}" for encoding, shape in kinds)
        raise ValueError(
            f"The frames are {given or 'none'}, but the files take {known}; export another file."
        )

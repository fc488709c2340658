# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of everything that reads bytes from outside.

One file per target. A target has ``seeds()``, inputs to begin with; and ``one_input(data)``, which
raises when the property is broken. `TARGETS` names the packages whose branches steer the search.
The property is the same for all: what is wrong ends in one of the documented errors, whose text is
a sentence on one line (`properties.sentence`), within a second and within a bound of memory.

    pip install atheris
    python test/fuzz/run.py                       every target, ten minutes each
    python test/fuzz/run.py image cdr --seconds 60

An input that breaks the property is written to ``--work``; move it to ``found/TARGET/`` when the
fault is repaired. With ``--keep``, the inputs that reach something new are added to
``corpus/TARGET.tar.xz``, as few and as small as will do:

    python test/fuzz/run.py image --seconds 600 --keep

The quick tests (``test/project/test_fuzz_seeds.py``) run all of them, and need no atheris.
"""

_OURS = ("dpt_ros",)

TARGETS: dict[str, tuple[str, ...]] = {
    "image": _OURS,
    "cdr": _OURS,
    "compressed": _OURS,
    "video": _OURS,
    "camera_info": _OURS,
    "odometry": _OURS,
    "anchors": _OURS,
    "checkpoint": (*_OURS, "torch._weights_only_unpickler", "safetensors"),
    "bag": (*_OURS, "rosbags"),
    "bag_run": _OURS,
    "parameters": _OURS,
}

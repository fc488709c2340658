# SPDX-License-Identifier: Apache-2.0
"""Published outputs of published weights on a public picture: what `dpt_doctor --prove` compares.

The values are those of the integration tests of Hugging Face's transformers
(tests/models/dpt/test_modeling_dpt.py and test_modeling_dpt_hybrid.py): the first three rows and
columns of the output for the whole picture. Their Intel/dpt-* networks are the authors' files
under other key names (convert_dpt_to_pytorch.py, convert_dpt_hybrid_to_pytorch.py). The picture
there is a PNG, whose pixels are those of COCO's JPEG as Pillow decodes it.

The image processors of Intel/dpt-large and -ade resize with Pillow's bilinear filter ("resample":
2 in their preprocessor_config.json). That of Intel/dpt-hybrid-midas was saved when bilinear was
the default of DPTImageProcessor; today's is bicubic. So both are tried, in this order: nine values
to four digits are not met by chance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

ABSOLUTE = 1e-4
RELATIVE = {"fp32": 1e-4, "fp16": 1e-2}
"""The largest difference is ABSOLUTE + RELATIVE * |value|: for fp32, whatever the backend, as in
transformers' tests; for fp16 as in ``dpt_export --parity``."""


class Download(NamedTuple):
    """A file and its sha256."""

    url: str
    sha256: str


# 173,131 bytes, 640x480; several public projects pin this hash.
CATS = Download(
    "http://images.cocodataset.org/val2017/000000039769.jpg",
    "dea9e7ef97386345f7cff32f9055da4982da5471c48d575146c796ab4563b04e",
)


@dataclass(frozen=True)
class Answer:
    """What some networks, all with the same weights, give for a picture.

    Args:
        networks: their names in the zoo.
        side: height and width at which the picture enters, pixels; its aspect is not kept.
        values: the output from its first pixel on, row by row: relative inverse depth, or logits
            of the first class, at the size of the input.
        divisor: the output is divided by it before it is compared.
        source: who published the values.
        picture: what is shown to the network.
        weights: where they are; None for what the zoo has.
    """

    networks: tuple[str, ...]
    side: int
    values: tuple[tuple[float, ...], ...]
    divisor: float = 1.0
    source: str = "transformers' tests"
    picture: Download = CATS
    weights: Download | None = None


ANSWERS = (
    Answer(
        ("dpt_large_midas", "dpt_large_384", "Intel/dpt-large"),
        384,
        ((6.3199, 6.3629, 6.4148), (6.3850, 6.3615, 6.4166), (6.3519, 6.3176, 6.3575)),
    ),
    Answer(
        ("dpt_hybrid_midas", "dpt_hybrid_384", "Intel/dpt-hybrid-midas"),
        384,
        ((5.6437, 5.6146, 5.6511), (5.4371, 5.5649, 5.5958), (5.5215, 5.5184, 5.5293)),
        divisor=100.0,
    ),
    Answer(
        ("dpt_large_ade20k", "Intel/dpt-large-ade"),
        480,
        ((4.0480, 4.2420, 4.4360), (4.3124, 4.5693, 4.8261), (4.5768, 4.8965, 5.2163)),
    ),
)


def read_answers(path: Path) -> tuple[Answer, ...]:
    """Answers of a JSON file: a list of objects with the fields of `Answer`.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            row |= {key: Download(**row[key]) for key in ("picture", "weights") if key in row}
            if len({len(line) for line in row["values"]}) != 1:
                raise ValueError("the rows of values differ in length")
        return tuple(Answer(**row) for row in rows)
    except (OSError, ValueError, TypeError, LookupError) as error:
        names = ", ".join(field.name for field in fields(Answer))
        raise ValueError(
            f"{path} holds no answers ({error}); expected a JSON list of objects with {names}."
        ) from error

# SPDX-License-Identifier: Apache-2.0
"""A file to download, and its hash."""

from __future__ import annotations

import hashlib

CONTENT = bytes(range(256)) * 2000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

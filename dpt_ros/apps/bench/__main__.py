# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.bench`` is dpt_bench."""

from dpt_ros.apps.bench import main

if __name__ == "__main__":  # and not in the processes that it starts
    raise SystemExit(main())

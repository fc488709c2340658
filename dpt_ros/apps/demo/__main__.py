# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.demo`` is dpt_demo."""

from dpt_ros.apps.demo import main

raise SystemExit(main())

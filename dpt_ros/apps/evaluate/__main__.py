# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.evaluate`` is dpt_evaluate."""

from dpt_ros.apps.evaluate import main

raise SystemExit(main())

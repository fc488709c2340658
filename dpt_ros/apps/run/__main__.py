# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.run`` is dpt_run."""

from dpt_ros.apps.run import main

raise SystemExit(main())

# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.status`` is dpt_status."""

from dpt_ros.apps.status import main

raise SystemExit(main())

# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.export`` is dpt_export."""

from dpt_ros.apps.export import main

raise SystemExit(main())

# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.view`` is dpt_view."""

from dpt_ros.apps.view import main

raise SystemExit(main())

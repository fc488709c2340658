# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.doctor`` is dpt_doctor."""

from dpt_ros.apps.doctor import main

raise SystemExit(main())

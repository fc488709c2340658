# SPDX-License-Identifier: Apache-2.0
"""What ``dpt_train`` does: recipes, training pictures, the network to train, the loop."""

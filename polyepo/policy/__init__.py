"""The policy: model, warm start, loss, update, checkpoints. It needs the extra `train`."""

from polyepo.extras import require

require("train", "torch", "transformers", "safetensors")

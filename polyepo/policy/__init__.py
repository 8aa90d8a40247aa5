"""The policy: model, warm start, loss, update, checkpoints."""

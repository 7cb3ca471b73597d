"""What training did to a model: comparisons of its checkpoints, streamed."""

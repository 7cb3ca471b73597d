"""One loop for pretraining, mid-training and context extension."""

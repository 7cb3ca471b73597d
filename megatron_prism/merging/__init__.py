"""Checkpoint arithmetic: several models of one architecture become one, streamed."""

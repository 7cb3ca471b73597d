"""Stages, artifacts, the graph that runs them, and how a stage reaches more than one process."""

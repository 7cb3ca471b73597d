"""Stages, artifacts, the graph that runs them, and the processes that stages run on."""

"""Stages as jobs of a cluster: executors in YAML, submission through nemo-run, and what a job does when it runs."""

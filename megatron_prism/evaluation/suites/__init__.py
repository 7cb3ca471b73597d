"""Suites of benchmarks as data: a YAML file says where the problems are, how they are asked, sampled and graded."""

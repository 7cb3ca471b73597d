"""Packages of the wheel: the rooms of megatron_prism, and recipes/ under a name inside it. All else: pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["megatron_prism*"]), "megatron_prism._recipes"],
    package_dir={"megatron_prism._recipes": "recipes"},
)

"""Devices, process groups, random state and the console. Only this room distinguishes CPU and GPU."""

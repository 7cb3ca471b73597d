"""The only room that knows a CPU from a GPU: devices, process groups, random state, the console."""

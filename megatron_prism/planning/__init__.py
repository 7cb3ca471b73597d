"""What a run needs before it starts: memory, time and disk by arithmetic, without torch."""

"""The few modules that differ from Megatron-Core's own."""

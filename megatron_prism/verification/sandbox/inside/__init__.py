"""What runs beside a model's program in its process: standard library only, loaded in a bare interpreter."""

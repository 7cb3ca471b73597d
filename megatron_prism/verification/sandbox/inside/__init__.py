"""Code that runs in the process of a model's program: it uses the standard library only, in a bare interpreter."""

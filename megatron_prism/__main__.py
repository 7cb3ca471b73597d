"""`python -m megatron_prism`: the same as the `prism` command."""

from megatron_prism.cli.main import main

# Saving a checkpoint spawns a helper process that imports this file again.
if __name__ == "__main__":
    main()

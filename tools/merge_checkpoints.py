"""`prism merge` under the name that Megatron users look for.

python tools/merge_checkpoints.py OUT --model A=0.15 --model B=0.85
"""

import sys

from megatron_prism.cli.main import main

if __name__ == "__main__":
    main(["merge", *sys.argv[1:]])

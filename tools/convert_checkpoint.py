"""`prism convert` under the name that Megatron users look for.

python tools/convert_checkpoint.py import HF_DIR OUT
python tools/convert_checkpoint.py export CHECKPOINT OUT
python tools/convert_checkpoint.py verify A B --logits
python tools/convert_checkpoint.py quantize HF_DIR OUT --calibration FILE
"""

import sys

from megatron_prism.cli.main import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])

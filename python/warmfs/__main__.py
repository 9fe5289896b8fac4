"""``python -m warmfs``: the command line, where scripts are not on ``PATH``."""

import os
import sys

from ._binary import find
from ._errors import WarmfsError

try:
    program = str(find())
    os.execv(program, [program, *sys.argv[1:]])
except (WarmfsError, OSError) as error:
    sys.exit(f"warmfs: {error}")

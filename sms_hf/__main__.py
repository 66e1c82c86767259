"""`python -m sms_hf`: the command `sms-hf`."""

import sys

from .cli import main

sys.exit(main())

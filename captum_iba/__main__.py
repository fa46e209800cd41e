"""``python -m captum_iba``: the command line, for launchers such as torchrun that start modules."""

import sys

from captum_iba.cli import main

if __name__ == "__main__":
    sys.exit(main())

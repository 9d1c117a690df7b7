"""The command `weightkit`, also as `python -m weightkit`."""

import os
import sys


def main() -> None:
    """Load the command line and run it. What is interrupted while it loads ends as quietly as what is later on."""
    try:
        from weightkit.cli.app import main
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
        os._exit(130)
    main()


if __name__ == "__main__":
    main()

"""`python -m weightkit` is the command `weightkit`."""

from weightkit.cli.app import main

main()

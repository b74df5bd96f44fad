"""Runs the command line as `python -m turbocode_cli`."""

from turbocode_cli.main import main

main()

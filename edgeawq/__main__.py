"""`python -m edgeawq`: how a device runs the program, without an installed script."""

from edgeawq.cli.main import main

if __name__ == "__main__":
    main()

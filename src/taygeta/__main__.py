"""`python -m taygeta` is the command."""

from taygeta.app.cli import main

if __name__ == "__main__":
    main()

"""`python -m sasrec` is the command line."""

from sasrec.cli.main import main

if __name__ == "__main__":
    main()

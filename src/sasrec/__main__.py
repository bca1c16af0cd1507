"""The program: `sasrec` and `python -m sasrec`. Completions are answered without loading the rest."""

import os


def main() -> None:
    """Run the command line."""
    if "_SASREC_COMPLETE" in os.environ:
        from sasrec.cli.completion import complete

        complete()
    from sasrec.cli.main import main as run

    run()


if __name__ == "__main__":
    main()

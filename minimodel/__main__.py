"""``python -m minimodel`` is the command line."""

from minimodel.cli import main

if __name__ == "__main__":
    main()

"""The command `python -m scripts.make_datalist`; see `scripts.data.pairs`."""

from scripts.data.pairs import main

if __name__ == "__main__":
    raise SystemExit(main())

"""The command `python -m scripts.prepare_ukbb`; see `scripts.ukbb.prepare`."""

from scripts.ukbb.prepare import main

if __name__ == "__main__":
    raise SystemExit(main())

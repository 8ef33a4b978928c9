"""The command `python -m scripts.prepare_brats`; see `scripts.brats.prepare`."""

from scripts.brats.prepare import main

if __name__ == "__main__":
    raise SystemExit(main())

"""The command `python -m scripts.prepare_ultrabones`; see `scripts.ultrabones.prepare`."""

from scripts.ultrabones.prepare import main

if __name__ == "__main__":
    raise SystemExit(main())

"""The command `python -m scripts.convert_ultrabones`; see `scripts.models.convert_ultrabones`."""

from scripts.models.convert_ultrabones import main

if __name__ == "__main__":
    raise SystemExit(main())

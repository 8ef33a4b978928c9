"""The command `python -m scripts.convert_weights`; see `scripts.models.convert`."""

from scripts.models.convert import main

if __name__ == "__main__":
    raise SystemExit(main())

"""The command `python -m scripts.export_weights`; see `scripts.models.export`."""

from scripts.models.export import main

if __name__ == "__main__":
    raise SystemExit(main())

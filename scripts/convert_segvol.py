"""The command `python -m scripts.convert_segvol`; see `scripts.models.convert_segvol`."""

from scripts.models.convert_segvol import main

if __name__ == "__main__":
    raise SystemExit(main())

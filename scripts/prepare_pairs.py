"""The command `python -m scripts.prepare_pairs`; see `scripts.pretrain.prepare_pairs`."""

from scripts.pretrain.prepare_pairs import main

if __name__ == "__main__":
    raise SystemExit(main())

"""The command `python -m scripts.prepare_open`; see `scripts.pretrain.prepare_open`."""

from scripts.pretrain.prepare_open import main

if __name__ == "__main__":
    raise SystemExit(main())

"""The command `python -m scripts.prepare_btcv`; see `scripts.data.prepare_btcv`."""

from scripts.data.prepare_btcv import main

if __name__ == "__main__":
    raise SystemExit(main())

"""The Python that the bundles' configs name."""

from scripts.errors import install_in_bundle_runs

install_in_bundle_runs()

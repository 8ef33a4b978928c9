"""The Python code that the configs of the bundles name."""

from scripts.common.errors import is_bundle_run

if is_bundle_run():
    from scripts.common.command_line import start_run

    start_run()

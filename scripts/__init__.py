"""The Python code that the configs of the bundles name."""

import sys

from scripts.common.errors import is_bundle_run, print_error
from scripts.common.flags import check_command_line

if is_bundle_run():
    sys.excepthook = print_error
    check_command_line(sys.argv)

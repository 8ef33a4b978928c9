"""The QC report of the label filter."""

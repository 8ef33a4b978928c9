"""A function on every case of a cohort: once, on all cores or a cluster, whatever happens to the run."""

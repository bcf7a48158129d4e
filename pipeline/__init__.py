"""The steps from spectra to a release and from a release to scores: pure functions over arrays and tables."""

"""A simulated fleet: constants in `physics`, machines, histories and days made of them, and the spectra that result."""

"""Names and colours of detectors, and the page's palettes."""

from __future__ import annotations

DETECTOR_LABELS = {
    "autoencoder": "Autoencoder",
    "vae": "Variational autoencoder",
    "pca": "PCA",
    "energy_zscore": "Energy z-score",
    "squared_distance": "Squared distance",
    "isolation_forest": "Isolation forest",
    "fleet_relative": "Against its peers",
    "absolute_limit": "Absolute limit",
    "ensemble": "Ensemble",
}
MODE_COLOURS = 10  # failure modes beyond it share colours, and differ in their marks
# Light and dark, one truth for the style sheet and the charts. Detector colours differ in lightness as well as in hue.
PALETTES: dict[str, dict[str, str]] = {
    "light": {
        "page": "#f7f6f3",
        "surface": "#ffffff",
        "ink": "#1c2329",
        "muted": "#586470",
        "line": "#dedbd4",
        "grid": "#eceae5",
        "accent": "#0b6b7a",
        "accent-soft": "#dcebed",
        "warn": "#9a5b13",
        "warn-soft": "#f7ecdc",
        "healthy": "#7d8a96",
        "healthy-soft": "rgba(125,138,150,0.22)",
        "faulty": "#b4493a",
        "faulty-soft": "rgba(180,73,58,0.20)",
        "false-soft": "rgba(154,91,19,0.16)",
        "caught-soft": "rgba(11,107,122,0.14)",
        "heat-0": "#ffffff",
        "heat-1": "#f6dccb",
        "heat-2": "#dd8f6f",
        "heat-3": "#a83c30",
        "heat-4": "#4a1016",
        "cold-1": "#bcdadf",
        "cold-2": "#3f8f9d",
        "cold-3": "#0a4a56",
        "d-autoencoder": "#0b6b7a",
        "d-vae": "#6f5aa8",
        "d-pca": "#c08a2b",
        "d-energy_zscore": "#8b939b",
        "d-squared_distance": "#a8503f",
        "d-isolation_forest": "#5d8a4c",
        "d-fleet_relative": "#3f7fb5",
        "d-absolute_limit": "#7a6a4f",
        "d-ensemble": "#2d3b73",
        "mode-0": "#0b6b7a",
        "mode-1": "#c08a2b",
        "mode-2": "#6f5aa8",
        "mode-3": "#b4493a",
        "mode-4": "#5d8a4c",
        "mode-5": "#3f7fb5",
        "mode-6": "#b06a94",
        "mode-7": "#7a6a4f",
        "mode-8": "#2d3b73",
        "mode-9": "#1f9a8a",
        "d-other": "#b06a94",
    },
    "dark": {
        "page": "#12161a",
        "surface": "#1a1f24",
        "ink": "#e4e8eb",
        "muted": "#9eabb6",
        "line": "#333c44",
        "grid": "#283038",
        "accent": "#5cbccb",
        "accent-soft": "#1d3a40",
        "warn": "#e0ab66",
        "warn-soft": "#382c1a",
        "healthy": "#8a98a5",
        "healthy-soft": "rgba(138,152,165,0.24)",
        "faulty": "#e58672",
        "faulty-soft": "rgba(229,134,114,0.24)",
        "false-soft": "rgba(224,171,102,0.20)",
        "caught-soft": "rgba(92,188,203,0.18)",
        "heat-0": "#1a1f24",
        "heat-1": "#4a2b28",
        "heat-2": "#a2503f",
        "heat-3": "#ec9a78",
        "heat-4": "#fff0dc",
        "cold-1": "#22404a",
        "cold-2": "#3f8797",
        "cold-3": "#a5dfea",
        "d-autoencoder": "#5cbccb",
        "d-vae": "#ad9be0",
        "d-pca": "#dfb866",
        "d-energy_zscore": "#8f9aa4",
        "d-squared_distance": "#e08c7a",
        "d-isolation_forest": "#93c281",
        "d-fleet_relative": "#7db4e0",
        "d-absolute_limit": "#b9a78a",
        "d-ensemble": "#8fa2ea",
        "mode-0": "#5cbccb",
        "mode-1": "#dfb866",
        "mode-2": "#ad9be0",
        "mode-3": "#e58672",
        "mode-4": "#93c281",
        "mode-5": "#7db4e0",
        "mode-6": "#d59fc0",
        "mode-7": "#b9a78a",
        "mode-8": "#8fa2ea",
        "mode-9": "#6fd6c6",
        "d-other": "#d59fc0",
    },
}


def detector_label(name: str) -> str:
    """A detector's name for people.

    >>> detector_label("pca"), detector_label("deep_svdd")
    ('PCA', 'Deep svdd')
    """
    return DETECTOR_LABELS.get(name, name.replace("_", " ").strip().capitalize() or name)


def detector_colour(name: str) -> str:
    """A detector's colour by name, the same on the whole page."""
    return f"@d-{name}" if f"d-{name}" in PALETTES["light"] else "@d-other"

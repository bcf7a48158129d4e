"use strict";
// Draws every chart in the palette of the moment: light, dark, or light on paper.
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const palettes = JSON.parse(document.getElementById("palettes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const paperWidths = { full: 650, half: 300, third: 190 };
  const family = getComputedStyle(document.body).fontFamily;

  // A colour is a palette's name with an @, and only where plotly expects a colour.
  function coloured(value, palette, key) {
    if (typeof value === "string") {
      return value[0] === "@" && /color$/.test(key) ? palette[value.slice(1)] || palette.muted : value;
    }
    if (Array.isArray(value)) return value.map((entry) => coloured(entry, palette, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, entry]) => [name, coloured(entry, palette, name)]));
    }
    return value;
  }

  function themed(layout, palette) {
    const themedLayout = { ...layout };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      const upright = name[0] === "y";
      themedLayout[name] = {
        gridcolor: palette.grid, linecolor: palette.line, zeroline: false, showline: !upright, showgrid: upright,
        ticks: upright ? "" : "outside", ticklen: 4, tickcolor: palette.line, automargin: true, fixedrange: upright,
        ...layout[name],
      };
    }
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", bargap: 0.15,
      font: { family, size: 12, color: palette.muted },
      hoverlabel: { bgcolor: palette.surface, bordercolor: palette.line, font: { family, size: 12, color: palette.ink } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: palette.ink } },
      ...themedLayout,
      margin: { l: 56, r: 12, t: 30, b: 44, ...layout.margin },
    };
  }

  function draw(id, paper) {
    const place = document.getElementById(id);
    const palette = dark.matches && !paper ? palettes.dark : palettes.light;
    const figure = coloured(figures[id], palette, "");
    const layout = { ...themed(figure.layout, palette), height: figure.height };
    if (paper) {
      const width = Object.keys(paperWidths).find((name) => place.parentElement.classList.contains(name));
      layout.width = paperWidths[width || "full"];
    } else {
      layout.autosize = true;
    }
    const settings = { displayModeBar: false, displaylogo: false, responsive: !paper, showTips: false, doubleClick: "reset" };
    return Plotly.newPlot(place, figure.data, layout, settings);
  }

  const ids = Object.keys(figures).sort(
    (a, b) => (document.getElementById(a).compareDocumentPosition(document.getElementById(b)) & 4 ? -1 : 1));
  // One chart per turn of the event loop, from the top, so that the page can be read and scrolled meanwhile.
  function drawFrom(index) {
    if (index < ids.length) {
      draw(ids[index], false);
      setTimeout(() => drawFrom(index + 1), 0);
    } else {
      document.documentElement.dataset.charts = String(ids.length);
    }
  }
  drawFrom(0);
  dark.addEventListener("change", () => drawFrom(0));
  window.addEventListener("beforeprint", () => ids.forEach((id) => draw(id, true)));
  window.addEventListener("afterprint", () => drawFrom(0));

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((seen) => seen.isIntersecting)) {
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));
})();

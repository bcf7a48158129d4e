"use strict";
// One page at a time, each chart drawn when it comes near the window, in the palette of the moment.
(function () {
  const held = document.getElementById("figures");
  const { figures, shared } = held ? JSON.parse(held.textContent) : { figures: {}, shared: [] };
  const palettes = JSON.parse(document.getElementById("palettes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const family = getComputedStyle(document.body).fontFamily;
  const paperWidths = { full: 650, half: 300 };
  const places = new Map(Object.keys(figures).map((id) => [id, document.getElementById(id)]));
  const drawn = new Set();
  let paper = false;

  // --- pages -------------------------------------------------------------------------------------------------------
  const pages = [...document.querySelectorAll("main > section")];
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));

  function show(moveFocus) {
    const wanted = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const page = pages.find((own) => wanted && own.contains(wanted)) || pages[0];
    pages.forEach((own) => { own.hidden = own !== page; });
    links.forEach((link, id) => {
      if (id === page.id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    });
    const link = links.get(page.id);
    if (link) document.querySelector("nav").scrollLeft = link.offsetLeft - 60;  // a row on a narrow screen
    const title = page.querySelector("h2");
    document.title = `${title.textContent.trim()} · ${document.documentElement.dataset.title}`;
    if (wanted && wanted !== page && page.contains(wanted)) wanted.scrollIntoView();
    else if (moveFocus) window.scrollTo(0, 0);
    if (moveFocus) (wanted && wanted !== page && wanted.querySelector("h3") || title).focus({ preventScroll: true });
    document.documentElement.dataset.page = page.id;
  }

  // --- charts ------------------------------------------------------------------------------------------------------
  function bytesOf(text) {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  }

  function unpacked(value) {
    if (value.packed === "shared") return shared[value.at];
    const bytes = bytesOf(value.bytes);
    if (value.packed === "numbers") return [...new Float32Array(bytes.buffer)].map((n) => (Number.isNaN(n) ? null : n));
    if (value.packed === "times") {
      return [...new Uint32Array(bytes.buffer)].map((s) => new Date((value.from + s) * 1000).toISOString().slice(0, 19));
    }
    const rows = [];
    for (let row = 0; row < value.rows; row += 1) {
      const levels = [...bytes.subarray(row * value.columns, (row + 1) * value.columns)];
      rows.push(levels.map((level) => (level === 255 ? null : level / 254)));
    }
    return rows;
  }

  // Packed values come out; a colour is a palette's name with an @, and only where plotly expects a colour.
  function ready(value, palette, key) {
    if (typeof value === "string") {
      return value[0] === "@" && /color(scale)?$/.test(key) ? palette[value.slice(1)] || palette.muted : value;
    }
    if (Array.isArray(value)) return value.map((entry) => ready(entry, palette, key));
    if (!value || typeof value !== "object") return value;
    if (value.packed) return unpacked(value);
    const own = Object.fromEntries(Object.entries(value).map(([name, entry]) => [name, ready(entry, palette, name)]));
    if (value.z && value.z.packed) {
      const names = own.names;
      own.customdata = own.z.map((row, at) => row.map((part) => [part === null ? null : part * part * value.z.highest, names[at]]));
      delete own.names;
    }
    return own;
  }

  function themed(layout, palette) {
    const own = { ...layout };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      const upright = name[0] === "y";
      own[name] = {
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
      ...own,
      margin: { l: 56, r: 12, t: 30, b: 44, ...layout.margin },
    };
  }

  // On a telephone a wide margin would leave no chart.
  function fitNarrow(layout) {
    layout.margin = { ...layout.margin, l: Math.min(layout.margin.l, 44), r: Math.min(layout.margin.r, 40) };
    Object.keys(layout).filter((key) => /^yaxis/.test(key)).forEach((key) => { layout[key].automargin = true; });
  }

  function draw(id) {
    const place = places.get(id);
    const palette = dark.matches && !paper ? palettes.dark : palettes.light;
    const figure = ready(figures[id], palette, "");
    const layout = { ...themed(figure.layout, palette), height: figure.height };
    if (!paper && place.clientWidth < 520) fitNarrow(layout);
    if (paper) layout.width = paperWidths[place.closest(".half, .columns") ? "half" : "full"];
    else layout.autosize = true;
    drawn.add(id);
    place.textContent = "";
    return Plotly.newPlot(place, figure.data, layout,
      { displayModeBar: false, displaylogo: false, responsive: !paper, showTips: false, doubleClick: "reset" });
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((seen) => seen.isIntersecting && !drawn.has(seen.target.id))) draw(entry.target.id);
  }, { rootMargin: "600px 0px" });
  places.forEach((place) => near.observe(place));

  dark.addEventListener("change", () => [...drawn].forEach(draw));
  // Hidden charts have no width on a screen, so on paper every chart has a fixed one.
  window.addEventListener("beforeprint", () => {
    paper = true;
    document.documentElement.classList.add("paper");
    places.forEach((_, id) => draw(id));
  });
  window.addEventListener("afterprint", () => {
    paper = false;
    document.documentElement.classList.remove("paper");
    const again = [...drawn];
    drawn.clear();
    again.forEach((id) => Plotly.purge(places.get(id)));
    places.forEach((place) => { near.unobserve(place); near.observe(place); });
  });

  window.addEventListener("hashchange", () => show(true));
  show(location.hash.length > 1);
})();

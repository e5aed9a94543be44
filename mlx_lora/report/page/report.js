"use strict";
(() => {
  const root = document.documentElement;
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // Theme: the system's until somebody chooses.
  const theme = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const nameTheme = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Show in ${dark() ? "light" : "dark"} colours`); };
  theme.hidden = false;
  nameTheme();
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; nameTheme(); });

  // Values under the pointer, or at the arrow keys.
  const shown = (value) => {
    if (value === null) return "not finite";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 0.001 || size >= 1e6) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
    if (size >= 10000) return Math.round(value).toLocaleString("en");
    const digits = value.toFixed(Math.max(0, 3 - Math.floor(Math.log10(size))));
    return digits.includes(".") ? digits.replace(/\.?0+$/, "") : digits;
  };
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (points[middle][0] < x) low = middle; else high = middle; }
    return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? low : high;
  };
  const share = (value, low, high, log) => log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  const charts = JSON.parse(document.getElementById("charts").textContent);
  for (const plot of document.querySelectorAll(".plot[data-chart]")) {
    const chart = charts[plot.dataset.chart];
    const lines = chart.lines.filter((line) => line.points.length);
    if (!lines.length) continue;
    const log = plot.dataset.kind === "log";
    const longest = lines.reduce((best, line) => line.points.length > best.points.length ? line : best);
    const pointer = make("div", "pointer"), readout = make("div", "readout");
    const status = plot.parentElement.parentElement.querySelector("[role=status]");
    pointer.hidden = readout.hidden = true;
    plot.append(pointer, readout);
    let place = -1;
    const show = (index, aloud) => {
      place = Math.max(0, Math.min(longest.points.length - 1, index));
      const x = longest.points[place][0];
      const across = share(x, chart.x[0], chart.x[1], false);
      const epoch = chart.epoch ? `, epoch ${(x / chart.epoch).toFixed(2)}` : "";
      const words = [`step ${x}${epoch}`];
      pointer.replaceChildren();
      readout.replaceChildren(make("strong", "", words[0]));
      for (const line of lines) {
        const [at, value] = line.points[nearest(line.points, x)];
        const where = at === x ? "" : ` (step ${at})`;
        const row = make("div", line.colour);
        row.append(make("span", "", line.name + where), make("span", "", `${shown(value)} ${value === null ? "" : chart.unit}`));
        readout.append(row);
        words.push(`${line.name}${where} ${shown(value)} ${chart.unit}`);
        if (value !== null && at === x) {
          const dot = make("i", line.colour);
          dot.style.top = `${100 * (1 - share(value, ...chart.y[plot.dataset.kind], log))}%`;
          pointer.append(dot);
        }
      }
      pointer.hidden = readout.hidden = false;
      pointer.style.left = `${100 * across}%`;
      const room = plot.clientWidth - readout.offsetWidth;
      const wanted = across * plot.clientWidth + (across > 0.5 ? -readout.offsetWidth - 12 : 12);
      readout.style.left = `${Math.max(0, Math.min(room, wanted))}px`;
      if (aloud) status.textContent = words.join("; ");
    };
    const hide = () => { pointer.hidden = readout.hidden = true; };
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const x = chart.x[0] + (event.clientX - box.left) / box.width * (chart.x[1] - chart.x[0]);
      show(nearest(longest.points, x), false);
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const far = Math.max(1, Math.round(longest.points.length / 20));
      const moves = { ArrowRight: place + 1, ArrowLeft: place - 1, PageDown: place + far, PageUp: place - far, Home: 0, End: longest.points.length - 1 };
      if (event.key === "Escape") hide();
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(moves[event.key], true);
    });
  }

  // Questions: filter, search, and no more rows at once than a page can hold.
  const most = 12;
  for (const card of document.querySelectorAll(".questions-card")) {
    const rows = [...card.querySelectorAll("tbody tr")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const search = card.querySelector("input[type=search]"), more = card.querySelector(".more"), count = card.querySelector("[role=status]");
    let all = false;
    const update = () => {
      const tag = card.querySelector("input[type=radio]:checked").value;
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      rows.forEach((row, place) => {
        const fits = (tag === "all" || row.dataset.tags.split(" ").includes(tag)) && words.every((word) => texts[place].includes(word));
        found += fits;
        row.hidden = !fits || (!all && found > most);
      });
      const hidden = all ? 0 : Math.max(0, found - most);
      more.hidden = hidden === 0;
      more.textContent = `Show ${hidden} more`;
      count.textContent = `${found} of ${rows.length} questions`;
    };
    card.querySelector(".tools").hidden = false;
    card.addEventListener("change", () => { all = false; update(); });
    search.addEventListener("input", () => { all = false; update(); });
    search.addEventListener("keydown", (event) => { if (event.key === "Escape") { search.value = ""; update(); } });
    more.addEventListener("click", () => { all = true; update(); });
    update();
  }
  document.addEventListener("keydown", (event) => {
    const search = document.querySelector(".questions-card input[type=search]");
    if (event.key !== "/" || !search || event.target.matches("input[type=search], textarea")) return;
    event.preventDefault();
    search.focus();
    search.select();
  });
})();

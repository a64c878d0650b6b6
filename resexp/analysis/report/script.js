"use strict";
// Legend toggles, values under the pointer, one CSV of every run. The page says all without it.
const held = JSON.parse(document.getElementById("values").textContent);
for (const chart of document.querySelectorAll(".chart")) {
  const off = new Set();
  const shows = (tags) => !tags.some((tag) => off.has(tag));
  for (const key of chart.querySelectorAll(".legend button")) {
    key.disabled = false;
    key.addEventListener("click", () => {
      const tag = key.dataset.tag;
      if (!off.delete(tag)) off.add(tag);
      key.setAttribute("aria-pressed", String(!off.has(tag)));
      // What can be switched has its tags in its id: panel.tag.tag.number.
      for (const plot of chart.querySelectorAll(".plot"))
        for (const mark of plot.querySelectorAll(`[id^="${plot.id}."]`))
          mark.classList.toggle("off", !shows(mark.id.split(".").slice(1, -1)));
    });
  }
  for (const plot of chart.querySelectorAll(".plot")) values(plot, held[plot.id], shows);
}

function values(plot, data, shows) {
  const svg = plot.querySelector("svg");
  const tip = plot.querySelector(".tip");
  const cursor = plot.querySelector(".cursor");
  const [left, right, top, bottom] = data.box; // shares of the figure
  const [low, high] = data.domain;
  const across = (x) => left + ((x - low) / (high - low)) * (right - left);
  const all = [...new Set(data.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  if (!all.length) return;
  let place = null;
  cursor.style.top = 100 * top + "%";
  cursor.style.height = 100 * (bottom - top) + "%";

  const nearest = (xs, x) => {
    let best = 0;
    for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - x) < Math.abs(xs[best] - x)) best = i;
    return best;
  };
  const hide = () => {
    place = null;
    tip.hidden = cursor.hidden = true;
  };
  const show = (index) => {
    place = index;
    const x = all[index];
    const head = document.createElement("b");
    head.textContent = data.x === "step" ? `step ${x.toLocaleString("en")}` : `${x} layers`;
    const gap = all.length > 1 ? (high - low) / all.length : high - low;
    const rows = data.lines
      .filter((line) => shows(line.tags))
      .map((line) => [line, nearest(line.x, x)])
      .filter(([line, at]) => Math.abs(line.x[at] - x) <= gap)
      .sort(([a, i], [b, j]) => b.y[j] - a.y[i])
      .map(([line, at]) => {
        const row = document.createElement("div");
        const swatch = document.createElement("span");
        swatch.className = "swatch" + (line.dashed ? " dashed" : "");
        swatch.style.color = line.colour;
        row.append(swatch, `${line.name}: ${line.told[at]}`);
        return row;
      });
    tip.replaceChildren(head, ...rows);
    tip.hidden = cursor.hidden = false;
    const at = across(x) * svg.clientWidth;
    const beside = at > svg.clientWidth / 2 ? at - tip.offsetWidth - 10 : at + 10;
    tip.style.left = Math.max(0, Math.min(beside, plot.clientWidth - tip.offsetWidth)) + "px";
    cursor.style.left = 100 * across(x) + "%";
  };
  const follow = (event) => {
    const frame = svg.getBoundingClientRect();
    const at = (event.clientX - frame.left) / frame.width;
    show(nearest(all, low + ((at - left) / (right - left)) * (high - low)));
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.tabIndex = 0;
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    const from = place === null ? (step > 0 ? -1 : all.length) : place;
    show(Math.max(0, Math.min(all.length - 1, from + step)));
  });
}

for (const button of document.querySelectorAll("button[data-every]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const links = document.getElementById(button.dataset.every).querySelectorAll("a[data-run]");
    const lines = [];
    for (const link of links) {
      const text = decodeURIComponent(link.href.slice(link.href.indexOf(",") + 1));
      const rows = text.trimEnd().split("\n");
      if (!lines.length) lines.push("run," + rows[0]);
      const run = `"${link.dataset.run.replaceAll('"', '""')}"`;
      for (const row of rows.slice(1)) lines.push(`${run},${row}`);
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = button.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

"use strict";
// Figures over steps and over k: Observable Plot, drawn anew when the width or the chosen policies change.

const SECTIONS = {
  heldout: ["Held out", "What the policies do on problems that they were not trained on, against the base model."],
  learning: ["Learning", "Every training step; faint lines are steps, strong ones a moving mean."],
  exploring: ["Exploring", "How many ways a policy keeps open, right and wrong. Read them together with reward."],
  judge: ["Judge", "What the judge could make of the responses."],
  health: ["Health", "Whether the numbers above can be trusted, and where the time went."],
};
const HEADLINE = "distinct_successful";
const short = (name) => (name.length > 15 ? name.slice(0, 14) + "…" : name);
const tick = (value) => (Math.abs(value) >= 10000 ? d3.format("~s")(value) : String(Number(value.toPrecision(3))));
const STACK = ["var(--s0)", "var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)"];

class Figures {
  constructor(data, mount, legend, judges) {
    this.policies = [...new Set(["base", ...data.figures.flatMap((f) => f.series.map((s) => s.policy))])];
    if (!data.figures.some((f) => f.series.some((s) => s.policy === "base"))) this.policies.shift();
    this.hidden = new Set();
    this.runs = data.runs.map((run) => run.label);
    this.cards = [];
    this.buildLegend(legend);
    for (const [key, [title, lede]] of Object.entries(SECTIONS)) {
      const figures = data.figures.filter((f) => f.section === key);
      if (!figures.length) continue;
      // What is 0 throughout needs no picture.
      const isZero = (f) => f.series.every((s) => s.y.every((y) => !y));
      const grid = h("div", { class: "grid" }, figures.filter((f) => !isZero(f)).map((f) => this.card(f)));
      const zeros = figures.filter(isZero).map((f) => h("div", { class: "zero" }, h("b", {}, f.title), h("span", {}, " 0 at every step. "), h("span", { class: "faint" }, f.caption), sqlDetails(f.sql)));
      mount.append(h("section", { id: key, "data-nav": title }, h("h2", {}, title), h("p", { class: "note" }, lede), grid, zeros));
    }
    const headline = data.figures.find((f) => f.id === HEADLINE && f.series.some((s) => s.x.length > 1));
    if (headline) document.getElementById("headline").append(this.card(headline));
    const agreement = data.figures.filter((f) => f.section === "judges");
    if (agreement.length) judges.append(h("div", { class: "grid" }, agreement.map((f) => this.card(f))));
    const observer = new ResizeObserver((entries) => entries.forEach((entry) => this.draw(this.cards.find((c) => c.body === entry.target))));
    this.cards.forEach((card) => observer.observe(card.body));
    matchMedia("print").addEventListener("change", () => this.redraw());
  }

  color(policy) {
    if (policy.startsWith("base")) return "var(--c-base)";
    return `var(--c${this.runs.indexOf(policy) % 8})`;
  }

  buildLegend(legend) {
    for (const policy of this.policies) {
      const button = h("button", { type: "button", "aria-pressed": "true", onclick: () => {
        this.hidden.has(policy) ? this.hidden.delete(policy) : this.hidden.add(policy);
        button.setAttribute("aria-pressed", String(!this.hidden.has(policy)));
        this.redraw();
      } }, this.swatch(policy), policy);
      legend.append(button);
    }
    for (const element of document.querySelectorAll("[data-policy]")) element.prepend(this.swatch(element.dataset.policy, this.runs.includes(element.dataset.policy)));
  }

  swatch(policy) {
    const swatch = h("i", { class: policy.startsWith("base") ? "swatch dashed" : "swatch" });
    swatch.style.setProperty("--color", this.color(policy));
    return swatch;
  }

  card(figure) {
    const body = h("div", { class: "plot" });
    const numbers = h("details", { class: "numbers", ontoggle: () => numbers.open && numbers.childElementCount === 1 && numbers.append(this.table(figure)) }, h("summary", {}, "Numbers"));
    const element = h("figure", { class: "figure", "data-figure": figure.id },
      h("figcaption", {}, h("h3", {}, figure.title), h("p", {}, figure.caption)), body,
      h("div", { class: "foot" }, numbers, sqlDetails(figure.sql)));
    this.cards.push({ figure, body });
    return element;
  }

  redraw() {
    this.cards.forEach((card) => this.draw(card));
  }

  draw({ figure, body }) {
    const width = Math.floor(body.clientWidth);
    if (width < 40) return;
    const series = figure.series.filter((s) => !this.hidden.has(s.policy));
    const svg = figure.kind === "stack" ? this.stack(figure, series, width) : this.lines(figure, series, width);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${figure.title}. ${series.map((s) => `${s.policy}${s.part ? " " + s.part : ""}: ${number(s.y.at(-1))} at ${figure.x} ${s.x.at(-1)}`).join("; ")}`);
    body.replaceChildren(svg);
  }

  points(series) {
    return series.flatMap((s) => s.x.map((x, i) => ({ policy: s.policy, part: s.part, x, y: s.y[i], low: s.low?.[i], high: s.high?.[i] })).filter((d) => d.y != null));
  }

  lines(figure, series, width) {
    const points = this.points(series);
    const banded = points.some((d) => d.low != null);
    const longest = Math.max(0, ...series.map((s) => s.x.length));
    const window = longest > 40 && !banded ? Math.max(3, Math.round(longest / 20)) : 1;
    const color = (d) => this.color(d.policy);
    const z = (d) => d.policy + "\u0000" + (d.part ?? "");
    const line = { x: "x", y: "y", z, stroke: color };
    const smooth = (options) => (window > 1 ? Plot.windowY({ k: window, anchor: "middle", reduce: "mean" }, options) : options);
    const base = points.filter((d) => d.policy.startsWith("base"));
    const arms = points.filter((d) => !d.policy.startsWith("base"));
    const few = longest <= 12;
    const top = Math.max(...points.map((d) => d.high ?? d.y), 0);
    const bottom = Math.min(...points.map((d) => d.low ?? d.y), 0);
    const ends = this.ends(series, window);
    const labelled = width > 260 && new Set(series.map((s) => s.policy + (s.part ?? ""))).size > 1;
    return Plot.plot({
      width, height: Math.round(Math.max(200, Math.min(290, width * 0.6))),
      marginLeft: 44, marginRight: labelled ? Math.min(110, 14 + 6.6 * Math.max(4, ...ends.map((d) => d.text.length))) : 14, marginTop: 30, marginBottom: 36,
      className: "plot-svg",
      x: { label: figure.x, type: figure.log_x ? "log" : "linear", base: 2, ticks: figure.log_x ? undefined : Math.max(3, width / 90), tickFormat: (d) => d.toLocaleString("en"), nice: false, inset: 4, tickSize: 4, labelAnchor: "center", labelArrow: "none" },
      y: { label: figure.y, domain: figure.unit_interval ? [0, top > 0.25 ? 1 : Math.max(top * 1.2, 0.01)] : [bottom, top * 1.05 || 1], grid: true, ticks: 5, labelArrow: "none", labelOffset: 44, tickSize: 0, tickFormat: tick },
      marks: [
        banded ? Plot.areaY(points, { x: "x", y1: "low", y2: "high", z, fill: color, fillOpacity: 0.14 }) : null,
        window > 1 ? Plot.lineY(points, { ...line, strokeOpacity: longest > 400 ? 0.14 : 0.22, strokeWidth: 1 }) : null,
        Plot.lineY(base, { ...line, strokeDasharray: "5 4", strokeWidth: 2 }),
        Plot.lineY(arms, smooth({ ...line, strokeWidth: 2.2 })),
        few ? Plot.dot(points, { x: "x", y: "y", fill: color, r: 2.6 }) : null,
        labelled ? Plot.text(ends, { x: "x", y: "at", text: "text", fill: (d) => this.color(d.policy), textAnchor: "start", dx: 7, className: "end" }) : null,
        Plot.ruleX(points, Plot.pointerX({ x: "x", py: "y", stroke: "var(--line)" })),
        Plot.dot(points, Plot.pointer({ x: "x", y: "y", fill: color, r: 4, stroke: "var(--card)" })),
        Plot.tip(points, Plot.pointer({ x: "x", y: "y", fill: "var(--card)", stroke: "var(--line)", title: (d) => `${d.policy}${d.part ? " · " + d.part : ""}\n${figure.x} ${d.x.toLocaleString("en")}\n${figure.y} ${number(d.y, 4)}${d.low != null ? `\n95 %: ${number(d.low)} – ${number(d.high)}` : ""}` })),
      ],
    });
  }

  /** Labels at the right ends of the lines, moved apart so that none lies on another. */
  ends(series, window) {
    const all = this.points(series);
    const span = Math.max(1e-9, Math.max(...all.map((d) => d.high ?? d.y), 0) - Math.min(...all.map((d) => d.low ?? d.y), 0));
    const ends = series.filter((s) => s.y.some((y) => y != null)).map((s) => {
      const tail = s.y.slice(-Math.ceil(window / 2)).filter((y) => y != null);
      return { policy: s.policy, x: s.x.at(-1), y: tail.reduce((a, b) => a + b, 0) / Math.max(1, tail.length), text: short(s.part ? `${s.policy} ${s.part}` : s.policy) };
    }).sort((a, b) => b.y - a.y);
    const right = Math.max(...ends.map((d) => d.x), 0);
    const gap = span * 0.1;
    ends.forEach((d, i) => { d.at = i ? Math.min(d.y, ends[i - 1].at - gap) : d.y; d.x = right; });
    const below = ends.length ? Math.min(...all.map((d) => d.low ?? d.y), 0) - ends.at(-1).at : 0;
    if (below > 0) for (let i = ends.length - 1, floor = ends.at(-1).at + below; i >= 0; i--, floor += gap) ends[i].at = Math.max(ends[i].at, floor);
    return ends;
  }

  stack(figure, series, width) {
    const parts = [...new Set(figure.series.map((s) => s.part))];
    const bins = 60;
    const points = series.flatMap((s) => {
      const size = Math.max(1, Math.ceil(s.x.length / bins));
      return d3.range(0, s.x.length, size).map((i) => ({ policy: s.policy, part: s.part, x: d3.mean(s.x.slice(i, i + size)), y: d3.mean(s.y.slice(i, i + size)) }));
    });
    const policies = [...new Set(points.map((d) => d.policy))];
    const color = (d) => STACK[parts.indexOf(d.part) % STACK.length];
    const height = 64 + 64 * Math.max(1, policies.length);
    const svg = Plot.plot({
      width, height, marginLeft: 44, marginRight: 14, marginTop: 34, marginBottom: 34, className: "plot-svg",
      fy: { label: null, domain: policies, axis: null, padding: 0.12 },
      x: { label: figure.x, ticks: Math.max(3, width / 90), labelAnchor: "center", labelArrow: "none", tickFormat: (d) => d.toLocaleString("en") },
      y: { label: null, grid: true, ticks: 2, tickSize: 0, tickFormat: tick },
      marks: [
        Plot.areaY(points, { x: "x", y: "y", fy: "policy", z: "part", fill: color, order: parts, curve: "step" }),
        Plot.text(policies, { fy: (d) => d, text: (d) => d, frameAnchor: "top-left", dx: 6, dy: 3, fill: "var(--ink)", stroke: "var(--card)", strokeWidth: 3, className: "end" }),
      ],
    });
    const key = h("div", { class: "key" }, parts.map((part, i) => { const swatch = h("i", { class: "swatch square" }); swatch.style.setProperty("--color", STACK[i % STACK.length]); return h("span", {}, swatch, part); }));
    return h("div", {}, key, svg);
  }

  table(figure) {
    const xs = [...new Set(figure.series.flatMap((s) => s.x))].sort((a, b) => a - b);
    const shown = xs.length <= 12 ? xs : d3.range(12).map((i) => xs[Math.round((i * (xs.length - 1)) / 11)]);
    const name = (s) => (s.part ? `${s.policy} · ${s.part}` : s.policy);
    const cell = (s, x) => { const i = s.x.indexOf(x); return i < 0 || s.y[i] == null ? "" : number(s.y[i]) + (s.low ? ` (${number(s.low[i])} – ${number(s.high[i])})` : ""); };
    return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of " + figure.title },
      h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, figure.x), figure.series.map((s) => h("th", { scope: "col", class: "num" }, name(s))))),
        h("tbody", {}, shown.map((x) => h("tr", {}, h("th", { scope: "row" }, x.toLocaleString("en")), figure.series.map((s) => h("td", { class: "num" }, cell(s, x))))))));
  }
}

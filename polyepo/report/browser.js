"use strict";
// The strategy browser. A prompt's keys: r run, b benchmark, s step, p problem, c clusters (-1 degenerate, null
// unlabelled), t texts, w rewards (null: not graded, v why), n tokens, g answers, m strategy by cluster, o order of the responses by their tokens,
// l and u common prefix of neighbours in that order (tokens, UTF-16 units), a advantages, x truncated, z status,
// j other judges' clusters, y the judge's reply. Texts are numbers of `strings`; [text, n] was cut by n characters.

const DEGENERATE = -1;
const LIST_SIZE = 150;
const FILTERS = [
  ["all", "All", "Every prompt, in the order of steps and problems", () => true],
  ["diverse", "Most diverse", "Most distinct successful strategies first", (p) => p.distinct > 1],
  ["wrong", "All wrong", "No response is correct", (p) => p.graded && !p.correct],
  ["flipped", "Sign-flipped", "A correct response was pushed down, an incorrect one up", (p) => p.flipped],
  ["disagree", "Judges disagree", "Two judges cluster the responses differently", (p) => p.disagree > 0],
  ["degenerate", "Degenerate", "With degenerate responses", (p) => p.degenerate > 0],
];

class Browser {
  constructor(data, mount, color) {
    Object.assign(this, { data, color, state: { run: -1, source: -1, step: -1, filter: "all", search: "", responses: false } });
    this.prompts = data.prompts.map((p, i) => describe(p, i));
    this.build(mount);
    const lastTrain = data.benchmarks.indexOf("train");
    const runs = data.runs.length;
    this.state.run = runs - 1;
    this.state.source = lastTrain >= 0 ? lastTrain : 0;
    this.state.step = -1;
    this.syncControls();
    const steps = this.steps();
    this.state.step = steps.at(-1) ?? -1;
    this.update();
  }

  text(number) { const s = this.data.strings[number]; return number < 0 ? null : Array.isArray(s) ? s[0] : s; }
  cut(number) { const s = this.data.strings[number]; return Array.isArray(s) ? s[1] : 0; }
  problemId(p) { return this.data.problems[p.p][0]; }
  problemText(p) { return this.text(this.data.problems[p.p][1]); }
  run(p) { return this.data.runs[p.r]; }
  source(p) { return this.data.benchmarks[p.b]; }

  strategy(p, cluster) {
    if (cluster === DEGENERATE) return ["degenerate", null];
    if (cluster == null) return ["unlabelled", null];
    const [macro, micro] = p.m[cluster] ?? [-1, -1];
    return [this.text(macro) ?? `cluster ${cluster}`, this.text(micro)];
  }

  // --- controls and list

  build(mount) {
    const select = (label, options, field) => {
      const element = h("select", { onchange: () => { this.state[field] = Number(element.value); this.syncControls(); this.update(); } }, options.map(([value, text]) => h("option", { value }, text)));
      this["select_" + field] = element;
      return h("label", {}, h("span", {}, label), element);
    };
    this.search = h("input", { type: "search", placeholder: "Search problems, answers, strategies, responses  ( / )", "aria-label": "Search", spellcheck: "false", oninput: () => { clearTimeout(this.timer); this.timer = setTimeout(() => { this.state.search = this.search.value.trim().toLowerCase(); this.update(); }, 120); } });
    this.slider = h("input", { type: "range", "aria-label": "Step", oninput: () => { this.state.step = this.steps()[Number(this.slider.value)]; this.update(); } });
    this.stepLabel = h("output", {});
    this.allSteps = h("button", { type: "button", "aria-pressed": "false", onclick: () => { const on = this.state.step < 0; this.state.step = on ? this.steps().at(-1) ?? -1 : -1; this.update(); } }, "all steps");
    this.chips = h("div", { class: "chips", role: "group", "aria-label": "Filters" }, FILTERS.map(([key, label, title]) =>
      h("button", { type: "button", "data-filter": key, title, "aria-pressed": String(key === "all"), onclick: () => { this.state.filter = key; this.update(); } }, label, h("span", { class: "count" }))));
    const controls = h("div", { class: "controls" },
      select("Run", [[-1, "all runs"], ...this.data.runs.map((run, i) => [i, run.label])], "run"),
      select("Source", [[-1, "all"], ...this.data.benchmarks.map((b, i) => [i, b === "train" ? "training" : b])], "source"),
      h("div", { class: "stepper" }, h("span", {}, "Step"), this.slider, this.stepLabel, this.allSteps), this.search);
    this.list = h("ul", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Prompts", onkeydown: (event) => this.key(event) });
    this.counter = h("p", { class: "counter", role: "status" });
    this.detail = h("article", { class: "detail", "aria-label": "The chosen prompt" });
    mount.append(controls, this.chips, h("div", { class: "panes" }, h("div", { class: "left" }, this.counter, this.list), this.detail));
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); this.search.focus(); }
    });
  }

  steps() {
    const { run, source } = this.state;
    return [...new Set(this.prompts.filter((p) => (run < 0 || p.r === run) && (source < 0 || p.b === source)).map((p) => p.s))].sort((a, b) => a - b);
  }

  syncControls() {
    const steps = this.steps();
    this.slider.max = Math.max(0, steps.length - 1);
    if (this.state.step >= 0 && !steps.includes(this.state.step)) this.state.step = steps.reduce((best, s) => (Math.abs(s - this.state.step) < Math.abs(best - this.state.step) ? s : best), steps[0] ?? -1);
    this.select_run.value = this.state.run;
    this.select_source.value = this.state.source;
  }

  matches(p) {
    const { run, source, step, search } = this.state;
    if ((run >= 0 && p.r !== run) || (source >= 0 && p.b !== source) || (step >= 0 && p.s !== step)) return false;
    if (!search) return true;
    p.haystack ??= [this.problemId(p), this.problemText(p), ...new Set([...p.t, ...p.g, ...Object.values(p.m).flat()].map((n) => this.text(n)))].join("\n").toLowerCase();
    return p.haystack.includes(search);
  }

  update(keep) {
    const { step, filter } = this.state;
    const steps = this.steps();
    this.slider.value = Math.max(0, steps.indexOf(step < 0 ? steps.at(-1) : step));
    this.slider.disabled = step < 0;
    this.stepLabel.textContent = step < 0 ? "all" : String(step);
    this.allSteps.setAttribute("aria-pressed", String(step < 0));
    const found = this.prompts.filter((p) => this.matches(p));
    for (const chip of this.chips.children) {
      const [, , , test] = FILTERS.find(([key]) => key === chip.dataset.filter);
      const count = found.filter(test).length;
      chip.lastChild.textContent = count.toLocaleString("en");
      chip.setAttribute("aria-pressed", String(chip.dataset.filter === filter));
    }
    const shown = found.filter(FILTERS.find(([key]) => key === filter)[3]);
    if (filter === "diverse") shown.sort((a, b) => b.distinct - a.distinct || b.clusters - a.clusters);
    if (filter === "disagree") shown.sort((a, b) => b.disagree - a.disagree);
    if (filter === "degenerate") shown.sort((a, b) => b.degenerate / b.c.length - a.degenerate / a.c.length);
    this.shown = shown.slice(0, LIST_SIZE);
    this.counter.textContent = shown.length > LIST_SIZE ? `${shown.length.toLocaleString("en")} prompts, the first ${LIST_SIZE} shown` : `${shown.length} ${shown.length === 1 ? "prompt" : "prompts"}`;
    this.list.replaceChildren(...this.shown.map((p, i) => this.item(p, i)));
    const same = this.shown.findIndex((p) => p === keep || (!keep && this.chosen && p.p === this.chosen.p && p.r === this.chosen.r));
    this.select(same >= 0 ? same : 0);
  }

  item(p, place) {
    const where = [this.state.run < 0 ? this.run(p).label : null, this.state.source < 0 ? this.source(p) : null, this.state.step < 0 ? `step ${p.s}` : null].filter(Boolean).join(" · ");
    return h("li", { role: "option", id: `prompt-${place}`, "aria-selected": "false", onclick: () => { this.select(place); this.list.focus({ preventScroll: true }); } },
      h("span", { class: "item-text" }, visible((this.problemText(p) ?? "").slice(0, 140))),
      h("span", { class: "item-facts" }, where ? h("span", {}, where) : null, h("span", { title: "correct responses" }, `✓ ${p.correct}/${p.c.length}`), h("span", { title: "distinct successful strategies" }, `◆ ${p.distinct}`), badges(p)),
      this.strip(p));
  }

  /** One bar: the clusters by size, correct ones filled. */
  strip(p) {
    const strip = h("span", { class: "strip", "aria-hidden": "true" });
    for (const cluster of p.groups) {
      const part = h("i", { class: cluster.id === DEGENERATE || cluster.id == null ? "degenerate" : cluster.correct === cluster.members.length ? "right" : cluster.correct ? "mixed" : "wrong" });
      part.style.setProperty("flex-grow", cluster.members.length);
      strip.append(part);
    }
    return strip;
  }

  key(event) {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (move) {
      event.preventDefault();
      this.select(Math.max(0, Math.min(this.shown.length - 1, this.place + move)));
    } else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && this.state.step >= 0) {
      event.preventDefault();
      const steps = this.steps();
      const next = steps[steps.indexOf(this.state.step) + (event.key === "ArrowLeft" ? -1 : 1)];
      if (next != null) { this.state.step = next; this.update(); }
    }
  }

  select(place) {
    this.list.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    this.place = place;
    const p = this.shown[place];
    const item = this.list.children[place];
    if (!p) { this.chosen = null; this.list.removeAttribute("aria-activedescendant"); this.detail.replaceChildren(h("p", { class: "empty" }, "No prompt here is like that. Try all steps, or another run.")); return; }
    item.setAttribute("aria-selected", "true");
    this.list.setAttribute("aria-activedescendant", item.id);
    // scrollIntoView would move the page as well.
    if (item.offsetTop < this.list.scrollTop) this.list.scrollTop = item.offsetTop;
    else if (item.offsetTop + item.offsetHeight > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = item.offsetTop + item.offsetHeight - this.list.clientHeight;
    this.show(p);
  }

  /** Show a prompt whatever the filters say. */
  open(p) {
    Object.assign(this.state, { run: p.r, source: p.b, step: p.s, filter: "all", search: "" });
    this.search.value = "";
    this.syncControls();
    this.update(p);
    this.detail.scrollIntoView({ block: "nearest" });
  }

  // --- one prompt

  show(p) {
    this.chosen = p;
    const reference = p.groups.find((g) => g.correct) ?? p.groups[0];
    const other = p.groups.find((g) => g !== reference && g.correct) ?? p.groups.find((g) => g !== reference);
    this.compared = [reference.members[0], other?.members[0]].filter((i) => i != null);
    this.detail.replaceChildren(...[this.head(p), this.clusters(p), this.rationale(p), this.compare(p), this.difference(p), this.history(p), this.sql(p)].filter(Boolean));
  }

  head(p) {
    const elsewhere = this.data.runs.map((run, r) => {
      const same = this.prompts.filter((q) => q.r === r && q.p === p.p && q.b === p.b);
      const nearest = same.reduce((best, q) => (!best || Math.abs(q.s - p.s) < Math.abs(best.s - p.s) ? q : best), null);
      return nearest && r !== p.r ? h("button", { type: "button", class: "quiet", onclick: () => this.open(nearest) }, `${run.label}, step ${nearest.s}`) : null;
    }).filter(Boolean);
    return h("header", {},
      h("p", { class: "kicker" }, this.run(p).label, " · ", p.s === 0 ? "base model" : `step ${p.s}`, " · ", this.source(p) === "train" ? "training" : this.source(p), " · ", visible(this.problemId(p))),
      verbatim(this.problemText(p) ?? "", "div", this.cut(this.data.problems[p.p][1])),
      h("p", { class: "item-facts" }, h("span", {}, `✓ ${p.correct} of ${p.graded} correct`, p.graded < p.c.length ? `, ${p.c.length - p.graded} not graded` : ""), h("span", {}, `◆ ${p.distinct} distinct successful ${p.distinct === 1 ? "strategy" : "strategies"}`), h("span", {}, `${p.clusters} ${p.clusters === 1 ? "cluster" : "clusters"}`), badges(p)),
      elsewhere.length ? h("p", { class: "elsewhere" }, "The same problem: ", elsewhere) : null);
  }

  clusters(p) {
    const most = Math.max(...(p.a ?? [0]).map((a) => Math.abs(a ?? 0)), 1e-9);
    const cards = p.groups.map((group) => {
      const [macro, micro] = this.strategy(p, group.id);
      const advantage = p.a ? group.members.reduce((sum, i) => sum + (p.a[i] ?? 0), 0) / group.members.length : null;
      const graded = group.members.filter((i) => p.w[i] != null);
      const reward = graded.length ? graded.reduce((sum, i) => sum + p.w[i], 0) / graded.length : null;
      const unique = new Map();
      for (const i of group.members) unique.set(`${p.t[i]} ${p.w[i]}`, [...(unique.get(`${p.t[i]} ${p.w[i]}`) ?? []), i]);
      const kind = group.id === DEGENERATE || group.id == null ? "degenerate" : !graded.length ? "degenerate" : group.correct === graded.length ? "right" : group.correct ? "mixed" : "wrong";
      const statuses = p.z ? [...new Set(group.members.map((i) => p.z[i]))].filter((z) => z && z !== "ok") : [];
      return h("section", { class: "cluster " + kind },
        h("header", {}, h("h4", {}, visible(micro ?? macro ?? ""), micro ? h("small", {}, visible(macro)) : null), h("span", { class: "size" }, `${group.members.length}`, h("small", {}, ` of ${p.c.length}`))),
        h("div", { class: "measures" },
          h("span", {}, kind === "right" ? "✓" : kind === "wrong" ? "✗" : "", " reward ", h("b", {}, number(reward))),
          advantage == null ? null : h("span", {}, "advantage ", h("b", {}, signed(advantage)), bar(advantage / most)),
          statuses.map((z) => h("span", { class: "badge warn" }, z))),
        h("ol", { class: "responses" }, [...unique.values()].slice(0, 12).map((members) => this.response(p, members))),
        unique.size > 12 ? h("p", { class: "faint" }, `${unique.size - 12} more different responses`) : null);
    });
    return h("div", { class: "clusters" }, cards);
  }

  response(p, members) {
    const i = members[0];
    const text = verbatim(this.text(p.t[i]), "div", this.cut(p.t[i]));
    const facts = [`#${members.length > 3 ? members.slice(0, 3).join(", ") + ", …" : members.join(", ")}`, members.length > 1 ? `× ${members.length}` : null, `${p.n[i]} tokens`, p.x?.[i] ? "cut off" : null, p.g[i] < 0 ? "no answer read" : null, p.v?.[i] >= 0 ? `not graded: ${this.text(p.v[i])}` : null].filter(Boolean).join(" · ");
    const button = h("button", { type: "button", class: "quiet small", "aria-pressed": String(this.compared.includes(i)), "data-response": i, onclick: () => this.toggle(p, i) }, "compare");
    return h("li", {}, text, h("span", { class: "faint facts" }, `${verdict(p.w[i])} `, facts, " ", button));
  }

  toggle(p, i) {
    this.compared = this.compared.includes(i) ? this.compared.filter((j) => j !== i) : [...this.compared, i].slice(-3);
    this.detail.querySelectorAll("[data-response]").forEach((b) => b.setAttribute("aria-pressed", String(this.compared.includes(Number(b.dataset.response)))));
    this.detail.querySelector(".compare").replaceWith(this.compare(p));
  }

  rationale(p) {
    if (p.y == null) return null;
    return h("details", { class: "reply" }, h("summary", {}, "The judge, word for word"), verbatim(this.text(p.y), "div", this.cut(p.y)));
  }

  /** Responses side by side; what each shares with the first is faint, and a mark stands where its tokens part. */
  compare(p) {
    const [first, ...rest] = this.compared;
    const body = h("div", { class: "columns" });
    if (first != null) {
      const earliest = rest.length ? rest.map((i) => parting(p, first, i)).reduce((a, b) => (a.tokens <= b.tokens ? a : b)) : null;
      body.append(this.column(p, first, earliest, true), ...rest.map((i) => this.column(p, i, parting(p, first, i), false)));
    }
    return h("section", { class: "compare" }, h("h4", {}, "Side by side"),
      h("p", { class: "faint" }, this.compared.length < 2 ? "Choose “compare” at two or three responses." : "What a response shares with the first is faint; the mark stands where their tokens part."), body);
  }

  column(p, i, part, isFirst) {
    const text = this.text(p.t[i]);
    const [macro, micro] = this.strategy(p, p.c[i]);
    const same = part && part.tokens >= p.n[i] && (isFirst || part.tokens >= p.n[this.compared[0]]);
    const mark = part && h("mark", { class: "parting", title: `the tokens part after ${part.tokens}` }, same ? "identical" : `token ${part.tokens + 1}`);
    const pieces = part ? [h("span", { class: "shared" }, visible(text.slice(0, part.units))), mark, h("span", {}, visible(text.slice(part.units)))] : visible(text);
    return h("div", { class: "column" }, h("p", { class: "facts" }, h("b", {}, `#${i} `), visible(micro ?? macro ?? ""), h("span", { class: "faint" }, ` ${verdict(p.w[i])} reward ${number(p.w[i])}${p.a ? `, advantage ${signed(p.a[i])}` : ""}`)),
      h("div", { class: "verbatim", dir: "ltr" }, pieces, this.cut(p.t[i]) ? h("span", { class: "cut" }, ` … ${this.cut(p.t[i]).toLocaleString("en")} more characters are in the store`) : null));
  }

  /** Another judge's clusters against this run's: a table of counts. */
  difference(p) {
    if (!p.j) return null;
    return h("div", {}, Object.entries(p.j).map(([judge, theirs]) => {
      const rows = [...new Set(p.c)].sort(byCluster), columns = [...new Set(theirs)].sort(byCluster);
      const agree = agreement(p.c, theirs);
      return h("details", { class: "difference", open: agree < 1 },
        h("summary", {}, `Judge ${judge} against ${this.run(p).judge}: `, h("b", {}, `${Math.round(agree * 100)} %`), " of pairs agree"),
        agree === 1 ? h("p", { class: "faint" }, "The same clusters, up to their names.") : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Clusters of two judges" }, h("table", { class: "matrix" },
          h("thead", {}, h("tr", {}, h("td", {}), columns.map((c) => h("th", { scope: "col", class: "num" }, clusterName(c))))),
          h("tbody", {}, rows.map((r) => h("tr", {}, h("th", { scope: "row" }, visible(this.strategy(p, r).filter(Boolean).at(-1))), columns.map((c) => {
            const count = p.c.filter((value, i) => value === r && theirs[i] === c).length;
            const cell = h("td", { class: "num" }, count || "·");
            cell.style.setProperty("--share", count / p.c.length);
            return cell;
          })))))));
    }));
  }

  /** How the problem's strategies came and went: outer circle, responses; filled, correct ones. */
  history(p) {
    const entries = (this.data.histories[p.p] ?? []).filter(([, benchmark]) => benchmark === this.source(p))
      .map(([run, , step, strategy, count, correct]) => ({ run: this.data.runs[run].label, step, strategy: this.text(strategy) || "(unnamed)", count, correct }));
    if (!entries.length) return null;
    const totals = d3.rollups(entries, (group) => d3.sum(group, (d) => d.count), (d) => d.strategy).sort((a, b) => b[1] - a[1]);
    const kept = totals.slice(0, 14).map(([name]) => name);
    const shared = commonWords(kept);
    const short = (name) => { const rest = [...name.slice(shared)]; return rest.length > 26 ? rest.slice(0, 25).join("") + "…" : rest.join("") || name; };
    const runs = this.data.runs.map((run) => run.label).filter((label) => entries.some((d) => d.run === label));
    const width = Math.max(300, this.detail.clientWidth - 34 || 640);
    const points = entries.filter((d) => kept.includes(d.strategy));
    const largest = Math.max(...points.map((d) => d.count));
    const steps = [...new Set(points.map((d) => d.step))];
    const room = ((width - 130) / runs.length / Math.max(2, steps.length)) * 0.62;
    const radius = Math.max(2.5, Math.min(9, room));
    const title = (d) => `${d.run}, step ${d.step}\n${safeLine(d.strategy)}\n${d.count} ${d.count === 1 ? "response" : "responses"}, ${d.correct} correct`;
    const svg = Plot.plot({
      width, height: 64 + 21 * kept.length, marginLeft: 118, marginRight: 14, marginTop: 30, marginBottom: 32, className: "plot-svg",
      fx: { domain: runs, label: null, padding: 0.06 }, x: { label: "step", ticks: 4, labelAnchor: "center", labelArrow: "none", inset: 10, tickFormat: "d" },
      y: { domain: kept, label: null, tickFormat: (name) => safeLine(short(name)), tickSize: 0 }, r: { domain: [0, largest], range: [0, radius] },
      marks: [
        Plot.gridY({ stroke: "var(--line)", strokeOpacity: 0.6 }),
        Plot.dot(points.filter((d) => d.count > d.correct), { fx: "run", x: "step", y: "strategy", r: "count", stroke: "var(--wrong)", strokeWidth: 1.4, fill: "var(--card)" }),
        Plot.dot(points.filter((d) => d.correct), { fx: "run", x: "step", y: "strategy", r: "correct", fill: "var(--right)", stroke: "var(--card)", strokeWidth: 0.6 }),
        this.source(p) === "train" || steps.includes(p.s) ? Plot.ruleX([p.s], { fx: () => this.run(p).label, stroke: "var(--ink)", strokeOpacity: 0.35, strokeDasharray: "3 3" }) : null,
        Plot.tip(points, Plot.pointer({ fx: "run", x: "step", y: "strategy", fill: "var(--card)", stroke: "var(--line)", title })),
      ],
    });
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Strategies of this problem over steps, ${runs.join(", ")}`);
    return h("section", { class: "history" }, h("h4", {}, "How this problem's strategies came and went"),
      h("p", { class: "faint" }, "Each dot: a strategy’s responses at a step, by number. Filled: correct ones; a ring around: incorrect ones as well.", totals.length > kept.length ? ` The ${kept.length} most frequent of ${totals.length}.` : "", shared ? h("span", {}, " All begin with “", visible(kept[0].slice(0, shared).trim()), "”.") : null), svg);
  }

  sql(p) {
    const run = this.run(p);
    const sql = this.source(p) === "train"
      ? `FROM strategy_clusters(${quoted(run.name)}, ${p.s}, ${quoted(this.problemId(p))})`
      : `SELECT sample, response, reward, parsed_answer, cluster, macro_strategy, micro_strategy\nFROM evals\nWHERE run = ${quoted(run.name)} AND benchmark = ${quoted(this.source(p))} AND step = ${p.s} AND problem_id = ${quoted(this.problemId(p))}\nORDER BY sample`;
    const of = `${sql};\n\n-- How its strategies came and went\nFROM (\n${this.data.sql.history}\n) WHERE problem_id = ${quoted(this.problemId(p))};\n\n-- What the filters count\n${this.data.sql.browser};`;
    return sqlDetails(of);
  }
}

/** A prompt with what the filters need. */
function describe(p, index) {
  p.index = index;
  const groups = new Map();
  p.c.forEach((cluster, i) => groups.set(cluster, [...(groups.get(cluster) ?? []), i]));
  const right = (i) => isCorrect(p.w[i]);
  p.groups = [...groups].map(([id, members]) => ({ id, members, correct: members.filter(right).length }))
    .sort((a, b) => (isReal(b.id) - isReal(a.id)) || b.members.length - a.members.length || (b.correct > 0) - (a.correct > 0));
  p.graded = p.w.filter((w) => w != null).length;
  p.correct = p.w.filter(isCorrect).length;
  p.clusters = p.groups.filter((g) => isReal(g.id)).length;
  p.distinct = p.groups.filter((g) => isReal(g.id) && g.correct).length;
  p.degenerate = groups.get(DEGENERATE)?.length ?? 0;
  p.flipped = Boolean(p.a && p.a.some((a, i) => right(i) && a < 0) && p.a.some((a, i) => p.w[i] != null && !right(i) && a > 0));
  p.disagree = p.j ? Math.max(...Object.values(p.j).map((theirs) => 1 - agreement(p.c, theirs))) : 0;
  return p;
}

const isCorrect = (reward) => reward != null && reward > 0.5;
const verdict = (reward) => (reward == null ? "?" : isCorrect(reward) ? "✓" : "✗");
const isReal = (cluster) => cluster != null && cluster !== DEGENERATE;
const byCluster = (a, b) => isReal(b) - isReal(a) || (a ?? 1e9) - (b ?? 1e9);
const clusterName = (cluster) => (cluster === DEGENERATE ? "degenerate" : cluster == null ? "unlabelled" : String(cluster));
const safeLine = (text) => visible(text).map((node) => (typeof node === "string" ? node : node.textContent)).join("").replaceAll("\n", "⏎");

/** Share of pairs of responses that both labelings put together or both put apart. */
function agreement(a, b) {
  let same = 0, pairs = 0;
  for (let i = 0; i < a.length; i++) for (let j = 0; j < i; j++, pairs++) same += (a[i] === a[j]) === (b[i] === b[j]);
  return pairs ? same / pairs : 1;
}

/** What two responses have in common: the least of what lies between them in the order of their tokens. */
function parting(p, i, j) {
  let [from, to] = [p.o.indexOf(i), p.o.indexOf(j)];
  if (from > to) [from, to] = [to, from];
  return { tokens: Math.min(...p.l.slice(from, to)), units: Math.min(...p.u.slice(from, to)) };
}

function commonWords(names) {
  if (names.length < 2) return 0;
  let length = names.reduce((n, name) => { let i = 0; while (i < n && name[i] === names[0][i]) i++; return i; }, names[0].length);
  return names[0].lastIndexOf(": ", length) + 2 > 1 ? names[0].lastIndexOf(": ", length) + 2 : 0;
}

function badges(p) {
  return [p.correct || !p.graded ? null : h("span", { class: "badge warn" }, "all wrong"), p.flipped ? h("span", { class: "badge warn" }, "sign-flipped") : null, p.disagree ? h("span", { class: "badge" }, "judges disagree") : null, p.degenerate ? h("span", { class: "badge" }, `${p.degenerate} degenerate`) : null];
}

/** A small bar around zero, for -1 to 1. */
function bar(value) {
  const fill = h("i", { class: value < 0 ? "down" : "up" });
  fill.style.setProperty("--value", Math.min(1, Math.abs(value)));
  return h("span", { class: "bar-zero", "aria-hidden": "true" }, fill);
}

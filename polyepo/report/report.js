"use strict";

{
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  document.querySelectorAll("details.sql").forEach(addCopyButton);

  const figures = new Figures(data, byId("figures"), byId("legend"), byId("judges-body"));
  byId("legend").hidden = figures.policies.length < 2;

  if (data.prompts.length) {
    byId("browser").hidden = false;
    const browser = new Browser(data, byId("browser-body"), (policy) => figures.color(policy));
    const differing = browser.prompts.filter((p) => p.disagree > 0).sort((a, b) => b.disagree - a.disagree || a.index - b.index).slice(0, 8);
    byId("judges").hidden = false;
    byId("judges-body").prepend(h("p", { class: "note" }, browser.prompts.some((p) => p.j)
      ? "The same responses, clustered by two judges: how far they agree, and where they differ most."
      : "One judge has labelled these runs. Label them with a second one to see here where the two differ."));
    if (differing.length) byId("judges-body").append(h("h3", {}, "Where they differ most"), h("ul", { class: "differing" }, differing.map((p) =>
      h("li", {}, h("button", { type: "button", class: "quiet", onclick: () => browser.open(p) }, h("b", {}, `${Math.round(p.disagree * 100)} % of pairs`), ` ${browser.run(p).label}, step ${p.s}: `, h("span", { class: "verbatim", dir: "ltr" }, visible((browser.problemText(p) ?? "").slice(0, 80))))))));
    let timer = 0;
    addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(() => browser.chosen && browser.show(browser.chosen), 200); });
  }

  const nav = byId("nav");
  for (const section of document.querySelectorAll("[data-nav]")) if (!section.hidden) nav.append(h("a", { href: "#" + section.id }, section.dataset.nav));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) nav.querySelectorAll("a").forEach((a) => (a.hash === "#" + entry.target.id ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current")));
  }, { rootMargin: "-30% 0px -60% 0px" });
  document.querySelectorAll("[data-nav]").forEach((section) => seen.observe(section));

  // Light or dark: the system's choice, until the reader makes one.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  byId("theme").addEventListener("click", () => {
    const now = root.dataset.theme ?? (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  // On paper there is nothing to open: what is folded stays folded, except what the page says in words.
  root.dataset.ready = "true";
}

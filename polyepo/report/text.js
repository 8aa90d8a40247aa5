"use strict";
// Text of unknown origin becomes text nodes, always: nothing in this page ever parses it as markup.

/** An element with attributes and children; strings become text nodes. */
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

// Control, bidirectional, zero-width and tag characters could hide or reorder what was written.
const INVISIBLE = /[\u0000-\u0008\u000B-\u001F\u007F-\u009F\u00AD\u061C\u115F\u1160\u180E\u200B-\u200F\u2028-\u202E\u2060-\u206F\u3164\uFE00-\uFE0F\uFEFF\uFFF9-\uFFFB\uD800-\uDFFF]|\u{E0001}|[\u{E0020}-\u{E007F}]/gu;

/** The text as nodes, with a sign in the place of each invisible character. */
function visible(text) {
  const nodes = [];
  let last = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    const code = match[0].codePointAt(0);
    if (match.index > last) nodes.push(text.slice(last, match.index));
    const sign = code < 32 ? String.fromCodePoint(0x2400 + code) : code === 127 ? "␡" : "U+" + code.toString(16).toUpperCase().padStart(4, "0");
    nodes.push(h("span", { class: "invisible", title: "U+" + code.toString(16).toUpperCase().padStart(4, "0") }, sign));
    last = match.index + match[0].length;
  }
  if (last < text.length) nodes.push(text.slice(last));
  return nodes;
}

/** Text as it was written: isolated, so that its direction ends with it. */
function verbatim(text, tag = "span", cut = 0) {
  const note = cut ? h("span", { class: "cut" }, ` … ${cut.toLocaleString("en")} more characters are in the store`) : null;
  return h(tag, { class: "verbatim", dir: "ltr" }, text === "" ? h("em", { class: "faint" }, "(empty)") : visible(text), note);
}

const number = (value, digits = 3) => (value == null ? "–" : Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 }));
const signed = (value) => (value == null ? "–" : (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(3));
const quoted = (text) => "'" + text.replaceAll("'", "''") + "'";

/** A folded piece of SQL with a button that copies it. */
function sqlDetails(sql) {
  const details = h("details", { class: "sql" }, h("summary", {}, "SQL"), h("pre", {}, sql));
  addCopyButton(details);
  return details;
}

function addCopyButton(details) {
  const pre = details.querySelector("pre");
  const button = h("button", { type: "button", class: "copy", onclick: () => copy(pre, button) }, "Copy");
  pre.before(button);
}

async function copy(pre, button) {
  try {
    await navigator.clipboard.writeText(pre.textContent);
  } catch {
    // Pages from a file may have no clipboard: what is selected can always be copied by hand.
    getSelection().selectAllChildren(pre);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  document.getElementById("status").textContent = "SQL copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

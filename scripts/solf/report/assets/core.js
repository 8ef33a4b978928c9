"use strict";
/* Loading. Pages opened from disk may not fetch files, so data are scripts that call qc.receive. */
const qc = {
  received: new Map(),
  loading: new Map(),

  receive(name, packed) {
    this.received.set(name, packed);
  },

  /* Load data/<name>.js once; returns a promise of its data. */
  load(name) {
    if (!this.loading.has(name)) {
      const done = this.script(name);
      this.loading.set(name, done);
      done.catch(() => this.loading.delete(name));
    }
    return this.loading.get(name);
  },

  async script(name) {
    if (!window.DecompressionStream) throw new Error("This browser is too old; use a version of 2024 or later.");
    const script = qc.element("script", { src: `data/${name}.js` });
    await new Promise((resolve, reject) => {
      script.onload = resolve;
      script.onerror = () => reject(new Error(`data/${name}.js cannot be read; copy the whole folder of the report.`));
      document.head.append(script);
    });
    script.remove();
    const bytes = Uint8Array.from(atob(this.received.get(name)), (c) => c.charCodeAt(0));
    this.received.delete(name);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  },

  /* Turn columns into rows. */
  rows(columns) {
    const names = Object.keys(columns);
    return (columns[names[0]] ?? []).map((_, n) => Object.fromEntries(names.map((name) => [name, columns[name][n]])));
  },

  id: (id) => document.getElementById(id),
  searched: (text) => text.toLowerCase().replaceAll("_", " ").trim(),
  words: (name) => String(name).replaceAll("_", " "),
  count: (n) => n.toLocaleString("en"),
  percent: (share) => `${(100 * share).toLocaleString("en", { maximumFractionDigits: 1 })} %`,

  /* Format with four digits, with an exponent only if needed. */
  number(value) {
    if (value === null || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  },

  /* Make an element; texts become text nodes, so names are never parsed as HTML. */
  element(tag, properties = {}, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  },

  link: (href, text) => qc.element("a", { href }, text),

  options(select, pairs) {
    select.replaceChildren(...pairs.map(([value, text]) => qc.element("option", { value }, text)));
  },

  watch(inputs, action) {
    inputs.forEach((input) => input.addEventListener(input.matches("select") ? "change" : "input", action));
  },

  problem(error) {
    qc.id("problem").textContent = error.message;
    qc.id("problem").hidden = false;
  },
};

"use strict";
/* Verdicts of reviewers about labels: kept by the browser, written and read as CSV, compared. */
qc.verdicts = {
  columns: ["case", "label", "organ", "verdict", "reviewer", "reviewed_at", "comment"],
  found: new Map(),  // by reviewer, then by case and label

  idOf: ({ case: name, label }) => JSON.stringify([name, Number(label)]),

  /* Open what the browser keeps for the report with this fingerprint. */
  open(fingerprint) {
    this.key = `qc-verdicts-${fingerprint}`;
    try {
      JSON.parse(localStorage.getItem(this.key) ?? "[]").forEach((row) => this.add(row));
      this.reviewer = localStorage.getItem("qc-reviewer") ?? "";
    } catch {
      this.reviewer = "";
    }
    this.save();
  },

  save() {
    try {
      localStorage.setItem(this.key, JSON.stringify(this.all()));
      if (this.reviewer) localStorage.setItem("qc-reviewer", this.reviewer);
      this.stored = localStorage.getItem(this.key) !== null;
    } catch {
      this.stored = false;
    }
    qc.id("storage").hidden = this.stored;
  },

  /* Add a row unless the same reviewer said something later about the label. */
  add(row) {
    if (!this.found.has(row.reviewer)) this.found.set(row.reviewer, new Map());
    const rows = this.found.get(row.reviewer);
    const known = rows.get(this.idOf(row));
    if (!known || known.reviewed_at <= row.reviewed_at) rows.set(this.idOf(row), row);
  },

  of(item, reviewer = this.reviewer) {
    return this.found.get(reviewer)?.get(this.idOf(item));
  },

  give(item, verdict, comment) {
    const now = new Date().toISOString().replace(/\.\d+Z$/, "Z");
    const { case: name, label, organ } = item;
    this.add({ case: name, label, organ, verdict, reviewer: this.reviewer, reviewed_at: now, comment });
    this.save();
  },

  all(reviewers = [...this.found.keys()]) {
    return reviewers.flatMap((name) => [...(this.found.get(name)?.values() ?? [])]);
  },

  /* Return rows as CSV. */
  written(rows) {
    const cell = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
    const lines = rows.map((row) => this.columns.map((name) => cell(row[name] ?? "")));
    return [this.columns, ...lines].map((cells) => `${cells.join(",")}\n`).join("");
  },

  /* Read the cells of CSV. */
  cells(text) {
    const rows = [[]];
    const pattern = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/gy;
    const plain = text.replace(/^\ufeff/, "");
    while (pattern.lastIndex < plain.length) {
      const at = pattern.exec(plain);
      if (!at) throw new Error("is not CSV");
      rows.at(-1).push(at[1]?.replaceAll('""', '"') ?? at[2]);
      if (at[3] !== ",") rows.push([]);
    }
    return rows.filter((row) => row.length > 1);
  },

  /* Add the rows of a file; returns their number. */
  merge(text) {
    const [head, ...lines] = this.cells(text);
    const missing = this.columns.slice(0, 6).filter((name) => !head?.includes(name));
    if (missing.length) throw new Error(`lacks the column ${missing.join(", ")}`);
    const rows = lines.map((cells) => Object.fromEntries(head.map((name, n) => [name, cells[n] ?? ""])));
    rows.forEach((row, n) => {
      const wrong = !["accept", "reject"].includes(row.verdict) ? "verdict" : !row.reviewer ? "reviewer"
        : Number.isNaN(Date.parse(row.reviewed_at)) ? "reviewed_at" : !/^\d+$/.test(row.label) ? "label" : "";
      if (wrong) throw new Error(`row ${n + 2}: ${wrong} is “${row[wrong]}”`);
    });
    rows.forEach((row) => this.add({ ...row, label: Number(row.label) }));
    this.save();
    return rows.length;
  },

  /* Cohen's kappa of each pair of reviewers, about the labels that both judged; null if it is undefined. */
  agreement() {
    const names = [...this.found.keys()].sort();
    return names.flatMap((a, n) => names.slice(n + 1).map((b) => {
      const pairs = [...this.found.get(a)].flatMap(([id, row]) => {
        const other = this.found.get(b).get(id);
        return other ? [[row.verdict === "accept", other.verdict === "accept"]] : [];
      });
      const share = (test) => pairs.filter(test).length / pairs.length;
      const [same, first, second] = [share(([x, y]) => x === y), share(([x]) => x), share(([, y]) => y)];
      const chance = first * second + (1 - first) * (1 - second);
      const kappa = pairs.length && chance < 1 ? (same - chance) / (1 - chance) : null;
      return { a, b, both: pairs.length, same: pairs.length ? same : null, kappa };
    }));
  },
};

"use strict";
/* The views of the report; the address after # selects one. */
qc.views = {
  async start() {
    this.followColors();
    this.overview = await qc.load("overview");
    this.organs = new Map(this.overview.organs.map((row) => [row.label, row.organ]));
    this.fillOverview();
    this.fillWorst();
    this.fillChoices();
    window.addEventListener("hashchange", () => this.route().catch(qc.problem));
    await this.route();
  },

  /* Follow the system's light or dark mode. */
  followColors() {
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const apply = () => document.documentElement.classList.toggle("dark", dark.matches);
    apply();
    dark.addEventListener("change", () => {
      apply();
      this.drawOrgans().then(() => this.drawHistograms()).catch(qc.problem);
    });
  },

  async route() {
    const [part, ...rest] = decodeURIComponent(location.hash.slice(1)).split("/");
    if (part === "main") return;
    const known = ["overview", "distributions", "worst", "cases", "case"].includes(part) ? part : "overview";
    document.getElementById("problem").hidden = true;
    document.querySelectorAll("main > section").forEach((section) => {
      section.hidden = section.id !== `view-${known}`;
    });
    document.querySelectorAll("nav a").forEach((link) => {
      const current = link.hash === `#${known}` || (known === "case" && link.hash === "#cases");
      current ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    });
    window.scrollTo(0, 0);
    const open = {
      overview: () => this.drawOrgans(),
      distributions: () => this.openDistributions(rest[0]),
      worst: () => {},
      cases: () => this.openCases(rest.join("/")),
      case: () => this.openCase(Number(rest[0])),
    };
    await open[known]();
  },

  fillOverview() {
    const { totals, rule, settings } = this.overview;
    const share = totals.labels ? ` (${qc.percent(totals.rejected / totals.labels)})` : "";
    const tiles = {
      cases: qc.count(totals.cases),
      labels: qc.count(totals.labels),
      "rejected labels": qc.count(totals.rejected) + share,
      "cases with a rejected label": qc.count(totals.cases_with_rejections),
      "dropped cases": qc.count(totals.dropped),
    };
    for (const [name, value] of Object.entries(tiles)) {
      const parts = [qc.element("dt", {}, name), qc.element("dd", {}, value)];
      document.getElementById("totals").append(qc.element("div", {}, ...parts));
    }
    document.getElementById("rule").textContent = rule;
    for (const [name, value] of Object.entries(settings)) {
      document.getElementById("settings").append(
        qc.element("dt", {}, qc.words(name)), qc.element("dd", {}, String(value)));
    }
    this.organTable = qc.tables.organs(this.overview, (rows) => this.drawOrgans(rows).catch(qc.problem));
    const orders = { "rejected share": [4, "desc"], "rejected labels": [3, "desc"], organ: [1, "asc"], id: [0, "asc"],
      "labels": [2, "desc"] };
    const select = document.getElementById("organ-order");
    select.append(...Object.keys(orders).map((name) => qc.element("option", {}, name)));
    select.addEventListener("change", () => this.organTable.order(orders[select.value]).draw());
  },

  async drawOrgans(rows) {
    if (document.getElementById("view-overview").hidden) return;
    const ordered = rows ?? this.organTable.rows({ order: "applied" }).data().toArray();
    await qc.charts.organs(ordered.filter((row) => row.labels), document.getElementById("organ-chart"));
  },

  fillChoices() {
    const organ = document.getElementById("organ");
    const seen = this.overview.organs.filter((row) => row.labels);
    const named = (row) => `${row.label} ${qc.words(row.organ)}`;
    organ.append(...seen.map((row) => qc.element("option", { value: row.label }, named(row))));
    const feature = document.getElementById("feature");
    feature.append(qc.element("option", { value: "" }, "all"));
    feature.append(...this.overview.features.map((name) => qc.element("option", { value: name }, qc.words(name))));
    const draw = () => this.drawHistograms().catch(qc.problem);
    [organ, feature].forEach((select) => select.addEventListener("change", draw));
  },

  async openDistributions(label) {
    if (label) document.getElementById("organ").value = label;
    await this.drawHistograms();
  },

  async drawHistograms() {
    const all = await qc.load("histograms");
    const label = document.getElementById("organ").value;
    const feature = document.getElementById("feature").value;
    const grid = document.getElementById("histograms");
    if (document.getElementById("view-distributions").hidden || !label) return;
    const chosen = Object.entries(all[label]).filter(([name]) => !feature || name === feature);
    const places = chosen.map(() => qc.element("div", { className: "plot" }));
    grid.replaceChildren(...chosen.map(([name, one], n) =>
      qc.element("div", {}, places[n], this.aboutHistogram(name, one))));
    await Promise.all(chosen.map(([name, one], n) => one.start !== null && qc.charts.histogram(name, one, places[n])));
  },

  aboutHistogram(name, one) {
    if (one.start === null) return qc.element("p", { className: "dim" }, `${qc.words(name)}: undefined for all labels.`);
    const number = (value) => (value === null ? "none" : qc.number(value));
    const bounds = `low ${number(one.low)}, median ${number(one.median)}, high ${number(one.high)}`;
    const parts = [`${qc.words(name)}: ${bounds}.`];
    if (one.below + one.above) parts.push(`Not shown: ${qc.count(one.below)} below, ${qc.count(one.above)} above.`);
    return qc.element("p", { className: "dim" }, parts.join(" "));
  },

  fillWorst() {
    const list = document.getElementById("worst-list");
    if (!this.overview.worst.length) list.append(qc.element("p", {}, "No label was rejected."));
    for (const one of this.overview.worst) {
      const link = qc.element("a", { href: `#case/${one.row}` }, one.case);
      const reasons = one.rejections.map(({ label, reason }) =>
        qc.element("li", {}, qc.element("b", {}, qc.words(this.organs.get(label))), `: ${reason}`));
      let organs = qc.element("ul", {}, ...reasons);
      if (reasons.length > 6) {
        organs = qc.element("details", {}, qc.element("summary", {}, `${reasons.length} rejected organs`), organs);
      }
      const about = qc.element("p", { className: "dim" }, this.summary(one));
      list.append(qc.element("article", {}, qc.element("h3", {}, link), about, this.picture(one), organs));
    }
  },

  summary(one) {
    const parts = [`${one.rejected} of ${one.labels} labels rejected${one.dropped ? ", case dropped" : ""}`];
    if (one.worst) {
      const organ = qc.words(this.organs.get(one.worst));
      parts.push(`farthest outside: ${organ}, by ${qc.number(one.excess)} of the distance between its thresholds`);
    }
    return parts.join("; ");
  },

  picture(one) {
    if (!one.picture) return qc.element("p", {}, `No picture: ${one.why}.`);
    const alt = `Axial, coronal and sagittal slice through ${qc.words(this.organs.get(one.worst))} of ${one.case}`;
    const [width, height] = one.size;
    return qc.element("img", { className: "slices", loading: "lazy", alt, width, height, src: one.picture });
  },

  async openCases(text) {
    const index = await qc.cases();
    const input = document.getElementById("case-text");
    if (text) {
      input.value = text;
      document.getElementById("case-decision").value = "all";
    }
    if (!this.caseTable) {
      this.caseTable = qc.tables.cases(index, this.organs);
      let timer;
      input.addEventListener("input", () => {
        clearTimeout(timer);
        timer = setTimeout(() => this.caseTable.draw(), 120);
      });
      document.getElementById("case-decision").addEventListener("change", () => this.caseTable.draw());
    } else if (text) this.caseTable.draw();
  },

  async openCase(row) {
    if (!(row >= 0 && row < this.overview.totals.cases)) throw new Error(`Case ${row} does not exist.`);
    const size = this.overview.cases_per_page;
    const name = `labels-${String(Math.floor(row / size)).padStart(5, "0")}`;
    const page = await qc.load(name).then((packed) => qc.unpackAll(packed));
    const labels = this.labelsOf(page, row % size);
    const rejected = labels.filter((label) => label.rejected).length;
    const known = this.overview.worst.find((one) => one.row === row);
    document.getElementById("case-name").textContent = page.names[row % size];
    document.getElementById("case-summary").textContent =
      this.summary(known ?? { rejected, labels: labels.length, dropped: labels.some((l) => l.decision === "drop") });
    const figure = document.getElementById("case-picture");
    figure.hidden = !known;
    figure.replaceChildren(...(known ? [this.picture(known)] : []));
    this.showLabels(labels);
    document.getElementById("case-name").focus();
  },

  labelsOf(page, place) {
    const decisions = ["keep", "reject", "drop"];
    const rows = [];
    for (let row = page.starts[place]; row < page.starts[place + 1]; row++) {
      const decision = decisions[page.decision[row]];
      rows.push({
        label: page.label[row], organ: this.organs.get(page.label[row]), votes: page.votes[row], decision,
        rejected: decision === "reject" || (decision === "drop" && page.votes[row] >= this.overview.votes),
        values: page.values.map((column) => qc.decimal(column, row)),
        percentiles: page.percentiles.map((column) => (column[row] === 65535 ? NaN : column[row] / 100)),
        reason: page.reasons[row] ?? "",
      });
    }
    return rows;
  },

  showLabels(labels) {
    const text = document.getElementById("label-text");
    const decision = document.getElementById("label-decision");
    if (!this.labelTable) {
      this.labelTable = qc.tables.labels(this.overview.features);
      const fits = (_, row) => qc.searched(row.organ).includes(qc.searched(text.value))
        && (!decision.value || row.decision === decision.value);
      this.labelTable.search.fixed("choice", fits);
      text.addEventListener("input", () => this.labelTable.draw());
      decision.addEventListener("change", () => this.labelTable.draw());
    }
    this.labelTable.clear().rows.add(labels).draw();
  },
};

qc.views.start().catch(qc.problem);

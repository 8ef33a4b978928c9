"use strict";
/* The views of the report; the address after # selects one. */
qc.measured = (row, n) => {
  const [value, percentile] = [row.values[n], row.percentiles[n]];
  const strip = qc.element("span", { className: "strip" });
  if (percentile !== null) {
    const mark = qc.element("i");
    mark.style.setProperty("left", `${percentile}%`);
    strip.append(mark);
  }
  return qc.element("span", { title: percentile === null ? "" : `percentile ${percentile}` },
    qc.number(value), percentile === null ? "" : qc.element("small", {}, ` ${percentile.toFixed(1)}`), strip);
};

qc.views = {
  async start() {
    this.overview = await qc.load("overview");
    this.organs = new Map(this.overview.organs.map((row) => [row.label, row.organ]));
    qc.verdicts.open(this.overview.fingerprint);
    this.fillOverview();
    const seen = this.overview.organs.filter((row) => row.labels);
    qc.options(qc.id("organ"), seen.map((row) => [row.label, `${row.label} ${qc.words(row.organ)}`]));
    qc.id("organ").addEventListener("change", () => { location.hash = `#organs/${qc.id("organ").value}`; });
    window.addEventListener("hashchange", () => this.route().catch(qc.problem));
    await this.route();
  },

  async route() {
    const [part, ...rest] = decodeURIComponent(location.hash.slice(1)).split("/");
    if (part === "main") return;
    const open = {
      overview: () => {}, organs: this.openOrgan, rejected: this.openRejected, cases: this.openCases,
      case: this.openCase, review: this.openReview,
    };
    const known = Object.hasOwn(open, part) ? part : "overview";
    qc.id("problem").hidden = true;
    document.querySelectorAll("main > section").forEach((section) => {
      section.hidden = section.id !== `view-${known}`;
    });
    document.querySelectorAll("nav a").forEach((link) => {
      const current = link.hash === `#${known}` || (known === "case" && link.hash === "#cases");
      current ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    });
    window.scrollTo(0, 0);
    await open[known].call(this, ...rest);
  },

  fillOverview() {
    const { totals, rule, settings, failures, fingerprint } = this.overview;
    const failed = Object.entries(failures);
    const share = totals.labels ? ` (${qc.percent(totals.rejected / totals.labels)})` : "";
    const tiles = {
      cases: [totals.cases, "#cases"], labels: [totals.labels, ""],
      "rejected labels": [totals.rejected, "#rejected/all/reject", share], "missing organs": [totals.missing, "#rejected/all/missing"],
      "cases with a rejected label": [totals.cases_with_rejections, "#cases"], "dropped cases": [totals.dropped, ""],
      "failed cases": [failed.length, ""],
    };
    for (const [name, [value, href, more = ""]] of Object.entries(tiles)) {
      const text = qc.count(value) + more;
      qc.id("totals").append(qc.element("div", {}, qc.element("dt", {}, name),
        qc.element("dd", {}, href && value ? qc.link(href, text) : text)));
    }
    qc.id("rule").textContent = rule;
    for (const [name, value] of Object.entries({ ...settings, "fingerprint of the decisions": fingerprint })) {
      qc.id("settings").append(qc.element("dt", {}, qc.words(name)), qc.element("dd", {}, String(value)));
    }
    qc.id("failed").hidden = !failed.length;
    new qc.Table(qc.id("failed-table"), [
      { title: "case", value: ([name]) => name }, { title: "reason", value: ([, reason]) => reason, class: "text" },
    ], { size: 10 }).set(failed);
    this.organTable().set(this.overview.organs);
    if (this.overview.has_drift) this.fillDrift().catch(qc.problem);
  },

  async fillDrift() {
    const { picture, largest, beyond, all } = await qc.load("drift");
    const head = `${qc.count(beyond)} of ${qc.count(all)} medians differ from the cohort's by more than chance.`;
    qc.id("drift-largest").append(...[head, ...largest].map((text) => qc.element("li", {}, qc.words(text))));
    qc.id("drift-picture").src = picture;
    qc.id("drift").hidden = false;
  },

  organTable() {
    const most = Math.max(...this.overview.organs.map((row) => row.rejected / (row.labels || 1)), 1e-9);
    const share = (row) => (row.labels ? row.rejected / row.labels : 0);
    const bar = (row) => {
      const fill = qc.element("i");
      fill.style.setProperty("width", `${(100 * share(row)) / most}%`);
      return qc.element("span", { className: "share" }, qc.element("span", { className: "bar" }, fill), qc.percent(share(row)));
    };
    const outside = (row) => this.overview.features.flatMap((name, n) =>
      row.outside[n] ? [`${qc.words(name)} ${qc.count(row.outside[n])}`] : []).join(", ");
    const counted = (name, decision) => ({
      title: name, value: (row) => row[name], class: "number",
      show: (row) => row[name] ? qc.link(`#rejected/${row.label}/${decision}`, qc.count(row[name])) : "0",
    });
    return new qc.Table(qc.id("organ-table"), [
      { title: "id", value: (row) => row.label, class: "number" },
      { title: "organ", value: (row) => row.organ, class: "organ", show: (row) =>
        row.labels ? qc.link(`#organs/${row.label}`, qc.words(row.organ)) : qc.words(row.organ) },
      { title: "rejected share", value: share, show: bar },
      counted("rejected", "reject"), counted("missing", "missing"),
      { title: "labels", value: (row) => row.labels, show: (row) => qc.count(row.labels), class: "number" },
      { title: "labels outside, by feature", value: (row) => Math.max(...row.outside), class: "text", show: outside },
      { title: "fitted on", value: (row) => row.subjects, class: "number" },
    ], { sort: 2, descending: true, size: 200 });
  },

  async openOrgan(label = qc.id("organ").value) {
    const all = await qc.load("distributions");
    if (!all[label]) return;
    qc.id("organ").value = label;
    qc.id("organ-links").replaceChildren(qc.link(`#rejected/${label}`, "rejected labels"));
    qc.id("histograms").replaceChildren(...all[label].map((one, n) => {
      const feature = this.overview.features[n];
      const drawn = one.start === null || one.low === one.high && one.low === null
        ? qc.element("p", { className: "dim" }, "no thresholds") : qc.histogram(feature, one);
      return qc.element("div", {}, qc.element("h3", {}, qc.words(feature)), drawn);
    }));
  },

  /* The places of cases and labels in the review, "case number/label" to place. */
  async pictured() {
    const [cases, { items }] = await Promise.all([this.allCases(), qc.load("review")]);
    const rows = new Map(cases.map((one) => [one.case, one.row]));
    return new Map(items.case.map((name, n) => [`${rows.get(name)}/${items.label[n]}`, n]));
  },

  async allCases() {
    this.cases ??= qc.rows(await qc.load("cases")).map((one, row) => ({ ...one, row }));
    return this.cases;
  },

  look(pictured, row, label) {
    const place = pictured.get(`${row}/${label}`);
    return place === undefined ? qc.element("span", { className: "dim" }, "no picture") : qc.link(`#review/${place}`, "look");
  },

  async openRejected(label = "", decision = "") {
    if (!this.rejectedTable) {
      const [cases, pictured, columns] = await Promise.all([this.allCases(), this.pictured(), qc.load("rejected")]);
      const rows = qc.rows(columns).map((row) => ({ ...row, name: cases[row.row].case, organ: this.organs.get(row.label) }));
      const table = new qc.Table(qc.id("rejected-table"), [
        { title: "case", value: (row) => row.name, show: (row) => qc.link(`#case/${row.row}`, row.name), class: "text" },
        { title: "organ", value: (row) => row.organ, class: "organ", show: (row) => qc.words(row.organ) },
        { title: "decision", value: (row) => row.decision, show: (row) => qc.element("span", { className: row.decision }, row.decision) },
        { title: "picture", value: (row) => pictured.get(`${row.row}/${row.label}`) ?? Infinity, class: "short",
          show: (row) => this.look(pictured, row.row, row.label) },
        { title: "how far outside", value: (row) => row.margin, show: (row) => qc.number(row.margin), class: "number" },
        { title: "reason", value: (row) => row.reason, class: "text", show: (row) => qc.words(row.reason) },
      ], { sort: 4, descending: true, nothing: "no such label" });
      const found = this.overview.organs.filter((row) => row.rejected + row.missing);
      qc.options(qc.id("rejected-organ"), [["", "all"], ...found.map((row) => [row.label, qc.words(row.organ)])]);
      const [organ, kind, text] = ["rejected-organ", "rejected-decision", "rejected-case"].map(qc.id);
      this.rejectedTable = () => {
        const part = qc.searched(text.value);
        table.set(rows.filter((row) => (!organ.value || row.label === Number(organ.value))
          && (!kind.value || row.decision === kind.value) && qc.searched(row.name).includes(part)));
      };
      qc.watch([organ, kind, text], this.rejectedTable);
    }
    qc.id("rejected-organ").value = label === "all" ? "" : label;
    qc.id("rejected-decision").value = decision;
    this.rejectedTable();
  },

  async openCases() {
    if (this.caseTable) return;
    const rows = await this.allCases();
    const count = (name) => ({ title: name, value: (row) => row[name], show: (row) => qc.count(row[name]), class: "number" });
    const table = this.caseTable = new qc.Table(qc.id("case-table"), [
      { title: "case", value: (row) => row.case, show: (row) => qc.link(`#case/${row.row}`, row.case), class: "text" },
      count("labels"), count("rejected"), count("missing"),
      { title: "decision", value: (row) => (row.dropped ? "dropped" : row.rejected ? "rejected" : "kept") },
      { title: "farthest outside", value: (row) => (row.worst ? this.organs.get(row.worst) : ""), show: (row) => (row.worst ? qc.words(this.organs.get(row.worst)) : "") },
      { title: "how far", value: (row) => row.margin, show: (row) => (row.worst ? qc.number(row.margin) : ""), class: "number" },
    ], { sort: 2, descending: true, nothing: "no such case" });
    const [text, decision] = ["case-text", "case-decision"].map(qc.id);
    const fits = {
      all: () => true, rejected: (row) => row.rejected, missing: (row) => row.missing, dropped: (row) => row.dropped,
      kept: (row) => !row.rejected && !row.dropped,
    };
    const draw = () => {
      const part = qc.searched(text.value);
      table.set(rows.filter((row) => fits[decision.value](row) && qc.searched(row.case).includes(part)));
    };
    qc.watch([text, decision], draw);
    draw();
  },

  /* The features of a label, each with its percentile, and the reason of the decision. */
  measured(label) {
    const boxes = this.overview.features.map((name, n) => qc.element("div", {},
      qc.element("small", {}, qc.words(name)), qc.measured(label, n)));
    const reason = label.reason ? [qc.element("p", { className: "dim" }, qc.words(label.reason))] : [];
    return [qc.element("div", { className: "measures" }, ...boxes), ...reason];
  },

  async openCase(number) {
    const [row, { starts, totals }] = [Number(number), this.overview];
    if (!(row >= 0 && row < totals.cases)) throw new Error(`Case ${number} does not exist.`);
    const page = starts.findLastIndex((start) => start <= row);
    const [cases, columns, pictured] = await Promise.all([
      this.allCases(), qc.load(`labels-${String(page).padStart(5, "0")}`), this.pictured()]);
    const one = cases[row];
    qc.id("case-name").textContent = one.case;
    qc.id("case-summary").textContent = `${one.rejected} of ${one.labels} labels rejected`
      + (one.missing ? `, ${one.missing} organs missing` : "") + (one.dropped ? "; the case is dropped" : "");
    new qc.Table(qc.id("label-table"), [
      { title: "organ", value: (label) => this.organs.get(label.label), class: "organ", show: (label) => qc.link(`#organs/${label.label}`, qc.words(this.organs.get(label.label))) },
      { title: "decision", value: (label) => ["keep", "drop", "missing", "reject"].indexOf(label.decision), show: (label) => qc.element("span", { className: label.decision }, label.decision) },
      { title: "picture", value: (label) => pictured.get(`${row}/${label.label}`) ?? Infinity, class: "short",
        show: (label) => this.look(pictured, row, label.label) },
      { title: "features and reason", value: (label) => label.votes, show: (label) => qc.element("div", {}, ...this.measured(label)) },
    ], { sort: 1, descending: true, size: 200 }).set(qc.rows(columns).filter((label) => label.case === one.case));
    qc.id("case-name").focus();
  },

  async openReview(place) {
    if (!this.reviewing) await (this.reviewing = qc.review.start(this.overview, this.organs));
    await this.reviewing;
    if (place !== undefined) await qc.review.open(Number(place));
    else qc.review.draw();
  },
};

qc.views.start().catch(qc.problem);

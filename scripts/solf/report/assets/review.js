"use strict";
/* One label at a time, with keys for verdicts. */
qc.review = {
  async start(overview, organs) {
    Object.assign(this, { overview, organs, at: 0, plane: "axial" });
    const { items, ordinary } = await qc.load("review");
    this.ordinary = ordinary;
    this.items = qc.rows(items).map((item) => ({ ...item, organ: organs.get(item.label) }));
    this.viewers = [new qc.Viewer(qc.id("shown"), (...step) => this.follow(...step)), new qc.Viewer(qc.id("ordinary"))];
    this.solids = ["shown", "ordinary"].map((id) => new qc.Solid(qc.id(id), (...by) => this.rotate(...by)));
    this.angles = [0, 0];
    const shown = [...new Set(this.items.map((item) => item.organ))].sort();
    qc.options(qc.id("review-organ"), [["", "all"], ...shown.map((organ) => [organ, qc.words(organ)])]);
    for (const id of ["review-order", "review-organ", "review-open"]) {
      qc.id(id).addEventListener("change", (event) => {
        event.target.blur();  // so that the keys are verdicts again
        this.choose();
      });
    }
    qc.id("review-blind").addEventListener("change", () => this.describe());
    const actions = { accept: "a", reject: "r", back: "b", skip: "s" };
    for (const [id, key] of Object.entries(actions)) qc.id(id).addEventListener("click", () => this.press(key));
    document.addEventListener("keydown", (event) => this.key(event));
    qc.id("rename").addEventListener("click", () => this.ask(() => this.describe()));
    qc.id("export").addEventListener("click", () => this.save([qc.verdicts.reviewer]));
    qc.id("export-all").addEventListener("click", () => this.save());
    qc.id("merge").addEventListener("change", (event) => this.merge(event.target).catch(qc.problem));
    window.addEventListener("resize", () => this.draw());
    this.choose();
  },

  /* Show the labels that were chosen, from the first. */
  choose() {
    const [order, organ] = [qc.id("review-order").value, qc.id("review-organ").value];
    this.list = this.items.filter((item) => (!organ || item.organ === organ)
      && !(qc.id("review-open").checked && qc.verdicts.of(item)));
    if (order === "random") {
      let state = 1;  // equal for all, so that reviewers see the same order
      const next = () => (state = (state * 48271) % 2147483647);
      this.list = this.list.map((item) => [next(), item]).sort((a, b) => a[0] - b[0]).map(([, item]) => item);
    }
    const open = this.list.findIndex((item) => !qc.verdicts.of(item));
    this.go(Math.max(open, 0)).catch(qc.problem);
  },

  /* Open a label of the list by its place among all of them. */
  async open(number) {
    for (const [id, value] of [["review-order", "given"], ["review-organ", ""]]) qc.id(id).value = value;
    qc.id("review-open").checked = false;
    this.list = this.items;
    await this.go(number);
  },

  async go(at) {
    this.at = Math.max(0, Math.min(this.list.length - 1, at));
    const item = this.list[this.at];
    qc.id("review-stage").hidden = !item;
    qc.id("review-empty").hidden = Boolean(item);
    qc.id("review-empty").textContent = this.items.length ? "No label is left: choose another organ, or export."
      : "No label has pictures: set review_labels above 0 and write the report again.";
    this.describe();
    if (item) await this.show(item);
  },

  async show(item) {
    const beside = this.ordinary[item.label];
    const pictures = [item.picture, beside ?? { why: "no label of this organ was kept" }];
    const loaded = await Promise.all(pictures.map((one) => one.file && this.slices(one.file)));
    if (this.list[this.at] !== item) return;  // the reviewer went on
    await Promise.all(this.viewers.map((viewer, n) => loaded[n] ? viewer.open(loaded[n]) : viewer.close()));
    this.surfaces();
    qc.id("ordinary-title").textContent = beside?.file ? `An ordinary ${qc.words(item.organ)}: ${beside.case}`
      : `No ordinary ${qc.words(item.organ)}: ${(beside ?? pictures[1]).why}`;
    this.draw();
    const next = this.list[this.at + 1]?.picture.file;
    this.held = new Map([...this.held].filter(([name]) => [...pictures.map((one) => one.file), next].includes(name)));
    if (next) this.slices(next).catch(() => {});
  },

  held: new Map(),
  slices(name) {
    if (!this.held.has(name)) this.held.set(name, qc.script(name));
    return this.held.get(name);
  },

  /* Draw both viewers at one scale. */
  draw() {
    const width = qc.id("shown").clientWidth / (this.solid ? 4 : 3) - 8;
    const height = Math.max(180, (window.innerHeight - 290) / 2);
    const open = this.viewers.filter((viewer) => viewer.data);
    const scale = Math.min(...open.map((viewer) => viewer.fitting(width, height)));
    open.forEach((viewer) => viewer.drawAll(scale));
    this.mark();
    this.rotate(0, 0);
  },

  /* Find the surfaces of the labels on screen, if they are wanted. */
  surfaces() {
    this.solids.forEach((solid, n) => {
      solid.figure.hidden = !this.solid || !this.viewers[n].data;
      if (!solid.figure.hidden) solid.open(this.viewers[n]);
    });
  },

  /* Turn both surfaces, and draw them at one scale. */
  rotate(azimuth, elevation) {
    this.angles = [this.angles[0] + azimuth, Math.max(-1.5, Math.min(1.5, this.angles[1] + elevation))];
    const shown = this.solids.filter((solid) => !solid.figure.hidden);
    const room = Math.min(qc.id("shown").clientWidth / 4 - 8, Math.max(180, (window.innerHeight - 290) / 2));
    const scale = Math.min(...shown.map((solid) => room / (2 * solid.radius_mm)));
    shown.forEach((solid) => solid.draw(scale, ...this.angles));
  },

  mark() {
    for (const viewer of this.viewers) {
      for (const [plane, { canvas }] of Object.entries(viewer.planes)) {
        canvas.parentNode.classList.toggle("active", plane === this.plane);
      }
    }
  },

  /* Turn the ordinary organ by as many millimetres. */
  follow(plane, millimetres) {
    this.plane = plane;
    this.mark();
    const other = this.viewers[1];
    if (other.data) other.shift(plane, Math.round(millimetres / other.data.mm[qc.PLANES[plane][2]]));
  },

  describe() {
    const done = this.items.filter((item) => qc.verdicts.of(item)).length;
    qc.id("review-progress").value = `${qc.count(done)} of ${qc.count(this.items.length)} reviewed`;
    qc.id("review-bar").firstChild.style.setProperty("width", `${(100 * done) / Math.max(1, this.items.length)}%`);
    qc.id("reviewer").textContent = qc.verdicts.reviewer ? `Reviewer: ${qc.verdicts.reviewer}` : "No reviewer yet";
    const others = qc.verdicts.all();
    qc.id("export").disabled = !qc.verdicts.all([qc.verdicts.reviewer]).length;
    qc.id("export-all").disabled = !others.length;
    this.compare();
    const item = this.list[this.at];
    if (!item) return;
    const given = qc.verdicts.of(item);
    qc.id("review-title").textContent = `${qc.words(item.organ)} · ${item.case}`;
    qc.id("verdict").textContent = given ? `You: ${given.verdict}` : `${this.at + 1} of ${this.list.length}: no verdict yet`;
    qc.id("verdict").className = given?.verdict ?? "";
    qc.id("comment").value = given?.comment ?? "";
    qc.id("review-about").replaceChildren(...this.about(item));
  },

  about(item) {
    const parts = [];
    if (item.picture.why) parts.push(qc.element("p", { className: "warning" }, `No picture: ${item.picture.why}.`));
    if (item.picture.without_image) {
      parts.push(qc.element("p", { className: "warning" }, `No image: ${item.picture.without_image}.`));
    }
    if (!qc.id("review-blind").checked) {
      const decision = { keep: "kept", reject: "rejected", drop: "dropped with its case" }[item.decision];
      parts.push(qc.element("p", {}, "Rule: ", qc.element("b", { className: item.decision }, decision)));
      parts.push(...qc.views.measured(item));
    }
    return parts;
  },

  compare() {
    const rows = qc.verdicts.agreement().map(({ a, b, both, same, kappa }) =>
      qc.element("tr", {}, ...[`${a}, ${b}`, both, same === null ? "–" : qc.percent(same),
        kappa === null ? "–" : kappa.toFixed(2)].map((text) => qc.element("td", {}, String(text)))));
    const heads = ["reviewers", "both", "same", "kappa"].map((text) => qc.element("th", {}, text));
    qc.id("agreement").replaceChildren(...(rows.length ? [qc.element("table", {}, qc.element("tr", {}, ...heads), ...rows)] : []));
  },

  key(event) {
    if (qc.id("view-review").hidden || qc.id("name-dialog").open || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target === qc.id("comment") && ["Enter", "Escape"].includes(event.key)) return this.comment();
    if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
    if (this.press(event.key)) event.preventDefault();
  },

  /* Do what a key stands for; returns whether it does anything. */
  press(key) {
    const planes = Object.keys(qc.PLANES);
    const side = (step) => { this.plane = planes[(planes.indexOf(this.plane) + step + 3) % 3]; this.mark(); };
    const actions = {
      a: () => this.judge("accept"), r: () => this.judge("reject"),
      b: () => this.go(this.at - 1).catch(qc.problem), s: () => this.go(this.at + 1).catch(qc.problem),
      c: () => qc.id("comment").focus(), o: () => this.toggle(), d: () => this.look(),
      ArrowUp: () => this.viewers[0].turn(this.plane, 1), ArrowDown: () => this.viewers[0].turn(this.plane, -1),
      ArrowLeft: () => side(-1), ArrowRight: () => side(1),
    };
    actions[key]?.();
    return key in actions;
  },

  toggle() {
    this.viewers.forEach((viewer) => { viewer.labels = !viewer.labels; });
    this.draw();
  },

  /* Show or hide the surfaces. */
  look() {
    this.solid = !this.solid;
    this.surfaces();
    this.draw();
  },

  judge(verdict) {
    const item = this.list[this.at];
    if (!item) return;
    if (!qc.verdicts.reviewer) return this.ask(() => this.judge(verdict));
    qc.verdicts.give(item, verdict, qc.id("comment").value.trim());
    if (this.at + 1 < this.list.length) this.go(this.at + 1).catch(qc.problem);
    else this.describe();
  },

  /* Keep the comment of a label that has a verdict; without one it is kept with the verdict. */
  comment() {
    const item = this.list[this.at];
    const given = qc.verdicts.of(item);
    if (given) qc.verdicts.give(item, given.verdict, qc.id("comment").value.trim());
    qc.id("comment").blur();
  },

  /* Ask for the reviewer's name, then go on. */
  ask(then) {
    const dialog = qc.id("name-dialog");
    qc.id("name").value = qc.verdicts.reviewer;
    dialog.onclose = () => {
      const name = qc.id("name").value.trim();
      if (!name) return;
      qc.verdicts.reviewer = name;
      qc.verdicts.save();
      then();
    };
    dialog.showModal();
  },

  save(reviewers) {
    const file = new Blob([qc.verdicts.written(qc.verdicts.all(reviewers))], { type: "text/csv" });
    const name = (reviewers ?? ["all"])[0].replace(/[^\p{L}\p{N}]+/gu, "_");
    const link = qc.element("a", { href: URL.createObjectURL(file), download: `verdicts_${name}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  },

  async merge(input) {
    const lines = [];
    for (const file of input.files) {
      try {
        lines.push(`${file.name}: ${qc.count(qc.verdicts.merge(await file.text()))} verdicts.`);
      } catch (error) {
        lines.push(`${file.name}: ${error.message}; nothing of it was taken.`);
      }
    }
    input.value = "";
    qc.id("merged").textContent = lines.join(" ");
    this.describe();
  },
};

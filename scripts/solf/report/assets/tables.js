"use strict";
/* A table that sorts by a click on a column and shows one page of rows. A column has a title, value(row) to sort by, and
   perhaps show(row), an element or a text, and a class. */
qc.Table = class {
  constructor(place, columns, { sort = 0, descending = false, size = 50, nothing = "none" } = {}) {
    Object.assign(this, { columns, by: sort, descending, size, nothing, rows: [], page: 0 });
    this.heads = columns.map((column, n) => qc.element("th", { scope: "col", className: column.class ?? "" },
      qc.element("button", { type: "button", onclick: () => this.sort(n) }, column.title)));
    this.body = qc.element("tbody");
    this.count = qc.element("output");
    this.steps = [["Previous", -1], ["Next", 1]].map(([text, step]) =>
      qc.element("button", { type: "button", onclick: () => this.turn(this.page + step) }, text));
    const head = qc.element("thead", {}, qc.element("tr", {}, ...this.heads));
    place.replaceChildren(
      qc.element("div", { className: "scroll" }, qc.element("table", {}, head, this.body)),
      qc.element("p", { className: "pages" }, this.count, ...this.steps));
  }

  set(rows) {
    this.rows = [...rows];
    this.order();
  }

  sort(column) {
    this.descending = this.by === column ? !this.descending : typeof this.columns[column].value(this.rows[0]) === "number";
    this.by = column;
    this.order();
  }

  order() {
    const keys = new Map(this.rows.map((row) => [row, this.columns[this.by].value(row) ?? -Infinity]));
    const sign = this.descending ? -1 : 1;
    this.rows.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      return x < y ? -sign : x > y ? sign : 0;
    });
    this.heads.forEach((head, n) =>
      head.setAttribute("aria-sort", n !== this.by ? "none" : this.descending ? "descending" : "ascending"));
    this.turn(0);
  }

  turn(page) {
    this.page = page;
    const [first, total] = [page * this.size, this.rows.length];
    const last = Math.min(first + this.size, total);
    this.body.replaceChildren(...this.rows.slice(first, last).map((row) =>
      qc.element("tr", {}, ...this.columns.map((column) =>
        qc.element("td", { className: column.class ?? "" }, column.show ? column.show(row) : column.value(row))))));
    this.count.value = total ? `${qc.count(first + 1)}–${qc.count(last)} of ${qc.count(total)}` : this.nothing;
    this.steps.forEach((step) => { step.hidden = total <= this.size; });
    this.steps[0].disabled = page === 0;
    this.steps[1].disabled = last === total;
  }
};

/* A histogram as SVG: kept and rejected labels, stacked, with the thresholds and the median. The first and the last bin
   count what lies beyond the others. */
qc.histogram = (feature, one) => {
  const [width, height, floor] = [400, 150, 128];
  const make = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const bins = one.kept.length - 2;
  const most = Math.max(1, ...one.kept.map((kept, n) => kept + one.rejected[n]));
  const step = width / (bins + 2);
  const edge = (n) => one.start + ((one.stop - one.start) * (n - 1)) / bins;
  const bars = one.kept.flatMap((kept, n) => {
    const range = n === 0 ? `below ${qc.number(edge(1))}` : n > bins ? `above ${qc.number(edge(n))}`
      : `${qc.number(edge(n))} to ${qc.number(edge(n + 1))}`;
    const text = `${range}: ${kept} kept, ${one.rejected[n]} rejected`;
    const tall = (count) => (count ? Math.max((count / most) * (floor - 8), 1.5) : 0);
    const [low, high] = [tall(kept), tall(one.rejected[n])];
    return [["kept", floor - low, low], ["rejected", floor - low - high, high]].filter(([, , tall]) => tall).map(
      ([name, y, tall]) => make("rect", { class: name, x: n * step + 0.4, y, width: step - 0.8, height: tall },
        make("title", {}, text)));
  });
  const x = (value) => step + ((value - one.start) / (one.stop - one.start)) * bins * step;
  const marks = ["low", "median", "high"].filter((name) => one[name] !== null).flatMap((name) => [
    make("line", { class: name === "median" ? "median" : "threshold", x1: x(one[name]), x2: x(one[name]), y1: 4, y2: floor }),
    make("text", { class: name, x: x(one[name]), y: height - 6 }, qc.number(one[name])),
  ]);
  return make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Histogram of ${qc.words(feature)}` },
    ...bars, make("line", { class: "axis", x1: 0, x2: width, y1: floor, y2: floor }), ...marks);
};

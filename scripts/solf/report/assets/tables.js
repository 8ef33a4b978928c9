"use strict";
/* Tables by DataTables. It parses cells as HTML, so each text is escaped or becomes an element. */
qc.tables = {
  text: DataTable.render.text(),

  /* A column of numbers, shown as show(value). */
  column: (title, data, show = qc.number) => ({
    title, data, className: "dt-right", orderSequence: ["desc", "asc"],
    render: { _: (value) => (Number.isNaN(value) ? -Infinity : value ?? -Infinity), display: show, filter: () => "" },
  }),

  textColumn: (title, data, options = {}) => ({ title, data, type: "string", render: qc.tables.text, ...options }),

  /* Turn the cells of a column into links to link(row). */
  linked: (column, link) => ({
    ...column,
    createdCell(cell, _, row) {
      cell.replaceChildren(qc.element("a", { href: link(row), textContent: cell.textContent }));
    },
  }),

  make(place, options, below = { bottomStart: null, bottomEnd: null }) {
    const layout = { topStart: null, topEnd: null, ...below };
    return new DataTable(place, { autoWidth: false, paging: false, layout, ...options });
  },

  organs(overview, redrawn) {
    const features = overview.features.map((name, column) =>
      this.column(`outside: ${qc.words(name)}`, (row) => row.outside[column], qc.count));
    const table = this.make("#organ-table", {
      data: overview.organs, order: [[4, "desc"]],
      columns: [
        this.column("id", "label", String),
        this.linked(this.textColumn("organ", (row) => qc.words(row.organ)), (row) => `#distributions/${row.label}`),
        this.column("labels", "labels", qc.count),
        this.linked(this.column("rejected", "rejected", qc.count), (row) => `#cases/${qc.words(row.organ)}`),
        this.column("share", (row) => (row.labels ? row.rejected / row.labels : 0), qc.percent),
        ...features,
        this.column("fitted on", (row) => row.subjects, (n) => (n === null ? "–" : qc.count(n))),
      ],
    });
    const inOrder = () => table.rows({ order: "applied" }).data().toArray();
    table.on("draw", () => redrawn(inOrder()));
    return table;
  },

  /* All cases. DataTables asks for 25 rows at a time; they are sorted and filtered by the index in memory. */
  cases(index, organs) {
    const keys = this.caseKeys(index, organs);
    const orders = new Map();
    const ordered = (order) => {
      const name = order.map(({ column, dir }) => `${column} ${dir}`).join();
      if (!orders.has(name)) orders.set(name, this.sorted(keys, order));
      return orders.get(name);
    };
    return this.make("#case-table", {
      serverSide: true, searching: false, paging: true, pageLength: 25, lengthMenu: [25, 100, 500],
      order: [[2, "desc"], [5, "desc"]], columns: this.caseColumns(index, organs),
      ajax: (request, answer) => {
        const fits = this.fitting(index, organs);
        const found = ordered(request.order).filter((row) => fits[row]);
        document.getElementById("case-count").value =
          `${qc.count(found.length)} of ${qc.count(index.names.length)} cases`;
        const rows = Array.from(found.subarray(request.start, request.start + request.length));
        answer({ draw: request.draw, recordsTotal: index.names.length, recordsFiltered: found.length, data: rows });
      },
    }, { bottomStart: ["info", "pageLength"], bottomEnd: "paging" });
  },

  /* Numbers by which each column is sorted. */
  caseKeys(index, organs) {
    const names = [...organs.values()].sort();
    const state = index.rejected.map((n, row) => (index.dropped[row] ? 2 : Math.min(n, 1)));
    const place = (label) => (label ? names.indexOf(organs.get(label)) : names.length);
    const places = new Map([0, ...organs.keys()].map((label) => [label, place(label)]));
    return [
      Uint32Array.from(index.names.keys()), index.labels, index.rejected, state,
      Uint16Array.from(index.worst, (label) => places.get(label)), index.excess,
    ];
  },

  /* Sort rows by the numbers of one column, then of the next; ties by name. */
  sorted(keys, order) {
    const by = order.map(({ column, dir }) => [keys[column], dir === "desc" ? -1 : 1]);
    return Uint32Array.from(keys[0].keys()).sort((a, b) => {
      for (const [key, sign] of by) if (key[a] !== key[b]) return sign * (key[a] - key[b]);
      return a - b;
    });
  },

  /* One byte per case: whether it passes the filters. */
  fitting(index, organs) {
    const text = qc.searched(document.getElementById("case-text").value);
    const decision = document.getElementById("case-decision").value;
    const named = [...organs].filter(([, organ]) => qc.searched(organ).includes(text));
    const wanted = new Set(named.map(([label]) => label));
    const passes = {
      all: () => true, rejected: (row) => index.rejected[row] > 0, dropped: (row) => index.dropped[row] > 0,
      kept: (row) => !index.rejected[row] && !index.dropped[row],
    }[decision];
    const hasOrgan = (row) => {
      for (let at = index.ends[row] - index.rejected[row]; at < index.ends[row]; at++) {
        if (wanted.has(index.rejections[at])) return true;
      }
      return false;
    };
    return Uint8Array.from(index.searched, (name, row) => passes(row) && (name.includes(text) || hasOrgan(row)));
  },

  caseColumns(index, organs) {
    const state = (row) => (index.dropped[row] ? "dropped" : index.rejected[row] ? "rejected" : "kept");
    const rejections = (row) => {
      const labels = index.rejections.subarray(index.ends[row] - index.rejected[row], index.ends[row]);
      const names = Array.from(labels.subarray(0, 6), (label) => qc.words(organs.get(label)));
      return names.join(", ") + (labels.length > 6 ? ` and ${labels.length - 6} more` : "");
    };
    return [
      this.linked(this.textColumn("case", (row) => index.names[row]), (row) => `#case/${row}`),
      this.column("labels", (row) => index.labels[row], qc.count),
      this.column("rejected", (row) => index.rejected[row], qc.count),
      this.textColumn("decision", state),
      this.textColumn("worst organ", (row) => (index.worst[row] ? qc.words(organs.get(index.worst[row])) : "")),
      this.column("how far outside", (row) => index.excess[row]),
      this.textColumn("rejected organs", rejections, { orderable: false }),
    ];
  },

  /* The labels of one case; rows come from its data file. */
  labels(features) {
    const measured = features.flatMap((name, column) => [
      this.column(qc.words(name), (row) => row.values[column]),
      this.column("percentile", (row) => row.percentiles[column], (p) => (Number.isNaN(p) ? "–" : p.toFixed(2))),
    ]);
    return this.make("#label-table", {
      data: [], order: [[2, "desc"], [3, "desc"]],
      columns: [
        this.column("id", "label", String),
        this.textColumn("organ", (row) => qc.words(row.organ)),
        this.textColumn("decision", "decision", { createdCell: (cell, text) => cell.classList.add(text) }),
        this.column("votes", "votes", String),
        this.textColumn("reason", "reason", { className: "reason" }),
        ...measured,
      ],
    });
  },
};

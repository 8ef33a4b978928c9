"use strict";
/* Loading. Pages opened from disk may not fetch files, so data are scripts that call qc.receive. */
const qc = {
  received: new Map(),
  loading: new Map(),

  receive(name, data) {
    this.received.set(name, data);
  },

  /* Load data/<name>.js once; returns a promise of its data. */
  load(name) {
    if (!this.loading.has(name)) {
      this.loading.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => resolve(this.received.get(name));
        script.onerror = () => {
          this.loading.delete(name);
          reject(new Error(`data/${name}.js cannot be read; copy the whole folder of the report.`));
        };
        document.head.append(script);
      }));
    }
    return this.loading.get(name);
  },

  /* Undo packed() and packed_json() of folder.py. */
  async unpack(column) {
    if (!window.DecompressionStream) throw new Error("This browser is too old; use a version of 2023 or later.");
    const bytes = Uint8Array.from(atob(column.data), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    if (column.type === "json") return JSON.parse(new TextDecoder().decode(planes));
    const kinds = { int8: Int8Array, int16: Int16Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array,
      float32: Float32Array };
    const width = kinds[column.type].BYTES_PER_ELEMENT;
    const whole = new Uint8Array(planes.length);
    for (let byte = 0; byte < width; byte++) {
      for (let row = 0; row < column.size; row++) whole[row * width + byte] = planes[byte * column.size + row];
    }
    return new kinds[column.type](whole.buffer);
  },

  /* Unpack each column of an object, and of lists and objects in it. */
  async unpackAll(packed) {
    const one = (value) => {
      if (Array.isArray(value)) return Promise.all(value.map(one));
      return value.data === undefined ? this.unpackAll(value) : this.unpack(value);
    };
    const pairs = Object.entries(packed).map(async ([key, value]) => [key, await one(value)]);
    return Object.fromEntries(await Promise.all(pairs));
  },

  /* The index of all cases, with names prepared for the search. */
  cases() {
    this.index ??= this.load("cases").then((packed) => this.unpackAll(packed)).then((index) => {
      index.searched = index.names.map(qc.searched);
      index.ends = new Uint32Array(index.names.length);
      let end = 0;
      index.rejected.forEach((count, row) => { index.ends[row] = end += count; });
      return index;
    });
    return this.index;
  },

  /* Read a number of packed_decimals(). */
  decimal({ mantissa, exponent }, row) {
    return exponent[row] === -128 ? NaN : Number(`${mantissa[row]}e${exponent[row]}`);
  },

  searched: (text) => text.toLowerCase().replaceAll("_", " ").trim(),
  words: (name) => String(name).replaceAll("_", " "),
  count: (n) => n.toLocaleString("en"),
  percent: (share) => `${(100 * share).toLocaleString("en", { maximumFractionDigits: 2 })} %`,

  /* Format with four digits, with an exponent only if needed. */
  number(value) {
    if (value === null || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
  },

  /* Make an element; texts become text nodes, so names are never parsed as HTML. */
  element(tag, properties = {}, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  },

  problem(error) {
    const place = document.getElementById("problem");
    place.textContent = error.message;
    place.hidden = false;
  },
};

"use strict";
/* Three planes of a small volume, as radiologists see them: the patient's right on the left, front or head up. */
qc.PLANES = { axial: [0, 1, 2, "R", "A"], coronal: [0, 2, 1, "R", "S"], sagittal: [1, 2, 0, "A", "S"] };

/* The pixels of tiles, as slices one after the other. */
qc.decoded = async (source, [x, y, z], across) => {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = qc.element("canvas", { width: image.width, height: image.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height).data;
  const volume = new Uint8Array(x * y * z);
  for (let k = 0, at = 0; k < z; k++) {
    const [left, top] = [(k % across) * x, Math.floor(k / across) * y];
    for (let j = 0; j < y; j++) {
      for (let i = 0; i < x; i++) volume[at++] = pixels[4 * ((top + j) * image.width + left + i)];
    }
  }
  return volume;
};

qc.Viewer = class {
  /* moved(plane, millimetres) is called when a slice is turned. */
  constructor(place, moved = () => {}) {
    Object.assign(this, { moved, labels: true, planes: {} });
    for (const plane of Object.keys(qc.PLANES)) {
      const canvas = qc.element("canvas", { tabIndex: -1 });
      const text = qc.element("figcaption");
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        this.turn(plane, -Math.sign(event.deltaY));
      }, { passive: false });
      canvas.addEventListener("pointermove", (event) => this.name(plane, event));
      canvas.addEventListener("pointerleave", () => this.caption(plane));
      place.append(qc.element("figure", {}, canvas, text));
      this.planes[plane] = { canvas, text };
    }
  }

  /* Decode the volumes of data/slices-<n>.js and open the largest section of each plane. */
  async open(data) {
    const [map, image] = await Promise.all([data.map, data.image].map((source) =>
      source && qc.decoded(source, data.size, data.across)));
    Object.assign(this, { data, map, image, at: [...data.start] });
  }

  close() {
    this.data = null;
    for (const { canvas, text } of Object.values(this.planes)) {
      canvas.width = canvas.height = 0;
      text.textContent = "";
    }
  }

  /* Pixels per mm at which all planes fit. */
  fitting(width, height) {
    const { size, mm } = this.data;
    const scales = Object.values(qc.PLANES).map(([u, v]) =>
      Math.min(width / (size[u] * mm[u]), height / (size[v] * mm[v])));
    return Math.min(...scales);
  }

  turn(plane, steps) {
    if (!this.data) return;
    const axis = qc.PLANES[plane][2];
    const before = this.at[axis];
    this.shift(plane, steps);
    this.moved(plane, (this.at[axis] - before) * this.data.mm[axis]);
  }

  shift(plane, steps) {
    const axis = qc.PLANES[plane][2];
    this.at[axis] = Math.max(0, Math.min(this.data.size[axis] - 1, this.at[axis] + steps));
    this.draw(plane);
  }

  /* Return the index of a pixel (column, row) of a plane in the volume. */
  index(plane, column, row) {
    const [u, v, w] = qc.PLANES[plane];
    const place = [0, 0, 0];
    place[u] = this.data.size[u] - 1 - column;
    place[v] = this.data.size[v] - 1 - row;
    place[w] = this.at[w];
    return place[0] + this.data.size[0] * (place[1] + this.data.size[1] * place[2]);
  }

  drawAll(scale) {
    this.scale = scale;
    Object.keys(qc.PLANES).forEach((plane) => this.draw(plane));
  }

  draw(plane) {
    const [u, v, w, side, top] = qc.PLANES[plane];
    const { size, mm } = this.data;
    const { canvas } = this.planes[plane];
    const dots = window.devicePixelRatio || 1;
    const [px, py] = [this.scale * mm[u] * dots, this.scale * mm[v] * dots];
    Object.assign(canvas, { width: Math.round(size[u] * px), height: Math.round(size[v] * py) });
    canvas.style.setProperty("width", `${canvas.width / dots}px`);
    const context = canvas.getContext("2d");
    const cells = Array.from({ length: size[v] }, (_, row) =>
      Array.from({ length: size[u] }, (_, column) => this.index(plane, column, row)));
    context.imageSmoothingEnabled = Boolean(this.image);
    context.drawImage(this.painted(cells, size[u], size[v]), 0, 0, canvas.width, canvas.height);
    if (this.labels) this.outline(context, cells, px, py, dots);
    Object.assign(context, { fillStyle: "#b6c4d2", shadowColor: "#000", shadowBlur: 4 * dots });
    context.font = `${11 * dots}px system-ui, sans-serif`;
    context.fillText(side, 4 * dots, canvas.height / 2);
    context.fillText(top, canvas.width / 2, 13 * dots);
    const bar = [100, 50, 20, 10, 5].find((length) => length < 0.4 * size[u] * mm[u]) ?? 2;
    const [right, bottom] = [canvas.width - 8 * dots, canvas.height - 8 * dots];
    context.fillRect(right, bottom, -bar * this.scale * dots, 2 * dots);
    context.textAlign = "right";
    context.fillText(`${bar} mm`, right, bottom - 4 * dots);
    this.caption(plane);
  }

  /* Grey values with the labels over them, one pixel per voxel. */
  painted(cells, width, height) {
    const muted = [[96, 125, 150], [110, 140, 128], [128, 120, 150], [140, 132, 112], [104, 136, 142], [132, 116, 128]];
    const canvas = qc.element("canvas", { width, height });
    const picture = new ImageData(width, height);
    const rejected = new Set(this.data.rejected);
    const tints = this.data.names.map((name) => [...name].reduce((sum, c) => sum + c.codePointAt(0), 0) % muted.length);
    cells.flat().forEach((index, n) => {
      const [label, grey] = [this.map[index], this.image ? this.image[index] : 16];
      const own = label === 1;
      let opacity = !label || !this.labels ? 0 : this.image ? (own ? 0.22 : 0.12) : own ? 0.65 : 0.5;
      const color = own ? [255, 176, 0] : rejected.has(label) ? [200, 120, 60] : muted[tints[label] ?? 0];
      for (let channel = 0; channel < 3; channel++) {
        picture.data[4 * n + channel] = grey + opacity * (color[channel] - grey);
      }
      picture.data[4 * n + 3] = 255;
    });
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return canvas;
  }

  /* Borders between labels along the edges of voxels; that of the label on screen is drawn last. */
  outline(context, cells, px, py, dots) {
    const [muted, own] = [new Path2D(), new Path2D()];
    const line = (a, b, ...ends) => {
      if (a === b) return;
      const path = a === 1 || b === 1 ? own : muted;
      path.moveTo(ends[0] * px, ends[1] * py);
      path.lineTo(ends[2] * px, ends[3] * py);
    };
    cells.forEach((row, j) => row.forEach((index, i) => {
      const here = this.map[index];
      if (i + 1 < row.length) line(here, this.map[row[i + 1]], i + 1, j, i + 1, j + 1);
      if (j + 1 < cells.length) line(here, this.map[cells[j + 1][i]], i, j + 1, i + 1, j + 1);
    }));
    for (const [path, color, width] of [[muted, "rgba(150,170,190,.45)", 1], [own, "#ffb000", 2]]) {
      context.strokeStyle = color;
      context.lineWidth = width * dots;
      context.stroke(path);
    }
  }

  caption(plane, organ = "") {
    if (!this.data) return;
    const axis = qc.PLANES[plane][2];
    const text = `${plane} ${this.at[axis] + 1}/${this.data.size[axis]}`;
    this.planes[plane].text.textContent = organ ? `${text} · ${organ}` : text;
  }

  /* Name the label under the pointer. */
  name(plane, event) {
    if (!this.data) return;
    const [u, v] = qc.PLANES[plane];
    const box = event.target.getBoundingClientRect();
    const at = [[event.clientX - box.left, box.width, u], [event.clientY - box.top, box.height, v]].map(
      ([offset, length, axis]) => Math.max(0, Math.min(this.data.size[axis] - 1,
        Math.floor((offset / length) * this.data.size[axis]))));
    this.caption(plane, qc.words(this.data.names[this.map[this.index(plane, ...at)]] ?? "another organ"));
  }
};

"use strict";
/* The surface of one label in three dimensions, seen from the front at first: every voxel of the surface is drawn as a
   square, the nearest on top, and lit from the viewer. */
qc.Solid = class {
  /* turned(azimuth, elevation) is called while the pointer drags, with radians. */
  constructor(place, turned) {
    this.canvas = qc.element("canvas", { tabIndex: -1 });
    this.canvas.addEventListener("pointerdown", (event) => this.canvas.setPointerCapture(event.pointerId));
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) turned(event.movementX / 100, event.movementY / 100);
    });
    this.figure = qc.element("figure", { hidden: true }, this.canvas, qc.element("figcaption", {}, "3-D"));
    place.append(this.figure);
  }

  /* Find the surface of label 1: positions in mm from the middle of the crop, and normals. */
  open({ map, data: { size, mm } }) {
    const [x, y, z] = size;
    const isOwn = (i, j, k) => i >= 0 && j >= 0 && k >= 0 && i < x && j < y && k < z && map[i + x * (j + y * k)] === 1;
    const around = [];
    for (let n = 0; n < 125; n++) around.push([(n % 5) - 2, (Math.floor(n / 5) % 5) - 2, Math.floor(n / 25) - 2]);
    const sides = around.filter((step) => Math.abs(step[0]) + Math.abs(step[1]) + Math.abs(step[2]) === 1);
    this.radius_mm = 0.5 * Math.hypot(...size.map((length, axis) => length * mm[axis]));
    this.voxel_mm = Math.max(...mm);
    this.surface = [];
    for (let k = 0; k < z; k++) for (let j = 0; j < y; j++) for (let i = 0; i < x; i++) {
      if (!isOwn(i, j, k) || sides.every(([a, b, c]) => isOwn(i + a, j + b, k + c))) continue;
      const normal = [0, 0, 0];
      for (const step of around) {
        if (!isOwn(i + step[0], j + step[1], k + step[2])) step.forEach((n, axis) => { normal[axis] += n / mm[axis]; });
      }
      const length = Math.hypot(...normal) || 1;
      const place = [i, j, k].map((index, axis) => (index + 0.5 - size[axis] / 2) * mm[axis]);
      this.surface.push([place, normal.map((n) => n / length)]);
    }
  }

  /* Draw at `scale` pixels per mm. */
  draw(scale, azimuth, elevation) {
    const dots = window.devicePixelRatio || 1;
    const width = Math.ceil(2 * this.radius_mm * scale * dots);
    Object.assign(this.canvas, { width, height: width });
    this.canvas.style.setProperty("width", `${width / dots}px`);
    const [picture, nearest] = [new ImageData(width, width), new Float32Array(width * width).fill(-Infinity)];
    const side = Math.ceil(1.2 * this.voxel_mm * scale * dots);
    for (const [place, normal] of this.surface) {
      const [u, v, depth] = qc.turned(place, azimuth, elevation);
      const light = 0.3 + 0.7 * Math.max(0, qc.turned(normal, azimuth, elevation)[2]);
      const [left, top] = [u, v].map((offset) => Math.round(width / 2 + offset * scale * dots - side / 2));
      for (let row = Math.max(0, top); row < Math.min(width, top + side); row++) {
        for (let at = row * width + Math.max(0, left); at < row * width + Math.min(width, left + side); at++) {
          if (depth <= nearest[at]) continue;
          nearest[at] = depth;
          picture.data.set([255 * light, 176 * light, 0, 255], 4 * at);
        }
      }
    }
    this.canvas.getContext("2d").putImageData(picture, 0, 0);
  }
};

/* Right, down and towards the viewer, of a vector to the patient's right, front and head; the right is on the left. */
qc.turned = ([x, y, z], azimuth, elevation) => {
  const [sideways, front] = [x * Math.cos(azimuth) - y * Math.sin(azimuth), x * Math.sin(azimuth) + y * Math.cos(azimuth)];
  return [-sideways, -z * Math.cos(elevation) + front * Math.sin(elevation), z * Math.sin(elevation) + front * Math.cos(elevation)];
};

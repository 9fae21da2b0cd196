"use strict";
// Draws the viewers: a small volume for each method, sliced along its axes; emdiffuse/report/viewer.py embeds the data.

const PLANES = { xy: { row: 1, column: 2, cut: 0 }, xz: { row: 0, column: 2, cut: 1 }, yz: { row: 1, column: 0, cut: 2 } };
const ABOVE = [255, 140, 0], BELOW = [40, 130, 255];

// Enlarged images keep sharp pixels; reduced images are averaged by the browser.
function sharpen() {
  for (const picture of document.querySelectorAll(".frame img, .plane canvas")) {
    const pixels = picture.naturalWidth ?? picture.width;
    picture.classList.toggle("enlarged", picture.clientWidth * devicePixelRatio >= pixels);
  }
}

// Reads the intensities (z, y, x) from a sheet of slices.
async function read({ image, low, high, slices: depth, columns }, height, width) {
  const picture = new Image();
  picture.src = image;
  await picture.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const values = new Float32Array(depth * height * width);
  for (let z = 0; z < depth; z++) {
    const [left, top] = [(z % columns) * width, Math.floor(z / columns) * height];
    const grey = context.getImageData(left, top, width, height).data;
    for (let i = 0; i < height * width; i++) values[z * height * width + i] = low + (grey[4 * i] / 255) * (high - low);
  }
  return values;
}

// Interpolates slices between real ones, rounded and clipped like a written volume.
function interpolate(real, { low, high }, weights, size, whole) {
  const values = new Float32Array(weights.length * size);
  weights.forEach((parts, z) => {
    const slice = values.subarray(z * size, (z + 1) * size);
    for (const [from, weight] of parts) for (let i = 0; i < size; i++) slice[i] += weight * real[from * size + i];
    if (whole) for (let i = 0; i < size; i++) slice[i] = Math.min(Math.max(Math.round(slice[i]), low), high);
  });
  return values;
}

function start(viewer) {
  const data = JSON.parse(viewer.querySelector("script").textContent);
  const find = (selector) => viewer.querySelector(selector);
  const [left, right, overlay, cut, legend] = [".left", ".right", ".overlay", ".cut", ".legend"].map(
    (name) => find(`.controls ${name}`) ?? find(name));
  const axes = [".z", ".y", ".x"].map((name) => find(`.controls ${name}`));
  const views = [...viewer.querySelectorAll(".plane")].map((frame) => ({
    frame, canvas: frame.querySelector("canvas"), ...PLANES[frame.dataset.plane],
  }));
  const strides = [data.shape[1] * data.shape[2], data.shape[2], 1];
  const [black, white] = data.contrast;
  const loaded = {};
  const make = async (name) => data.made[name]
    ? interpolate(await volume("real"), data.sheets.real, data.made[name], strides[0], data.whole)
    : read(data.sheets[name], ...data.shape.slice(1));
  const volume = (name) => (loaded[name] ??= make(name));
  const at = () => axes.map((axis, i) => (axis ? Number(axis.value) : data.start[i]));
  const label = (select) => select.selectedOptions[0].textContent.trim();
  let turn = 0;

  function paint({ canvas, row, column, cut: fixed }, sides, truth, uncertainty) {
    const [height, width] = [data.shape[row], data.shape[column]];
    const picture = new ImageData(width, height);
    const base = at()[fixed] * strides[fixed];
    const boundary = (cut.value / 100) * width;
    for (let r = 0, p = 0; r < height; r++) {
      for (let c = 0; c < width; c++, p += 4) {
        const i = base + r * strides[row] + c * strides[column];
        const side = sides[c < boundary ? 0 : 1];
        const grey = ((side.values[i] - black) * 255) / (white - black);
        let shown = 0;
        if (truth) shown = (side.values[i] - truth[i]) / data.white;
        if (uncertainty && side.name === "restored") shown = uncertainty[i] / data.white;
        const strength = Math.min(Math.abs(shown), 1);
        const color = shown < 0 ? BELOW : ABOVE;
        for (let k = 0; k < 3; k++) picture.data[p + k] = Math.min(Math.max(grey, 0), 255) * (1 - strength) + color[k] * strength;
        picture.data[p + 3] = 255;
      }
    }
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  async function show() {
    const mine = ++turn;
    viewer.ariaBusy = "true";
    const kind = overlay?.value ?? "";
    const [first, second, truth, uncertainty] = await Promise.all(
      [left.value, right.value, kind === "truth" && "truth", kind === "uncertainty" && "uncertainty"].map((name) => name && volume(name)));
    if (mine !== turn) return;
    const sides = [{ name: left.value, values: first }, { name: right.value, values: second }];
    const place = at();
    const nanometers = (axis) => `${"zyx"[axis]} = ${Number(((place[axis] + data.origin[axis]) * data.voxel).toPrecision(4))} nm`;
    for (const view of views) {
      paint(view, sides, truth, uncertainty);
      const plane = view.frame.dataset.plane;
      const where = view.cut === 0 ? data.slices[place[0]] : nanometers(view.cut);
      view.canvas.setAttribute("aria-label", `${plane} plane, ${where}: ${label(left)} left of the boundary, ${label(right)} right of it`);
    }
    ["--z", "--y", "--x"].forEach((name, i) => viewer.style.setProperty(name, `${(100 * (place[i] + 0.5)) / data.shape[i]}%`));
    viewer.style.setProperty("--cut", `${cut.value}%`);
    find(".tag.first").textContent = label(left);
    find(".tag.second").textContent = label(right);
    const index = place.reduce((sum, value, i) => sum + value * strides[i], 0);
    const values = sides.map((side, i) => `${label([left, right][i])} ${Number(side.values[index].toPrecision(4))}`);
    const where = data.volume ? [data.slices[place[0]], nanometers(1), nanometers(2), ...values] : [data.slices[place[0]]];
    find("output").textContent = where.join(" · ");
    axes.forEach((axis, i) => axis?.setAttribute("aria-valuetext", i ? nanometers(i) : data.slices[place[0]]));
    cut.setAttribute("aria-valuetext", `${cut.value} % of the width shows ${label(left)}`);
    if (legend) {
      legend.hidden = !kind;
      legend.dataset.kind = kind;
      const top = Number(data.white.toPrecision(3));
      legend.querySelector(".least").textContent = kind === "truth" ? `−${top} or less` : "0";
      legend.querySelector(".most").textContent = kind === "truth" ? `+${top} or more` : `${top} or more`;
      legend.querySelector(".what").textContent = kind === "truth"
        ? "Difference from the ground truth: blue is darker, orange brighter; in units of intensity"
        : "Standard deviation of the samples (drawn over the restored side), in units of intensity";
    }
    sharpen();
    viewer.ariaBusy = "false";
  }

  // Near the boundary the pointer drags the boundary, elsewhere the crosshair.
  for (const { frame, row, column } of views) {
    let dragged = null;
    const move = (event) => {
      const box = frame.getBoundingClientRect();
      const share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      if (event.type === "pointerdown") {
        dragged = !data.volume || Math.abs(100 * share[0] - cut.value) * box.width < 1000 ? "boundary" : "crosshair";
        frame.setPointerCapture(event.pointerId);
      }
      if (dragged === "boundary") cut.value = 100 * share[0];
      if (dragged === "crosshair") {
        axes[column].value = Math.floor(share[0] * data.shape[column]);
        axes[row].value = Math.floor(share[1] * data.shape[row]);
      }
      if (dragged) show();
    };
    frame.addEventListener("pointerdown", move);
    frame.addEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, () => (dragged = null));
  }

  axes.forEach((axis, i) => {
    if (!axis) return;
    axis.max = data.shape[i] - 1;
    axis.value = data.start[i];
  });
  find(".controls").addEventListener("input", show);
  show();
}

// A viewer starts when it first becomes visible, so those in closed sections cost nothing.
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    start(target);
  }
}, { rootMargin: "200%" });
document.querySelectorAll(".viewer").forEach((viewer) => seen.observe(viewer));

// A link to a restoration opens it; printing opens everything.
function reveal() {
  const part = document.getElementById(location.hash.slice(1));
  if (!part) return;
  part.querySelectorAll(":scope > details").forEach((details) => (details.open = true));
  part.scrollIntoView();
}
addEventListener("hashchange", reveal);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
reveal();
document.addEventListener("toggle", sharpen, true);
addEventListener("resize", sharpen);
addEventListener("load", sharpen);

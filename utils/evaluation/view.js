// What view.html does. The page loads the chosen scan's script, which calls showScan.
"use strict";

const { Niivue, NVImage, SLICE_TYPE } = niivue;
const SLICE_TYPES = {
  all: SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  volume: SLICE_TYPE.RENDER,
};
const GREY_IN_VOLUME = 0.25; // opacity of the image there, so that the organs shine through it

const byId = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
const scans = JSON.parse(byId("scans").textContent);
const hiddenOrgans = new Set(); // by name, so that they stay hidden from scan to scan
const panes = {}; // NiiVue by "prediction" or "label", made when first needed
let scan = null; // what showScan was given last
let loading = null; // the script of the chosen scan
let moving = false; // while panes are moved, they tell each other of it
let queue = Promise.resolve(); // scans are shown one after the other

function fail(text) {
  byId("fault").textContent = text;
  byId("fault").hidden = !text;
}

function choose() {
  const wanted = location.hash.slice(1);
  const index = Math.max(0, scans.findIndex((each) => each.hash === wanted));
  byId("scan").selectedIndex = index;
  document.body.dataset.ready = ""; // until the chosen scan is shown
  if (loading) loading.remove();
  loading = document.createElement("script");
  loading.src = scans[index].script;
  loading.onerror = () => fail(`${scans[index].script} can't be loaded. Is the folder "view" beside this page?`);
  document.head.append(loading);
  document.title = `View of ${scans[index].name}`;
}

// Called by the scan's script.
function showScan(data) {
  if (document.currentScript !== loading) return; // another one was chosen since
  queue = queue.then(() => show(data)).catch((error) => fail(`The scan can't be shown: ${error.message || error}`));
}

async function show(data) {
  document.body.dataset.ready = "";
  scan = data;
  byId("masks").hidden = data.label === null;
  const [low, high] = data.window;
  for (const [id, value] of [["black", low], ["white", high]]) Object.assign(byId(id), { min: low, max: high, value });
  data.shape.forEach((size, axis) => (byId(`slice${axis}`).max = size - 1));
  byId("reduction").textContent = reductionInWords(data);
  writeLook();
  listOrgans();
  arrange();
  for (const name of ["prediction", "label"]) {
    if (data[name] !== null) await fill(name);
    else if (panes[name]) panes[name].volumes.slice().forEach((volume) => panes[name].removeVolume(volume));
  }
  choosePlanes();
  moveTo(data.start);
  fail("");
  document.body.dataset.ready = "yes";
}

function reductionInWords({ shape, full_shape }) {
  const [small, full] = [shape.join(" × "), full_shape.join(" × ")];
  const means = "8 bits within the window of the report's pictures";
  if (small === full) return `Shown with all ${full} voxels; the image in ${means}.`;
  return (
    `Reduced from ${full} to ${small} voxels for the screen: of the voxels that one stands for, the image shows the ` +
    `mean, in ${means}, and the mask the middle one. The smallest structures may be lost.`
  );
}

async function fill(name) {
  const pane = panes[name] || (await makePane(name));
  const [low, high] = scan.window;
  const image = { base64: scan.image, name: "image.nii.gz", colormap: "gray", cal_min: low, cal_max: high };
  const mask = { base64: scan[name], name: "mask.nii.gz", opacity: opacity() };
  const volumes = [await NVImage.loadFromBase64(image), await NVImage.loadFromBase64(mask)];
  pane.volumes.slice().forEach((volume) => pane.removeVolume(volume));
  volumes[1].setColormapLabel(colours());
  volumes.forEach((volume) => pane.addVolume(volume));
  pane.updateGLVolume();
}

async function makePane(name) {
  const pane = new Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [1, 1, 1, 0.6],
    crosshairWidth: 0.5,
    dragAndDropEnabled: false,
    isRadiologicalConvention: true,
    loadingText: "",
    logLevel: "error",
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    sagittalNoseLeft: true,
  });
  await pane.attachToCanvas(byId(name).querySelector("canvas"), false);
  if (!pane.gl) throw new Error("this browser has no WebGL 2");
  pane.onLocationChange = () => moving || moveTo(slicesOf(pane), pane);
  panes[name] = pane;
  // turning the volume, and zooming
  const all = Object.values(panes);
  all.forEach((each) => each.broadcastTo(all.filter((other) => other !== each), { "2d": true, "3d": true }));
  return pane;
}

const filled = () => Object.values(panes).filter((pane) => pane.volumes.length > 1);
const slicesOf = (pane) => Array.from(pane.frac2vox(pane.scene.crosshairPos));
const opacity = () => byId("opacity").value / 100;

// Moves all panes and sliders to a voxel, but not the pane that is there already.
function moveTo(voxel, from = null) {
  moving = true;
  for (const pane of filled()) {
    if (pane === from) continue;
    pane.scene.crosshairPos = pane.vox2frac(voxel);
    pane.drawScene();
  }
  moving = false;
  voxel.forEach((slice, axis) => {
    const slider = byId(`slice${axis}`);
    slider.value = slice;
    slider.nextElementSibling.textContent = `${slice + 1} / ${scan.shape[axis]}`;
  });
  byId("place").textContent = placeInWords(voxel);
}

function placeInWords(voxel) {
  const words = [];
  for (const name of ["prediction", "label"]) {
    if (scan[name] === null || !panes[name] || panes[name].volumes.length < 2) continue;
    const [image, mask] = panes[name].volumes;
    if (!words.length) words.push(`intensity ${rounded(image.getValue(...voxel))}`);
    const value = mask.getValue(...voxel);
    words.push(`${name}: ${value ? scan.organs[value - 1].name : "none"}`);
  }
  return words.join(", ");
}

function rounded(value) {
  const [low, high] = scan.window;
  return value.toFixed(high - low < 20 ? 2 : 0).replace("-", "−");
}

function colours() {
  const rgb = scan.organs.map(({ colour }) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  const [R, G, B] = [0, 1, 2].map((channel) => [0, ...rgb.map((colour) => colour[channel])]);
  const A = [0, ...scan.organs.map(({ name }) => (hiddenOrgans.has(name) ? 0 : 255))];
  return { R, G, B, A };
}

function listOrgans() {
  byId("organs").replaceChildren(
    ...scan.organs.map(({ name, colour }) => {
      const [line, box, patch, text] = ["label", "input", "span", "span"].map((tag) => document.createElement(tag));
      box.type = "checkbox";
      box.checked = !hiddenOrgans.has(name);
      box.onchange = () => {
        if (box.checked) hiddenOrgans.delete(name);
        else hiddenOrgans.add(name);
        colourOrgans();
      };
      patch.className = "colour";
      patch.style.background = colour;
      text.textContent = name;
      line.append(box, patch, text);
      return line;
    }),
  );
}

function colourOrgans() {
  for (const pane of filled()) {
    pane.volumes[1].setColormapLabel(colours());
    pane.updateGLVolume();
  }
}

function showOrgans(all) {
  for (const { name } of scan.organs) {
    if (all) hiddenOrgans.delete(name);
    else hiddenOrgans.add(name);
  }
  listOrgans();
  colourOrgans();
}

// Shows the panes of the chosen masks.
function arrange() {
  const mask = scan.label === null ? "prediction" : chosen("mask");
  for (const name of ["prediction", "label"]) byId(name).hidden = mask !== name && mask !== "both";
}

function choosePlanes() {
  const planes = chosen("planes");
  for (const pane of filled()) {
    pane.setOpacity(0, planes === "volume" ? GREY_IN_VOLUME : 1);
    pane.setSliceType(SLICE_TYPES[planes]);
  }
}

function changeLook(slider) {
  const [black, white] = [byId("black"), byId("white")];
  if (+black.value > +white.value) (slider === black ? white : black).value = slider.value;
  writeLook();
  for (const pane of filled()) {
    const [image, mask] = pane.volumes;
    image.cal_min = +black.value;
    image.cal_max = +white.value;
    mask.opacity = opacity();
    pane.updateGLVolume();
  }
}

function writeLook() {
  byId("opacity").nextElementSibling.textContent = `${byId("opacity").value} %`;
  for (const id of ["black", "white"]) byId(id).nextElementSibling.textContent = rounded(+byId(id).value);
}

scans.forEach(({ name }) => byId("scan").add(new Option(name)));
byId("scan").onchange = () => (location.hash = scans[byId("scan").selectedIndex].hash);
window.onhashchange = choose;
document.querySelector("form").onsubmit = (event) => event.preventDefault();
for (const radio of document.querySelectorAll('input[name="planes"]')) radio.onchange = choosePlanes;
for (const radio of document.querySelectorAll('input[name="mask"]')) radio.onchange = arrange;
for (const axis of [0, 1, 2]) byId(`slice${axis}`).oninput = () => moveTo([0, 1, 2].map((each) => +byId(`slice${each}`).value));
for (const id of ["opacity", "black", "white"]) byId(id).oninput = () => changeLook(byId(id));
byId("all").onclick = () => showOrgans(true);
byId("none").onclick = () => showOrgans(false);
choose();

"use strict";
// The page's own program. Millimetres are of the display (see thinslice.page.to_display) unless a name says patient.
(() => {
  const AXIAL = 0, CORONAL = 1, SAGITTAL = 2; // niivue's numbers of the planes
  const ACROSS = [[0, 1, 2], [0, 2, 1], [1, 2, 0]]; // of a plane: the axes to the right, up, and across it
  const BARS_MM = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]; // of which the scale bar is the longest that
  const BAR_SHARE = 0.3; // takes no more than this share of a plane's width
  const PLANES = ["sagittal", "coronal", "axial"]; // across the left-right, back-front and foot-head axis
  const LETTERS = [["L", "R"], ["P", "A"], ["I", "S"]]; // at the low and the high end of an axis
  const FLICKER_MS = 700, MOST_ZOOM = 16;
  const COLOURS = [
    [[70, 10, 60], [190, 40, 70], [250, 120, 40], [255, 215, 60], [255, 255, 200]],
    [[10, 40, 90], [10, 110, 150], [40, 180, 150], [150, 230, 110], [240, 255, 180]],
  ]; // from low to high, as many as maps can be told apart
  const CLEAR_BELOW = 51; // of 255: not drawn, so that what is below stays to be seen

  const byId = (id) => document.getElementById(id);
  const page = JSON.parse(byId("page-data").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const last = page.layers.length - 1;
  const state = { mm: [0, 0, 0], axis: page.through, zoom: 1, pan: [0, 0, 0], window: [...page.window] };
  const choice = { shown: last, other: 0, fade: 0, timer: 0 };
  const panes = { left: [], right: [] }; // sheets, each with one niivue
  let overlays = [];

  const apply = (matrix, p) => [0, 1, 2].map((r) => matrix[r][0] * p[0] + matrix[r][1] * p[1] + matrix[r][2] * p[2] + matrix[r][3]);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const patientMm = () => apply(page.patient, state.mm);

  // ---- voxels

  async function unpacked(index) {
    const element = document.getElementsByClassName("voxels")[index];
    const text = atob(element.textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    element.textContent = "";
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  function intoDisplay(buffer) { // the file's affine becomes one into the display's millimetres
    const view = new DataView(buffer);
    const columns = [0, 1, 2, 3].map((c) => [0, 1, 2].map((r) => view.getFloat32(280 + 16 * r + 4 * c, true)));
    columns.forEach((column, c) => {
      const moved = page.display.map((row) => row[0] * column[0] + row[1] * column[1] + row[2] * column[2] + (c === 3 ? row[3] : 0));
      for (let r = 0; r < 3; r++) view.setFloat32(280 + 16 * r + 4 * c, moved[r], true);
    });
    return buffer;
  }

  function lookUp(buffer, voxel) { // patient millimetres -> value of the nearest voxel, null beyond the scan
    const view = new DataView(buffer);
    const size = [42, 44, 46].map((at) => view.getInt16(at, true));
    const kinds = { 2: Uint8Array, 4: Int16Array, 512: Uint16Array };
    const stored = new kinds[view.getInt16(70, true)](buffer, 352);
    const slope = view.getFloat32(112, true), inter = view.getFloat32(116, true);
    return (mm) => {
      const at = apply(voxel, mm).map((index) => Math.round(index));
      if (at.some((index, axis) => index < 0 || index >= size[axis])) return null;
      return stored[at[0] + size[0] * (at[1] + size[1] * at[2])] * slope + inter;
    };
  }

  // ---- drawing

  function sheetIn(stage) {
    const sheet = document.createElement("div");
    sheet.className = "sheet";
    sheet.append(document.createElement("canvas"));
    sheet.firstChild.tabIndex = -1;
    stage.append(sheet);
    return sheet;
  }

  async function sheetWith(stage, buffer, name, staircase, look) {
    const sheet = sheetIn(stage);
    const nv = new niivue.Niivue({
      interactive: false, dragAndDropEnabled: false, logLevel: "error", isOrientationTextVisible: false, isSliceMM: true,
      isRadiologicalConvention: true, sagittalNoseLeft: true, multiplanarShowRender: 0, multiplanarPadPixels: 4,
      crosshairWidth: 0, isNearestInterpolation: staircase, backColor: [0, 0, 0, look.clear ? 0 : 1],
      isAlphaClipDark: Boolean(look.clear), loadingText: "",
    });
    await nv.attachToCanvas(sheet.firstChild, false);
    sheet.style.backgroundColor = "transparent";
    if (look.colours) nv.addColormap(look.colormap, look.colours);
    const image = await niivue.NVImage.loadFromUrl({
      url: buffer, name: `${name}.nii`, colormap: look.colormap, cal_min: look.window[0], cal_max: look.window[1],
    });
    inOneFrame(nv);
    nv.addVolume(image);
    return { sheet, nv };
  }

  // Every sheet shows the same box of space at the same scale, whatever its scan covers; a plane that lies beyond its
  // scan stays empty.
  function inOneFrame(nv) {
    const swizzled = (plane, sign) => ACROSS[plane].map((axis) => sign * page.half_mm[axis]);
    const whole = (plane) => swizzled(plane, 2);
    nv.screenFieldOfViewMM = (plane = AXIAL) => whole(plane);
    nv.screenFieldOfViewExtendedMM = (plane = AXIAL) => ({
      mnMM: swizzled(plane, -1), mxMM: swizzled(plane, 1), rotation: new Float32Array(16), fovMM: whole(plane),
    });
    const draw = nv.draw2DMain.bind(nv);
    nv.draw2DMain = (place, plane, custom) => {
      const at = nv.scene.crosshairPos[ACROSS[plane][2]];
      if (at > -1e-4 && at < 1 + 1e-4) return draw(place, plane, custom);
      nv.screenSlices.push({ leftTopWidthHeight: place, axCorSag: plane, beyond: true });
    };
  }

  let asked = true; // until everything is loaded
  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; drawAll(); });
  }

  function drawSheet({ nv }) {
    nv.scene.crosshairPos = nv.mm2frac(state.mm);
    nv.scene.pan2Dxyzmm = [...state.pan, state.zoom];
    nv.drawScene();
  }

  function drawAll() {
    arrange();
    for (const one of [...panes.left, ...panes.right, ...overlays.map((o) => o.made)]) {
      if (one && one.sheet.style.visibility !== "hidden") drawSheet(one);
    }
    for (const side of ["left", "right"]) drawGlass(byId(side), tilesOf(panes[side]));
    tell();
  }

  function arrange() { // which sheets of the right are seen, and how much of each
    panes.right.forEach(({ sheet }, index) => {
      const top = index === choice.other && choice.fade > 0, seen = index === choice.shown || top;
      sheet.style.visibility = seen ? "visible" : "hidden";
      sheet.style.zIndex = top ? 2 : 1;
      sheet.style.opacity = top && index !== choice.shown ? choice.fade / 100 : 1;
    });
    for (const one of overlays) {
      if (!one.made) continue;
      one.made.sheet.style.visibility = one.toggle.checked ? "visible" : "hidden";
      one.made.sheet.style.zIndex = 3;
      one.made.sheet.style.opacity = one.opacity.value / 100;
    }
  }

  // Where the planes are on a stage, in its pixels: left, top, width, height, and the plane.
  function tilesOf(sheets) {
    const one = sheets.find(({ sheet }) => sheet.style.visibility !== "hidden");
    if (!one) return [];
    const dpr = one.nv.uiData.dpr || 1, height = one.nv.canvas.height;
    return one.nv.screenSlices.map(({ axCorSag, leftTopWidthHeight: [x, y, w, h] }) => {
      const bottom = Math.trunc(height - y - h); // WebGL draws into whole pixels, counted from below
      const box = [Math.trunc(x), height - bottom - Math.trunc(h), Math.trunc(w), Math.trunc(h)];
      return { plane: axCorSag, box: box.map((pixels) => pixels / dpr) };
    });
  }

  function spanOf(plane) { // of a plane: millimetres at its left, right, bottom and top edge
    const [right, up] = ACROSS[plane];
    const [left, end] = [-1, 1].map((side) => (-side * page.half_mm[right] - state.pan[right]) / state.zoom);
    const [low, high] = [-1, 1].map((side) => (side * page.half_mm[up] - state.pan[up]) / state.zoom);
    return [left, end, low, high];
  }

  function toPixels(tile, mm) {
    const [right, up] = ACROSS[tile.plane], [left, end, low, high] = spanOf(tile.plane), [x, y, w, h] = tile.box;
    return [x + (w * (mm[right] - left)) / (end - left), y + h - (h * (mm[up] - low)) / (high - low)];
  }

  function toMm(tile, px, py) {
    const [right, up] = ACROSS[tile.plane], [left, end, low, high] = spanOf(tile.plane), [x, y, w, h] = tile.box;
    const mm = [...state.mm];
    mm[right] = left + ((end - left) * (px - x)) / w;
    mm[up] = low + ((high - low) * (y + h - py)) / h;
    return mm;
  }

  function drawGlass(stage, tiles) {
    const glass = stage.querySelector(".glass"), dpr = devicePixelRatio || 1;
    glass.width = Math.round(stage.clientWidth * dpr);
    glass.height = Math.round(stage.clientHeight * dpr);
    const pen = glass.getContext("2d");
    pen.scale(dpr, dpr);
    for (const tile of tiles) drawTile(pen, tile);
  }

  function drawTile(pen, tile) {
    const [x, y, w, h] = tile.box, [px, py] = toPixels(tile, state.mm), gap = 9;
    const [right, up, across] = ACROSS[tile.plane];
    pen.save();
    pen.beginPath();
    pen.rect(x, y, w, h);
    pen.clip();
    pen.strokeStyle = "rgba(255, 209, 102, 0.75)";
    pen.beginPath();
    for (const [a, b, c, d] of [[x, py, px - gap, py], [px + gap, py, x + w, py], [px, y, px, py - gap], [px, py + gap, px, y + h]]) {
      pen.moveTo(a, b);
      pen.lineTo(c, d);
    }
    pen.stroke();
    pen.restore();
    pen.strokeStyle = across === state.axis ? "rgba(255, 209, 102, 0.6)" : "rgba(255, 255, 255, 0.14)";
    pen.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
    pen.font = "12px sans-serif";
    pen.fillStyle = "#c8c8c8";
    pen.shadowColor = "#000";
    pen.shadowBlur = 3;
    const write = (text, at, top, align) => { pen.textAlign = align; pen.fillText(text, at, top); };
    write(LETTERS[right][1], x + 5, y + h / 2 + 4, "left"); // the high end is on the left: right of the patient, front
    write(LETTERS[right][0], x + w - 5, y + h / 2 + 4, "right");
    write(LETTERS[up][1], x + w / 2, y + 14, "center");
    write(LETTERS[up][0], x + w / 2, y + h - 5, "center");
    const [low, high] = spanOf(tile.plane), pixelsPerMm = w / Math.abs(high - low);
    const mm = BARS_MM.findLast((length) => length * pixelsPerMm <= BAR_SHARE * w);
    if (!mm) return;
    write(`${mm} mm`, x + 6, y + h - 11, "left");
    pen.fillRect(x + 6, y + h - 7, mm * pixelsPerMm, 2);
  }

  // ---- what is told

  const decimals = clamp(2 - Math.floor(Math.log10(page.window[1] - page.window[0])), 0, 8);
  const number = (value) => (value === null ? "beyond it" : value.toFixed(decimals).replace("-", "\u2212"));
  const mmText = (value) => value.toFixed(1).replace("-", "\u2212");

  function tell() {
    const at = patientMm(), shown = page.layers[choice.shown], other = page.layers[choice.other];
    const side = (value, high, low) => `${mmText(Math.abs(value))} mm ${value >= 0 ? high : low}`;
    byId("place").textContent = `${side(at[0], "right", "left")}, ${side(at[1], "front", "back")}, ${side(at[2], "up", "down")}`;
    const values = [page.layers[0], ...(shown === page.layers[0] ? [] : [shown])].map((one) => `${one.name}: ${number(one.value(at))}`);
    for (const one of overlays) {
      if (one.toggle.checked && one.made) values.push(`${one.about.name}: ${legendNumber(one.about.value(at))} ${one.about.unit}`.trim());
    }
    byId("values").textContent = values.join(" \u00b7 ");
    const faded = choice.fade > 0 && other !== shown ? `, faded ${choice.fade} % to ${other.name}` : "";
    byId("right-name").textContent = `${shown.name}${faded}`;
    byId("fade-to").textContent = other === shown ? "" : `to ${other.name}`;
    [...byId("choices").children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === choice.shown)));
    byId("flicker").setAttribute("aria-pressed", String(choice.timer !== 0));
    byId("fade").value = choice.fade;
    byId("plane").value = state.axis;
    const slider = byId("slice"), half = page.half_mm[state.axis];
    Object.assign(slider, { min: -half, max: half, step: page.step_mm[state.axis] / 4 });
    slider.value = state.mm[state.axis];
    byId("slice-at").textContent = `${mmText(at[state.axis])} mm`;
    slider.setAttribute("aria-valuetext", `${PLANES[state.axis]} slice at ${mmText(at[state.axis])} millimetres`);
    ["black", "white"].forEach((id, end) => {
      byId(id).value = state.window[end];
      byId(`${id}-at`).textContent = number(state.window[end]);
    });
  }

  // ---- what can be done

  function moveTo(mm) {
    state.mm = mm.map((value, axis) => clamp(value, -page.half_mm[axis], page.half_mm[axis]));
    redraw();
  }

  function moveBy(axis, voxels) {
    const mm = [...state.mm];
    mm[axis] += voxels * page.step_mm[axis];
    moveTo(mm);
  }

  function show(index) {
    if (index < 0 || index > last) return;
    if (index !== choice.shown) choice.other = choice.shown;
    choice.shown = index;
    choice.fade = 0;
    redraw();
  }

  function swap() {
    if (choice.other === choice.shown) choice.other = choice.shown === 0 ? last : 0;
    show(choice.other);
  }

  function flicker() {
    if (choice.timer) {
      clearInterval(choice.timer);
      choice.timer = 0;
    } else {
      swap();
      if (!still.matches) choice.timer = setInterval(swap, FLICKER_MS);
    }
    redraw();
  }

  function zoomBy(factor) { // the crosshair stays where it is on the screen
    const zoom = clamp(state.zoom * factor, 1, MOST_ZOOM);
    state.pan = zoom === 1 ? [0, 0, 0] : state.pan.map((pan, axis) => pan + state.mm[axis] * (state.zoom - zoom));
    state.zoom = zoom;
    redraw();
  }

  function inWindowOf(layer, value) { // a scan on another scale has a window of its own, moved as far
    const [low, high] = page.window, [from, to] = layer.window;
    return from + ((value - low) / (high - low)) * (to - from);
  }

  let windowAsked = false;
  function setWindow(end, value) {
    const room = (page.range[1] - page.range[0]) / 1000;
    state.window[end] = end === 0 ? Math.min(value, state.window[1] - room) : Math.max(value, state.window[0] + room);
    if (windowAsked) return;
    windowAsked = true;
    requestAnimationFrame(() => {
      windowAsked = false;
      for (const { nv, layer } of [...panes.left, ...panes.right]) {
        [nv.volumes[0].cal_min, nv.volumes[0].cal_max] = state.window.map((value) => inWindowOf(layer, value));
        nv.updateGLVolume();
      }
      redraw();
    });
  }

  function reset() {
    page.window.forEach((value, end) => { if (state.window[end] !== value) setWindow(end, value); });
    Object.assign(state, { zoom: 1, pan: [0, 0, 0], window: [...page.window], axis: page.through });
    moveTo(apply(page.display, page.start_mm));
  }

  function goToWorst(one) {
    if (!one || !one.about.worst_mm) return;
    if (!one.toggle.checked) { one.toggle.checked = true; toggleOverlay(one); }
    moveTo(apply(page.display, one.about.worst_mm));
  }

  // ---- mouse, fingers, keys

  function tileAt(stage, side, event) {
    const box = stage.getBoundingClientRect();
    const px = event.clientX - box.left - stage.clientLeft, py = event.clientY - box.top - stage.clientTop;
    const tile = tilesOf(panes[side]).find(({ box: [x, y, w, h] }) => px >= x && px <= x + w && py >= y && py <= y + h);
    return { tile, px, py };
  }

  function listenToStage(side) {
    const stage = byId(side);
    let held = null, fingers = new Map(), apart = 0;
    stage.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, event);
      const { tile, px, py } = tileAt(stage, side, event);
      if (!tile) return;
      stage.setPointerCapture(event.pointerId);
      state.axis = ACROSS[tile.plane][2];
      held = { tile, px, py, pans: event.button === 2 || event.shiftKey, pan: [...state.pan] };
      if (!held.pans) moveTo(toMm(tile, px, py));
    });
    stage.addEventListener("pointermove", (event) => {
      if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event);
      if (fingers.size === 2) {
        const [one, other] = fingers.values(), now = Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
        if (apart) zoomBy(now / apart);
        apart = now;
      } else if (held) {
        drag(held, tileAt(stage, side, event));
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, (event) => { fingers.delete(event.pointerId); held = null; apart = 0; });
    }
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("wheel", (event) => {
      const { tile } = tileAt(stage, side, event);
      if (!tile) return;
      event.preventDefault();
      if (event.ctrlKey) return zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15);
      state.axis = ACROSS[tile.plane][2];
      moveBy(state.axis, event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
  }

  function drag(held, { px, py }) {
    if (!held.pans) return moveTo(toMm(held.tile, px, py));
    const [right, up] = ACROSS[held.tile.plane], [, , w, h] = held.tile.box;
    state.pan = [...held.pan];
    state.pan[right] = held.pan[right] - (2 * page.half_mm[right] * (px - held.px)) / w;
    state.pan[up] = held.pan[up] - (2 * page.half_mm[up] * (py - held.py)) / h;
    redraw();
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const inField = event.target.matches("input[type=range], select");
    const [right, up] = ACROSS[2 - state.axis];
    const moves = {
      ArrowLeft: [right, 1], ArrowRight: [right, -1], ArrowUp: [up, 1], ArrowDown: [up, -1],
      PageUp: [state.axis, 1], PageDown: [state.axis, -1],
    };
    const acts = {
      f: flicker, r: reset, o: () => press(overlays[0]), w: () => goToWorst(overlays[0]),
      e: () => press(overlays[1]), x: () => goToWorst(overlays[1]),
      "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(1 / 1.25),
    };
    if (moves[event.key] && !inField && event.target.closest(".stage")) moveBy(...moves[event.key]);
    else if (/^[1-9]$/.test(event.key) && !event.target.matches("select")) show(Number(event.key) - 1);
    else if (acts[event.key] && !event.target.matches("select")) acts[event.key]();
    else return;
    event.preventDefault();
  }

  // ---- maps

  function legendNumber(value) {
    return value === null ? "beyond it" : Number(value.toPrecision(2)).toString().replace("-", "\u2212");
  }

  function coloursOf(index) {
    const stops = COLOURS[index % COLOURS.length];
    const at = stops.map((_, i) => Math.round(CLEAR_BELOW + ((255 - CLEAR_BELOW) * i) / (stops.length - 1)));
    const I = [0, CLEAR_BELOW - 1, ...at], points = [stops[0], stops[0], ...stops];
    return { R: points.map((c) => c[0]), G: points.map((c) => c[1]), B: points.map((c) => c[2]), A: [0, 0, ...stops.map(() => 255)], I };
  }

  function drawLegend(canvas, index) {
    const stops = COLOURS[index % COLOURS.length], pen = canvas.getContext("2d");
    Object.assign(canvas, { width: 256, height: 1 });
    const ramp = pen.createLinearGradient(CLEAR_BELOW, 0, 256, 0);
    stops.forEach(([r, g, b], i) => ramp.addColorStop(i / (stops.length - 1), `rgb(${r}, ${g}, ${b})`));
    pen.fillStyle = ramp;
    pen.fillRect(CLEAR_BELOW, 0, 256 - CLEAR_BELOW, 1);
  }

  const made = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  function overlayRow(about, index) {
    const toggle = made("input", { type: "checkbox" });
    const opacity = made("input", { type: "range", min: 0, max: 100, value: 60 });
    const legend = made("canvas", { role: "img", ariaLabel: `colours from 0 to ${about.top} ${about.unit}` });
    const one = { about, index, toggle, opacity, made: null };
    const row = made("div", { className: "overlay" },
      made("label", {}, toggle, about.name, ...("oe"[index] ? [made("kbd", { textContent: "oe"[index] })] : [])),
      made("label", { className: "slide" }, "Opacity", opacity),
      made("span", { className: "legend" }, "0", legend, `${legendNumber(about.top)} ${about.unit}`.trim()),
      made("span", { className: "hint" }, "the dark start of the bar is clear: there the scan shows through"));
    if (about.worst_mm) row.append(worstButton(one));
    row.append(made("p", { textContent: about.words }));
    drawLegend(legend, index);
    toggle.addEventListener("change", () => toggleOverlay(one));
    opacity.addEventListener("input", redraw);
    byId("overlays").append(row);
    return one;
  }

  function worstButton(one) {
    const button = made("button", { type: "button" }, "Go to the worst place");
    button.addEventListener("click", () => goToWorst(one));
    return button;
  }

  function press(one) {
    if (!one) return;
    one.toggle.checked = !one.toggle.checked;
    toggleOverlay(one);
  }

  async function toggleOverlay(one) {
    if (one.toggle.checked && !one.asked) {
      one.asked = true; // made when it is first wanted
      const buffer = await unpacked(page.layers.length + one.index), name = `map${one.index}`;
      one.about.value = lookUp(buffer, one.about.voxel);
      const look = { clear: true, colormap: name, colours: coloursOf(one.index), window: [0, one.about.top || 1] };
      one.made = await sheetWith(byId("right"), intoDisplay(buffer), name, false, look);
    }
    redraw();
  }

  // ---- beginning

  function prepareControls() {
    byId("left-name").textContent = page.layers[0].name;
    page.layers.forEach(({ name }, index) => {
      const button = made("button", { type: "button" }, `${name} `, made("kbd", { textContent: index + 1 }));
      button.setAttribute("aria-keyshortcuts", String(index + 1));
      button.addEventListener("click", () => show(index));
      byId("choices").append(button);
    });
    overlays = page.overlays.map(overlayRow);
    for (const element of document.getElementsByClassName("of-maps")) element.hidden = overlays.length === 0;
    for (const id of ["black", "white"]) {
      Object.assign(byId(id), { min: page.range[0], max: page.range[1], step: (page.range[1] - page.range[0]) / 1000 });
    }
    byId("black").addEventListener("input", (event) => setWindow(0, Number(event.target.value)));
    byId("white").addEventListener("input", (event) => setWindow(1, Number(event.target.value)));
    byId("fade").addEventListener("input", (event) => { choice.fade = Number(event.target.value); redraw(); });
    byId("plane").addEventListener("change", (event) => { state.axis = Number(event.target.value); redraw(); });
    byId("slice").addEventListener("input", (event) => {
      moveTo(state.mm.map((mm, axis) => (axis === state.axis ? Number(event.target.value) : mm)));
    });
    byId("flicker").addEventListener("click", flicker);
    byId("closer").addEventListener("click", () => zoomBy(1.25));
    byId("farther").addEventListener("click", () => zoomBy(1 / 1.25));
    byId("reset").addEventListener("click", reset);
    document.addEventListener("keydown", onKey);
    ["left", "right"].forEach(listenToStage);
    still.addEventListener("change", () => { if (still.matches && choice.timer) flicker(); });
  }

  async function loadLayers() {
    for (const [index, layer] of page.layers.entries()) {
      const look = { colormap: "gray", window: layer.window };
      const buffer = await unpacked(index);
      layer.value = lookUp(buffer, layer.voxel);
      intoDisplay(buffer);
      const sides = index === 0 ? ["left", "right"] : ["right"];
      for (const side of sides) {
        const sheet = await sheetWith(byId(side), buffer, `${side}${index}`, layer.staircase, look);
        panes[side].push(Object.assign(sheet, { layer }));
      }
    }
  }

  async function begin() {
    byId("viewer").hidden = false;
    prepareControls();
    for (const side of ["left", "right"]) {
      byId(side).append(made("canvas", { className: "glass" }));
      new ResizeObserver(redraw).observe(byId(side));
    }
    await loadLayers();
    asked = false;
    reset();
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    byId("waiting").hidden = true;
    document.documentElement.dataset.ready = "yes";
  }

  // For whoever tests or scripts the page.
  window.thinslice = {
    page, state, choice, moveTo, show, patientMm,
    moveToPatient: (mm) => moveTo(apply(page.display, mm)),
    values: () => page.layers.map((layer) => layer.value(patientMm())),
    places: (side) => tilesOf(panes[side]).map((tile) => ({ plane: PLANES[2 - tile.plane], box: tile.box, at: toPixels(tile, state.mm) })),
    drawnMm: (side) => panes[side].filter(({ sheet }) => sheet.style.visibility !== "hidden").map(({ nv }) => [...nv.frac2mm(nv.scene.crosshairPos)].slice(0, 3)),
  };

  begin().catch((error) => {
    byId("viewer").hidden = byId("waiting").hidden = true;
    byId("trouble").hidden = false;
    byId("trouble").textContent = `The scans cannot be drawn here: ${error.message}. Need a browser with WebGL 2; next: open the page in another one, or on another machine.`;
    document.documentElement.dataset.ready = "no";
  });
})();


"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const trials = data.trials;
  const SOON_MS = 250; // a choice this soon after a pair appeared was a double click, not a judgement
  const TURN_MS = 800; // between the two pictures in one place: slow enough to be no flashing
  const ZOOMS = [1, 1.5, 2, 3, 4, 6];
  const CHOICES = { left: "the left one is better", right: "the right one is better", none: "no difference" };

  const the = (id) => document.getElementById(id);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let reader = "";
  let answers = {}; // trial id -> {choice, ms}
  let at = 0;
  let since = 0; // when the pair appeared; 0 while it has not
  let zoom = 0;
  let shift = { x: 0, y: 0 };
  let turning = null;

  // ---- what is kept in this browser, where it lets a file keep anything

  const shelf = (name) => `thinslice-study-${data.study}-${name}`;
  const fetched = (name) => { try { return localStorage.getItem(shelf(name)); } catch { return null; } };
  const kept = (name, text) => { try { localStorage.setItem(shelf(name), text); return true; } catch { return false; } };

  function remember() {
    const safe = kept(`reader ${reader}`, JSON.stringify(answers)) && kept("last", reader);
    window.onbeforeunload = safe ? null : (event) => event.preventDefault();
  }

  function recalled(name) {
    let found;
    try { found = JSON.parse(fetched(`reader ${name}`)) || {}; } catch { found = {}; }
    const own = trials.filter((trial) => found[trial.id] && CHOICES[found[trial.id].choice]);
    return Object.fromEntries(own.map((trial) => [trial.id, found[trial.id]]));
  }

  // ---- results

  function crc32(text) {
    let sum = ~0;
    for (const byte of new TextEncoder().encode(text)) {
      sum ^= byte;
      for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
    }
    return (~sum >>> 0).toString(16).padStart(8, "0");
  }

  function results() {
    const given = trials.filter((trial) => answers[trial.id]).map((trial) => ({ trial: trial.id, ...answers[trial.id] }));
    const lines = [data.study, reader, ...given.map((one) => `${one.trial} ${one.choice} ${one.ms}`)];
    const facts = { format: data.format, study: data.study, reader, saved: new Date().toISOString(), of: trials.length };
    return JSON.stringify({ ...facts, answers: given, check: crc32(lines.join("\n")) }, null, 1) + "\n";
  }

  function save() {
    const name = reader.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "") || "reader";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([results()], { type: "application/json" }));
    link.download = `study-${data.study}-${name}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say(the("saved").textContent = `Saved as ${link.download}`);
    window.onbeforeunload = null;
  }

  // ---- what is shown

  function say(text) { the("said").textContent = text; }

  function show(room) {
    for (const main of document.querySelectorAll("main")) main.hidden = main.id !== room;
  }

  const source = (name) => `data:image/png;base64,${data.pictures[name]}`;

  async function go(to) {
    at = to;
    if (at >= trials.length) return finish();
    const trial = trials[at], stage = the("stage"), images = [the("left-picture"), the("right-picture")];
    since = 0;
    show("compare");
    stage.classList.add("waiting"); // both appear at once
    zoom = 0;
    shift = { x: 0, y: 0 };
    inOnePlace(false);
    images[0].src = source(trial.left);
    images[1].src = source(trial.right);
    describe();
    await Promise.all(images.map((image) => image.decode().catch(() => null)));
    if (trials[at] !== trial) return;
    stage.classList.remove("waiting");
    since = performance.now();
    the("heading").focus({ preventScroll: true });
    for (const name of trials[at + 1] ? [trials[at + 1].left, trials[at + 1].right] : []) new Image().src = source(name);
  }

  function describe() {
    const answer = answers[trials[at].id], done = Object.keys(answers).length;
    the("place").textContent = `Pair ${at + 1} of ${trials.length}`;
    the("progress").max = trials.length;
    the("progress").value = done;
    the("back").disabled = at === 0;
    the("forward").disabled = !answer;
    for (const choice of Object.keys(CHOICES)) {
      the(`choose-${choice}`).setAttribute("aria-pressed", String(Boolean(answer) && answer.choice === choice));
    }
    say(`Pair ${at + 1} of ${trials.length}.${answer ? ` You said: ${CHOICES[answer.choice]}.` : ""}`);
  }

  function finish() {
    inOnePlace(false);
    since = 0;
    show("end");
    the("summary").textContent = `${reader}: ${Object.keys(answers).length} of ${trials.length} pairs compared.`;
    the("saved").textContent = "";
    the("text").value = results();
    the("thanks").focus();
    say("All pairs compared. Save the results.");
  }

  function choose(choice) {
    if (!since || performance.now() - since < SOON_MS) return;
    const trial = trials[at], before = answers[trial.id];
    answers[trial.id] = { choice, ms: Math.round(performance.now() - since) + (before ? before.ms : 0) };
    remember();
    go(at + 1);
  }

  // ---- zoom, and both in one place

  function drawZoom() {
    const scale = ZOOMS[zoom], frame = document.querySelector("figure:not(.behind) .frame").getBoundingClientRect();
    const most = (side) => (side * (scale - 1)) / 2;
    shift.x = Math.max(-most(frame.width), Math.min(most(frame.width), shift.x));
    shift.y = Math.max(-most(frame.height), Math.min(most(frame.height), shift.y));
    for (const image of document.querySelectorAll(".frame img")) {
      image.style.transform = `translate(${shift.x}px, ${shift.y}px) scale(${scale})`;
    }
    the("zoom").textContent = `${scale}\u00d7`;
    the("zoom-in").disabled = zoom === ZOOMS.length - 1;
    the("zoom-out").disabled = zoom === 0;
  }

  function zoomTo(step) {
    const next = Math.max(0, Math.min(ZOOMS.length - 1, step)), ratio = ZOOMS[next] / ZOOMS[zoom];
    zoom = next;
    shift = { x: shift.x * ratio, y: shift.y * ratio };
    drawZoom();
  }

  function inOnePlace(wanted) {
    clearInterval(turning);
    the("stage").classList.toggle("one", wanted);
    the("flicker").setAttribute("aria-pressed", String(wanted));
    the("other").hidden = !wanted;
    the("left").classList.remove("behind");
    the("right").classList.toggle("behind", wanted);
    if (wanted && !still.matches) turning = setInterval(turn, TURN_MS);
    drawZoom();
  }

  function turn() {
    for (const side of ["left", "right"]) the(side).classList.toggle("behind");
  }

  function showOther() {
    if (the("other").hidden) return;
    clearInterval(turning); // who turns by hand wants no clock
    turn();
    say(the("left").classList.contains("behind") ? "Right picture" : "Left picture");
  }

  const toggle = () => inOnePlace(!the("stage").classList.contains("one"));
  const back = () => { if (at > 0) go(at - 1); };

  // ---- mouse, touch and keys

  function onClick(id, act) {
    the(id).addEventListener("click", (event) => {
      if (event.detail) event.currentTarget.blur(); // after a mouse or a finger the keys mean the pictures again
      act();
    });
  }

  for (const choice of Object.keys(CHOICES)) onClick(`choose-${choice}`, () => choose(choice));
  onClick("back", back);
  onClick("forward", () => go(at + 1));
  onClick("review", () => go(trials.length - 1));
  onClick("flicker", toggle);
  onClick("other", showOther);
  onClick("zoom-in", () => zoomTo(zoom + 1));
  onClick("zoom-out", () => zoomTo(zoom - 1));
  for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);

  const KEYS = {
    ArrowLeft: () => choose("left"), ArrowRight: () => choose("right"), ArrowDown: () => choose("none"),
    " ": () => choose("none"), ArrowUp: back, b: back, f: toggle, x: showOther,
    "+": () => zoomTo(zoom + 1), "=": () => zoomTo(zoom + 1), "-": () => zoomTo(zoom - 1), 0: () => zoomTo(0),
  };

  document.addEventListener("keydown", (event) => {
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const own = event.key === " " && event.target.closest("button, summary"); // the space bar presses what has focus
    if (the("compare").hidden || !act || own || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });

  for (const frame of document.querySelectorAll(".frame")) {
    let from = null;
    frame.addEventListener("pointerdown", (event) => {
      frame.setPointerCapture(event.pointerId);
      from = { x: event.clientX - shift.x, y: event.clientY - shift.y };
    });
    frame.addEventListener("pointermove", (event) => {
      if (!from) return;
      shift = { x: event.clientX - from.x, y: event.clientY - from.y };
      drawZoom();
    });
    for (const kind of ["pointerup", "pointercancel"]) frame.addEventListener(kind, () => { from = null; });
    frame.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomTo(zoom + (event.deltaY < 0 ? 1 : -1));
    }, { passive: false });
    frame.addEventListener("dblclick", () => zoomTo(zoom ? 0 : 2));
  }
  addEventListener("resize", () => { if (!the("compare").hidden) drawZoom(); });

  // ---- begin

  the("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    reader = the("reader").value.trim().replace(/\s+/g, " ");
    if (!reader) return the("reader").focus();
    answers = recalled(reader);
    const open = trials.findIndex((trial) => !answers[trial.id]);
    go(open < 0 ? trials.length : open);
  });

  the("count").textContent = trials.length;
  the("reader").value = fetched("last") || "";
  show("start");
  the("reader").focus();
})();

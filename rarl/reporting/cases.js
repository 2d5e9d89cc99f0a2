"use strict";
// Everything that comes out of a model, a data set or a judge is put in as text (textContent), never as markup.
const head = JSON.parse(document.getElementById("head").textContent);
const byId = (id) => document.getElementById(id);
const models = Object.keys(head.models);
const PAGE = 60;
let state = { set: head.own, mode: head.mode, model: "", judge: "0", show: "all", text: "", id: "" };
// The cases of a set come in parts. `cases` are those of the parts unpacked so far, `found` those of them that fit, and
// the list has those from `first` to `shown`.
let cases = [], parts = 0, found = [], first = 0, shown = PAGE, search = 0;
// How images are shown: magnification, brightness and contrast; kept from case to case, as on a reading screen.
const NEUTRAL = { zoom: 1, brightness: 1, contrast: 1 };
let view = { ...NEUTRAL };

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  return node;
}

const part = () => byId(`set-${state.set}-${parts}`);

async function unpack(node) {
  const bytes = Uint8Array.from(atob(node.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const mark = (score) => (score === 1 ? "✓" : score === 0 ? "✗" : "?");
const WORDS = { "✓": "right", "✗": "wrong", "?": "unscored" };
const markClass = (score) => (score === 1 ? "ok" : score === 0 ? "no" : "unscored");
const key = (model) => state.mode + " " + model;
const present = () => models.filter((m) => head.asked[m].includes(state.mode));
const asked = () => (state.model ? [state.model] : present());
const score = (item, model) => (item.rated[key(model)] || [])[state.judge]?.[0] ?? null;
const differ = (values) => values.includes(0) && values.includes(1);

const TESTS = {
  all: () => true,
  right: (item) => asked().every((m) => score(item, m) === 1),
  wrong: (item) => asked().every((m) => score(item, m) === 0),
  models: (item) => differ(present().map((m) => score(item, m))),
  judges: (item) => asked().some((m) => [0, 1].some((k) => differ((item.rated[key(m)] || []).map((v) => v[k])))),
  gap: (item) => asked().some((m) => { const v = (item.rated[key(m)] || [])[state.judge]; return v && differ([v[0], v[1]]); }),
  fault: (item) => asked().some((m) => { const s = item.said[key(m)]; return s && (s[2] || !s[0].trim()); }),
  unscored: (item) => asked().some((m) => score(item, m) === null),
};

function fits(item) {
  const words = state.text.toLowerCase();
  return TESTS[state.show](item) && (!words ||
    [item.id, item.question, ...item.answers, ...asked().map((m) => (item.said[key(m)] || [""])[0])].join("\n").toLowerCase().includes(words));
}

const place = () => found.findIndex((item) => item.id === state.id);

// Unpack parts until there are enough cases to show and one to go on to, and, if it is sought, the one of the address.
async function seek(sought) {
  const mine = ++search;
  while (part() && (found.length <= Math.max(shown, place() + 1) || (sought && place() < 0))) {
    byId("count").textContent = `Unpacking, ${cases.length} of ${head.counts[state.set]} questions …`;
    const more = await unpack(part());
    if (mine !== search) return;
    parts += 1;
    cases.push(...more);
    found.push(...more.filter(fits));
  }
  if (place() < 0) state.id = found.length ? found[0].id : "";
  draw();
}

function filter() {
  found = cases.filter(fits);
  [first, shown] = [0, PAGE];
  return seek();
}

// A mark with its meaning in words, for those who hear the page.
function marked(score, text) {
  const node = make("span", markClass(score), mark(score));
  node.append(make("span", "unseen", " " + WORDS[mark(score)]), text);
  return node;
}

function draw() {
  const all = head.counts[state.set];
  byId("count").textContent = (part() ? `${found.length} of the first ${cases.length} questions (${all} in all)` : `${found.length} of ${all} questions`) +
    ". ✓ right, ✗ wrong, ? unscored, by the chosen judge.";
  const list = byId("list");
  const focus = list.contains(document.activeElement) ? ".here" : document.activeElement?.dataset?.step && `[data-step="${document.activeElement.dataset.step}"]`;
  const at = place();
  // Far on, as from a link, the list begins shortly before the case.
  if (at >= shown + PAGE || (at >= 0 && at < first)) first = Math.max(0, at - PAGE / 2);
  shown = Math.max(shown, at + 1);
  list.replaceChildren(...found.slice(first, shown).map((item) => {
    const row = make("button", "row" + (item.id === state.id ? " here" : ""));
    row.type = "button";
    if (item.id === state.id) row.setAttribute("aria-current", "true");
    const marks = make("span", "marks");
    for (const m of present()) marks.append(make("span", "soft", head.models[m] + " "), marked(score(item, m), ""));
    row.append(make("span", "asked", item.question), make("span", "soft", item.answers.join(" or ")), marks);
    row.addEventListener("click", () => { open(item.id); byId("case").scrollIntoView({ block: "start" }); });
    return row;
  }));
  byId("more").hidden = shown >= found.length;
  byId("case").replaceChildren(...(at < 0 ? [make("p", "soft", "No question fits.")] : detail(found[at], at)));
  // What had the focus was replaced: the keyboard goes on where it was.
  if (focus) {
    const next = document.querySelector(focus);
    (next?.disabled ? document.querySelector("[data-step]:not(:disabled)") : next)?.focus({ preventScroll: true });
  }
  const wanted = new URLSearchParams(Object.entries(state).filter(([, value]) => value)).toString();
  if (location.hash.slice(1) !== wanted) history.replaceState(null, "", "#" + wanted);
}

async function open(id) { state.id = id; await seek(); byId("list").querySelector(".here")?.scrollIntoView({ block: "nearest" }); }

function step(by) {
  const at = place() + by;
  if (found[at]) open(found[at].id);
}

function detail(item, at) {
  const top = make("div", "steps");
  for (const [label, by] of [["← Previous", -1], ["Next →", 1]]) {
    const button = make("button", "", label);
    button.type = "button";
    button.dataset.step = by;
    button.disabled = !found[at + by];
    button.addEventListener("click", () => step(by));
    top.append(button);
  }
  top.append(make("code", "soft", item.id));
  const source = byId("picture-" + item.picture)?.textContent;
  let picture = make("div", "gone", "image left out or not readable");
  if (source?.startsWith("data:image/jpeg;base64,")) {
    const image = make("img");
    image.src = source;
    image.alt = "Image of the question";
    picture = viewer(image);
  }
  const text = make("div");
  text.append(make("p", "question", item.question));
  if (item.choices.length) text.append(make("p", "soft", "Options: " + item.choices.join(" · ")));
  const reference = make("p", "", "Reference: ");
  reference.append(make("strong", "", item.answers.join(" or ")));
  text.append(reference);
  for (const fact of item.facts) text.append(make("span", "chip", fact.replace("yes_no", "yes or no")), " ");
  const top2 = make("div", "head");
  top2.append(picture, text);
  const parts = [top, top2];
  if (item.reasoning) parts.push(make("h2", "small", "Annotated reasoning"), make("p", "think", item.reasoning));
  for (const model of models) parts.push(answer(item, model));
  return parts;
}

function viewer(image) {
  const box = make("div", "viewer"), frame = make("div", "frame"), controls = make("div", "controls");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "Image; the arrow keys move it where it is enlarged");
  frame.append(image);
  const inputs = {};
  const apply = () => {
    image.style.width = image.style.height = 100 * view.zoom + "%";
    image.style.filter = `brightness(${view.brightness}) contrast(${view.contrast})`;
    image.style.imageRendering = view.zoom > 2 ? "pixelated" : "auto";
    for (const [name, input] of Object.entries(inputs)) {
      input.value = view[name];
      input.setAttribute("aria-valuetext", Math.round(100 * view[name]) + " %");
    }
  };
  // The middle of what is seen stays in the middle.
  const zoom = (value) => {
    const [x, y] = [(frame.scrollLeft + frame.clientWidth / 2) / frame.scrollWidth, (frame.scrollTop + frame.clientHeight / 2) / frame.scrollHeight];
    view.zoom = Math.min(8, Math.max(1, value));
    apply();
    frame.scrollTo(x * frame.scrollWidth - frame.clientWidth / 2, y * frame.scrollHeight - frame.clientHeight / 2);
  };
  for (const [name, label, least, most] of [["zoom", "Zoom", 1, 8], ["brightness", "Brightness", 0.2, 4], ["contrast", "Contrast", 0.2, 4]]) {
    const input = inputs[name] = make("input"), line = make("label", "", label);
    Object.assign(input, { type: "range", min: least, max: most, step: 0.05 });
    input.addEventListener("input", () => { if (name === "zoom") zoom(Number(input.value)); else { view[name] = Number(input.value); apply(); } });
    line.append(input);
    controls.append(line);
  }
  const reset = make("button", "", "Reset");
  reset.type = "button";
  reset.addEventListener("click", () => { view = { ...NEUTRAL }; apply(); });
  controls.append(reset);
  let held = null;
  frame.addEventListener("pointerdown", (event) => { held = [event.clientX + frame.scrollLeft, event.clientY + frame.scrollTop]; });
  frame.addEventListener("pointermove", (event) => { if (held && event.buttons) frame.scrollTo(held[0] - event.clientX, held[1] - event.clientY); });
  frame.addEventListener("dblclick", () => zoom(view.zoom > 1 ? 1 : 3));
  image.draggable = false;
  apply();
  box.append(frame, controls);
  return box;
}

function answer(item, model) {
  const said = item.said[key(model)], rated = item.rated[key(model)];
  const box = make("section", "answer m-" + model + (state.model === model ? " chosen" : ""));
  const title = make("h2", "small");
  title.append(make("span", "dot"), head.models[model]);
  box.append(title);
  if (!said) { box.append(make("p", "soft", "not asked under this mode")); return box; }
  const [answered, think, wrong, whole] = said;
  const final = make("p", "final");
  final.append(make("span", "label", "Answer "), answered ? make("strong", "", answered) : make("span", "soft", "empty"));
  if (wrong) final.append(" ", make("span", "chip lower", wrong));
  box.append(final);
  if (think) { const p = make("p", "think"); p.append(make("span", "label", "Reasoning "), think); box.append(p); }
  if (whole) {
    const details = make("details");
    details.append(make("summary", "", "Whole completion"), make("p", "think", whole));
    box.append(details);
  }
  const verdicts = make("ul", "verdicts");
  head.judges.forEach((judge, i) => {
    const [right, reasoned, words] = rated[i];
    const line = make("li");
    line.append(make("code", "", judge), " ", marked(right, " answer"));
    if (reasoned !== null) line.append(" ", marked(reasoned, " reasoning"));
    line.append(make("span", "soft", " " + words));
    verdicts.append(line);
  });
  box.append(verdicts);
  return box;
}

function fill(id, options, value) {
  const select = byId(id);
  select.replaceChildren(...options.map(([key, label]) => { const o = make("option", "", label); o.value = key; return o; }));
  select.value = value;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
  state[id] = select.value;
}

async function load() {
  fill("set", Object.entries(head.sets), state.set);
  const modes = Object.keys(head.modes).filter((mode) => head.modes[mode].includes(state.set));
  fill("mode", modes.map((mode) => [mode, mode]), state.mode);
  fill("model", [["", "every model"], ...Object.entries(head.models)], state.model);
  fill("judge", head.judges.map((judge, i) => [String(i), judge]), state.judge);
  byId("show").value = state.show in TESTS ? state.show : "all";
  state.show = byId("show").value;
  byId("text").value = state.text;
  [cases, found, parts, first, shown] = [[], [], 0, 0, PAGE];
  return seek(state.id);
}

function read() {
  state.id = "";
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (name in state) state[name] = value;
}

for (const id of ["set", "mode", "model", "judge", "show"])
  byId(id).addEventListener("change", (event) => {
    state[id] = event.target.value;
    if (id !== "set") return filter();
    state.id = "";
    load();
  });
byId("text").addEventListener("input", (event) => { state.text = event.target.value; filter(); });
byId("more").addEventListener("click", () => { shown += PAGE; seek(); });
window.addEventListener("hashchange", () => { read(); load(); });
document.addEventListener("keydown", (event) => {
  if (["INPUT", "SELECT"].includes(event.target.tagName) || event.target.className === "frame") return;
  if (event.key === "ArrowRight" || event.key === "j") step(1);
  if (event.key === "ArrowLeft" || event.key === "k") step(-1);
});
read();
load().catch((error) => { byId("count").textContent = "This page needs a browser of 2023 or later. " + error; });

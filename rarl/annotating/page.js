// The annotation page: shows a row, saves every change, and follows the keys.
(() => {
  const byId = (id) => document.getElementById(id);
  const text = byId("text"), alertBox = byId("alert");
  const KEYS = {
    Enter: "explained", v: "not_visible", w: "wrong_question", Backspace: "previous", n: "next", u: "open",
    g: "in-text", e: "edit-0", r: "reject",
  };
  const LIGHT = { b: ["brightness", 1], d: ["brightness", -1], k: ["contrast", 1], l: ["contrast", -1] };
  let row = null, pending = {}, unanswered = null, sending = null, conflict = false, timer = null, moving = false, since = performance.now(), visible = true, seconds = 0, saying = null;

  // What is typed and not saved yet survives a reload of this tab.
  const store = () => document.body.dataset.rater + " " + row.content;
  const unsaved = () => Object.keys(pending).length > 0;

  function make(tag, content, attributes = {}) {
    const node = document.createElement(tag);
    node.textContent = content;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  function button(content, key, action, attributes = {}) {
    const node = make("button", content, { type: "button", ...attributes });
    if (key) {
      node.append(make("kbd", key, { "aria-hidden": true }));
      node.setAttribute("aria-keyshortcuts", key);
    }
    node.addEventListener("click", action);
    return node;
  }

  function complain(message, ...actions) {
    alertBox.hidden = !message;
    alertBox.replaceChildren(message, ...actions);
  }

  // What a screen reader reads out: not every save while somebody types, but the last one.
  function say(message, wait = 0) {
    clearTimeout(saying);
    byId("said").textContent = "";  // the same words again are read out again
    saying = setTimeout(() => { byId("said").textContent = message; }, wait);
  }

  // Time on this row while the page is in view, by a clock that never goes back.
  function count() {
    if (visible) seconds += (performance.now() - since) / 1000;
    [visible, since] = [!document.hidden, performance.now()];
  }
  document.addEventListener("visibilitychange", count);

  function change(changes, wait = 0) {
    Object.assign(pending, changes);
    if ("text" in changes) sessionStorage.setItem(store(), changes.text);
    byId("status").textContent = "Saving …";
    clearTimeout(timer);
    if (!wait) return save();
    timer = setTimeout(save, wait);
  }

  const request = (changes, options = {}) => fetch("case/" + row.position, {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...changes, revision: row.annotation.revision, seconds }), ...options,
  });

  // One request at a time, and none while a conflict is open; true once everything is saved.
  function save() {
    if (conflict) {
      byId("status").textContent = "Not saved.";
      return Promise.resolve(false);
    }
    sending ??= send().finally(() => { sending = null; });
    return sending;
  }

  async function send() {
    while (unsaved()) {
      const changes = pending;
      pending = {};
      count();
      let response, state;
      try {
        response = await request(changes);
        state = await response.json();
      } catch {
        state = {};
        unanswered = changes;
      }
      const arrived = unanswered && (unanswered.text ?? row.proposals[unanswered.take]?.text);
      if (response?.status === 409 && arrived === state.annotation.text) {
        // It was saved before, and the response was lost: the other window is this one.
        row.annotation.revision = state.annotation.revision;
        pending = { ...changes, ...pending };
        unanswered = null;
      } else if (response?.ok) {
        [seconds, unanswered] = [0, null];
        row = { ...row, ...state };
        if (!unsaved()) sessionStorage.removeItem(store());
        complain("");
        show(false);
        say("Saved.", 1500);
      } else if (response?.status === 422) {
        complain(state.error);
        if ("text" in changes) pending = { text: changes.text, ...pending };
        show(false);
        byId("status").textContent = "Not saved.";
        return false;
      } else if (response?.status === 409) {
        pending = { ...changes, ...pending };
        byId("status").textContent = "Not saved.";
        conflict = true;
        const keep = () => { conflict = false; row.annotation.revision = state.annotation.revision; save(); };
        const other = () => { conflict = false; pending = {}; sessionStorage.removeItem(store()); row = { ...row, ...state }; complain(""); show(true); };
        complain(state.error, button("Keep what is here", "", keep), button("Show the other", "", other));
        return false;
      } else {
        pending = { ...changes, ...pending };
        byId("status").textContent = "Not saved.";
        const restarted = "The server has been started again: open the address that it printed in another tab.";
        const why = response?.status === 403 ? restarted : state.error ?? "NOT SAVED: the server cannot be reached.";
        complain(why + " What you typed stays here, and is saved as soon as that is possible.");
        timer = setTimeout(save, 1500);
        return false;
      }
    }
    return true;
  }

  const VERDICTS = { explained: "Finished.", not_visible: "Finished: cannot be seen.", wrong_question: "Finished: the question is wrong." };
  const ORIGINS = { own: "", accepted: " The text is the draft as it was.", edited: " The text is an edited draft.", rejected: " The draft was rejected." };

  function show(replaceText) {
    const { annotation, position, total, done } = row;
    byId("place").textContent = `${position + 1} of ${total}`;
    byId("progress").max = total;
    byId("progress").value = done;
    const end = done === total ? ` All ${total} rows are finished. Thank you!` : "";
    byId("status").textContent = `${done} finished. Saved. ${VERDICTS[annotation.verdict] ?? "This row is not finished."}${ORIGINS[annotation.origin]}${end}`;
    if (replaceText) {
      text.value = annotation.text;
      say(byId("status").textContent);
    }
    for (const verdict of Object.keys(VERDICTS)) byId(verdict).setAttribute("aria-pressed", annotation.verdict === verdict);
    byId("findings").replaceChildren(...annotation.findings.map((tag) => {
      const item = make("li", "");
      item.append(button(tag + " ×", "", (event) => {
        if (!event.detail) byId("finding").focus();  // by key: the button is gone then
        change({ findings: row.annotation.findings.filter((other) => other !== tag) });
      }, { "aria-label": "Remove " + tag }));
      return item;
    }));
    byId("in-text").hidden = !row.in_text.length;
    byId("in-text").replaceChildren("Add from text: " + row.in_text.join(", "), make("kbd", "G", { "aria-hidden": true }));
    // A draft that was rejected, or is the text by now, is not shown again as one that nobody has checked.
    const settled = ["accepted", "rejected"].includes(annotation.origin);
    byId("proposals").replaceChildren(...row.proposals.map(proposal).filter((box) => !(settled && box.draft)));
  }

  function proposal(draft, number) {
    const box = make("section", "", { class: "panel draft", "aria-label": draft.title });
    box.draft = draft.title.startsWith("Draft");
    box.append(make("h2", draft.title));
    box.append(make("p", draft.verdict === "explained" ? draft.text : VERDICTS[draft.verdict].replace("Finished: ", "")));
    if (draft.findings.length) box.append(make("p", "Findings: " + draft.findings.join(", "), { class: "note" }));
    if (draft.answer) box.append(make("p", "Its answer: " + draft.answer, { class: "note" }));
    const actions = make("div", "", { class: "row" });
    const take = () => { text.value = draft.text; return { take: number }; };
    actions.append(button("Accept as it is", number + 1, () => finish(draft.verdict, take()), { id: "accept-" + number }));
    if (draft.verdict === "explained") actions.append(button("Edit", number ? "" : "E", () => { text.focus(); change(take()); }, { id: "edit-" + number }));
    if (box.draft) actions.append(button("Reject", "R", () => { text.focus(); change({ reject: true }); }, { id: "reject" }));
    box.append(actions);
    return box;
  }

  // Nothing is taken for another row: from leaving one until the next is shown, keys and clicks do nothing.
  async function moved(action) {
    moving = true;
    try { await action(); } finally { moving = false; }
  }

  async function open(position) {
    if (row && !(await save())) return;
    const response = await fetch("case/" + position).catch(() => null);
    if (!response?.ok) {
      complain(response?.status === 403 ? "The server has been started again: open the address that it printed." : "The server cannot be reached. Try again.");
      return;
    }
    row = await response.json();
    unanswered = null;
    [seconds, since] = [0, performance.now()];
    history.replaceState(null, "", "#" + (position + 1));
    byId("question").textContent = row.sample.question + row.sample.choices.filter((choice) => !row.sample.question.includes(choice)).map((choice) => "\n– " + choice).join("");
    byId("answers").textContent = row.sample.answers.join(" / ");
    dicom = row.window;
    for (const node of document.querySelectorAll(".raw, .eight")) node.hidden = node.classList.contains("raw") !== Boolean(dicom);
    byId("frame").replaceChildren(row.problem ? make("p", `The image cannot be shown: ${row.problem}.`, { class: "banner" }) : make("img", "", { src: "data:image/png;base64," + row.image, alt: "The image of the question" }));
    if (dicom) windows();
    complain("");
    show(true);
    window.scrollTo(0, 0);
    document.querySelector("h1").focus({ preventScroll: true });  // leaves the text, and is read out
    const typed = sessionStorage.getItem(store());
    if (typed !== null && typed !== row.annotation.text) {
      text.value = typed;
      change({ text: typed });
    }
  }

  // A verdict, and on to the next row.
  const finish = (verdict, changes = {}) => moved(async () => {
    if ((await change({ ...changes, verdict })) && row.annotation.verdict === verdict) await step(row.position + 1, "This was the last row.");
  });

  async function step(position, end) {
    if (position >= 0 && position < row.total) await open(position);
    else {
      byId("status").textContent += " " + end;
      say(end);
    }
  }

  text.addEventListener("input", () => change({ text: text.value.toWellFormed?.() ?? text.value }, 250));
  text.addEventListener("blur", () => { if (unsaved()) save(); });
  byId("finding").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (event.target.value.trim()) change({ add: event.target.value });
    event.target.value = "";
  });
  const actions = {
    explained: () => finish("explained"), not_visible: () => finish("not_visible"), wrong_question: () => finish("wrong_question"),
    previous: () => moved(() => step(row.position - 1, "This is the first row.")), next: () => moved(() => step(row.position + 1, "This is the last row.")),
    open: () => moved(() => step(row.open ?? -1, "All rows are finished.")), "in-text": () => change({ add: row.in_text.join(". ") }),
  };
  for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
  for (const id of ["zoom", "brightness", "contrast"]) byId(id).addEventListener("input", () => look(id, byId(id).value));

  function look(name, value) {
    const frame = byId("frame");
    byId(name).value = value;
    frame.style.setProperty("--" + name, value);
    if (name === "zoom") frame.scrollTo((frame.scrollWidth - frame.clientWidth) / 2, (frame.scrollHeight - frame.clientHeight) / 2);
  }

  // The window of a DICOM image. Its server computes it of the values in the file, one image at a time.
  let dicom = null, wanted = null, drawing = false, preset = 0;

  function windows() {
    const { low, high, presets } = dicom, reach = high - low;
    [wanted, drawing, preset] = [null, false, 0];
    for (const [id, min, max] of [["centre", low, high], ["width", 1, 2 * reach]]) Object.assign(byId(id), { min, max, step: reach > 100 ? 1 : "any" });
    for (const [, [centre, width]] of presets) {
      for (const [id, value] of [["centre", centre], ["width", width]]) Object.assign(byId(id), { min: Math.min(byId(id).min, value), max: Math.max(byId(id).max, value) });
    }
    byId("presets").replaceChildren(...presets.map(([name, [centre, width]], number) => button(`${name} ${Math.round(centre)} / ${Math.round(width)}`, "", () => { preset = number; see(centre, width); })), make("kbd", "P", { "aria-hidden": true }));
    see(...presets[0][1], false);
  }

  function see(centre, width, draws = true) {
    for (const [id, value] of [["centre", centre], ["width", width]]) {
      byId(id).value = value;
      byId(id + "-value").textContent = Math.round(byId(id).value);
    }
    if (draws) wanted = new URLSearchParams({ centre: byId("centre").value, width: byId("width").value });
    draw();
  }

  async function draw() {
    const image = byId("frame").querySelector("img");
    if (!wanted || !image || drawing) return;
    drawing = true;
    const next = new Image();
    next.src = `case/${row.position}/image?${wanted}`;
    wanted = null;
    const shown = await next.decode().then(() => true, () => false);
    if (!image.isConnected) return;  // another row by now
    if (shown) image.src = next.src;
    else complain("The server cannot be reached, or cannot read the DICOM file: the window has not changed.");
    drawing = false;
    draw();
  }

  // Brighter or darker, more or less contrast, by a twentieth of the slider or of the width.
  function nudge(what, by) {
    if (!dicom) return look(what, Number(byId(what).value) + by * 0.1);
    const [centre, width] = ["centre", "width"].map((id) => Number(byId(id).value));
    if (what === "brightness") see(centre + (dicom.inverted ? by : -by) * width / 20, width);
    else see(centre, width * 0.9 ** by);
  }

  function nextWindow() {
    if (dicom) byId("presets").children[preset = (preset + 1) % dicom.presets.length].click();
    else for (const id of ["brightness", "contrast"]) look(id, 1);
  }

  for (const id of ["centre", "width"]) byId(id).addEventListener("input", () => see(byId("centre").value, byId("width").value));
  byId("frame").addEventListener("pointerdown", (event) => {
    if (!dicom || event.pointerType !== "mouse" || event.button) return;
    event.preventDefault();
    byId("frame").focus({ preventScroll: true });
    byId("frame").setPointerCapture(event.pointerId);
    const start = [event.clientX, event.clientY, Number(byId("centre").value), Number(byId("width").value)];
    const reach = start[3] / 200;  // of a pixel
    byId("frame").onpointermove = ({ clientX, clientY }) => see(start[2] + (clientY - start[1]) * reach, Math.max(start[3] + (clientX - start[0]) * reach, 1));
  });
  for (const end of ["pointerup", "pointercancel"]) byId("frame").addEventListener(end, () => { byId("frame").onpointermove = null; });

  for (const kind of ["click", "keydown"]) {
    document.addEventListener(kind, (event) => {
      if (moving && event.key !== "Tab") {
        event.preventDefault();
        event.stopImmediatePropagation();
      }
    }, true);
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.activeElement.blur();
    if (event.target === text && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      finish("explained");
    }
    if (!row || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("textarea, input:not([type=range]), select, summary") || !byId("keys").checked) return;
    if (event.key === "Enter" && event.target.closest("button")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const pressed = byId(/^[1-9]$/.test(key) ? "accept-" + (key - 1) : KEYS[key] ?? "");
    const field = { t: text, f: byId("finding") }[key], light = LIGHT[key];
    if (field || light || key === "z" || key === "p" || pressed) event.preventDefault();
    if (light) return nudge(...light);
    if (event.repeat) return;
    if (field) field.focus();
    else if (key === "p") nextWindow();
    else if (key === "z") look("zoom", byId("zoom").value > 1 ? 1 : 3);
    else if (pressed && !pressed.hidden) pressed.click();
  });
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("pagehide", () => { if (unsaved()) request(pending, { keepalive: true }); });
  window.addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });

  const asked = Number(location.hash.slice(1)) - 1;
  open(asked >= 0 ? asked : Number(document.body.dataset.first));
})();

// Fills in commit, date, machine, times and memory from metrics/cost/cost.js, which only the machine that ran the
// pipeline has.
"use strict";
(() => {
  const known = window.RARL_COST;
  if (typeof known !== "object" || known === null) return;
  const measured = (name) => Object.hasOwn(known, name) && Number.isFinite(known[name].seconds);
  const time = (seconds) => {
    const whole = Math.round(seconds);
    if (!whole) return "< 0:01";
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
  };
  const utc = (run) => run.finished.slice(0, 16).replace("T", " ");
  const commit = (run) => run.commit + (run.changed ? "+" : "");
  const unique = (texts) => [...new Set(texts.filter(Boolean))].join("; ");
  const machines = (runs) => unique(runs.flatMap((run) => [run.processor, run.card]));
  const builds = (runs) => unique(runs.map((run) => run.python && run.torch && `Python ${run.python}, torch ${run.torch}`));
  const table = document.getElementById("cost-table");
  const all = [];
  const fill = (row, runs) => {
    if (!runs.length) return;
    const [, seconds, memory, finished, at] = row.cells;
    seconds.textContent = time(runs.reduce((sum, run) => sum + run.seconds, 0));
    // Files count in 2^20 bytes; the page, as the memory plan does, in 10^9.
    const largest = (key) => ((Math.max(...runs.map((run) => run[key] ?? 0)) * 2 ** 20) / 1e9).toFixed(1);
    const onGpu = runs.some((run) => run.peak_gpu_memory_mb) ? `, GPU ${largest("peak_gpu_memory_mb")}` : "";
    memory.textContent = largest("peak_memory_mb") + onGpu;
    finished.textContent = runs.filter((run) => run.finished).map(utc).sort().pop() ?? "–";
    if (row.id !== "cost-total") at.textContent = unique(runs.filter((run) => run.commit).map(commit)) || "–";
  };
  for (const row of table.querySelectorAll("tr[data-cost]")) {
    const names = row.dataset.cost.split(" ");
    const runs = names.filter(measured).map((name) => known[name]);
    fill(row, runs);
    all.push(...runs);
    if (runs.length && runs.length < names.length) {
      const note = document.createElement("span");
      note.className = "range";
      note.textContent = `${runs.length} of ${names.length} runs known`;
      row.cells[1].append(note);
    }
  }
  if (!all.length) return;
  fill(document.getElementById("cost-total"), all);
  document.getElementById("cost-builds").textContent = [machines(all), builds(all)].filter(Boolean).map((text) => `${text}.`).join(" ");
  // A page that DVC restored, or that was made elsewhere, is not the one that the report stage made here last.
  const own = known.report;
  if (own?.page === document.body.dataset.page && own.finished) {
    const changed = own.changed ? ", with changes to code or parameters," : "";
    const at = own.commit ? ` at commit ${own.commit}${changed}` : "";
    document.getElementById("origin").textContent = `Made ${utc(own)} UTC${at} on ${machines([own])} (${builds([own])}).`;
  }
  document.getElementById("cost-known").hidden = false;
  document.getElementById("cost-unknown").hidden = true;
})();

// Fills in the table of times and memory from metrics/cost/cost.js, which only the machine that ran the pipeline has.
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
  const table = document.getElementById("cost-table");
  const all = [];
  const fill = (row, runs) => {
    if (!runs.length) return;
    const [, seconds, memory] = row.cells;
    seconds.textContent = time(runs.reduce((sum, run) => sum + run.seconds, 0));
    // Files count in 2^20 bytes; the page, as the memory plan does, in 10^9.
    memory.textContent = ((Math.max(...runs.map((run) => run.peak_memory_mb)) * 2 ** 20) / 1e9).toFixed(1);
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
  const builds = all.filter((run) => run.python && run.torch).map((run) => `Python ${run.python}, torch ${run.torch}`);
  document.getElementById("cost-builds").textContent = builds.length ? `${[...new Set(builds)].join("; ")}.` : "";
  document.getElementById("cost-known").hidden = false;
  document.getElementById("cost-unknown").hidden = true;
})();

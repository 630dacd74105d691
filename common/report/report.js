"use strict";
(() => {
  const form = document.getElementById("filters");
  const shown = document.getElementById("shown");
  const rows = [...document.querySelectorAll("table.data tbody tr")];
  const others = [...document.querySelectorAll(".group, figure[data-benchmark]")];

  const filter = () => {
    const wanted = [...form.querySelectorAll("select")].filter((s) => s.value);
    const all = form.elements.published.checked;
    const fits = (item) =>
      wanted.every((s) => !(s.name in item.dataset) || item.dataset[s.name] === s.value) &&
      (all || !item.classList.contains("published"));
    let count = 0;
    for (const row of rows) {
      row.hidden = !fits(row);
      count += row.hidden ? 0 : 1;
    }
    for (const item of others) item.hidden = !fits(item);
    for (const block of document.querySelectorAll(".block")) {
      const own = block.querySelectorAll("tbody tr");
      block.hidden = own.length > 0 && [...own].every((r) => r.hidden);
    }
    shown.textContent = `${count} of ${rows.length} rows`;
  };

  const order = (button, table, column) => {
    const head = button.closest("th");
    const numeric = head.classList.contains("n");
    const before = head.getAttribute("aria-sort");
    const first = numeric ? "descending" : "ascending";
    const next = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
    for (const th of table.tHead.querySelectorAll("th")) th.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const key = (row) => {
      const cell = row.cells[column];
      if (!numeric) return cell.textContent.trim();
      return "v" in cell.dataset ? Number(cell.dataset.v) : null;
    };
    const keyed = [...body.rows].map((row, i) => ({ row, i, key: key(row) }));
    const missing = (k) => k === null || k === "";
    keyed.sort((a, b) => {
      if (missing(a.key) || missing(b.key)) return missing(a.key) - missing(b.key) || a.i - b.i;
      const by = numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
      return sign * by || a.i - b.i;
    });
    body.append(...keyed.map((k) => k.row));
  };

  for (const table of document.querySelectorAll("table.data")) {
    if (table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((th, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.textContent = th.textContent;
      th.dataset.name = button.textContent; // printed: a browser repeats no button on the next page
      th.replaceChildren(button);
      th.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => order(button, table, column));
    });
  }

  const open = () => {
    const name = decodeURIComponent(location.hash.slice(1));
    const target = name && document.getElementById(name);
    if (!target) return;
    const hidden = target.closest("[hidden]");
    if (hidden) { form.reset(); filter(); }
    let details = target.closest("details");
    if (!details) return;
    const place = target.tagName === "DETAILS" ? target : details;
    for (; details; details = details.parentElement.closest("details")) details.open = true;
    place.scrollIntoView();
  };

  form.hidden = false;
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  window.addEventListener("hashchange", open);
  filter();
  open();
})();

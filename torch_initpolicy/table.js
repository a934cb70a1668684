"use strict";
(() => {
  const key = (row, column) => {
    const text = row.cells[column].textContent.toLowerCase();
    const number = Number(text.split(" / ")[0]);
    return text && !Number.isNaN(number) ? number : text;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };
  const sort = (head) => {
    const body = head.closest("table").tBodies[0];
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const rows = [...body.rows].map((row) => [key(row, head.cellIndex), row]);
    rows.sort(([a], [b]) => (order === "ascending" ? compare(a, b) : compare(b, a)));
    body.append(...rows.map(([, row]) => row));
  };
  const filter = (box, input) => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...box.querySelector("tbody").rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const count = rows.filter((row) => !row.hidden).length;
    box.querySelector("output").value = `${count} of ${rows.length}`;
  };
  for (const box of document.querySelectorAll(".sortable:not([data-ready])")) {
    box.dataset.ready = "";
    for (const button of box.querySelectorAll("th button")) {
      button.addEventListener("click", () => sort(button.closest("th")));
    }
    const input = box.querySelector("input");
    input.addEventListener("input", () => filter(box, input));
    filter(box, input);
  }
})();

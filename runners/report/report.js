// A click on a column title sorts the table by that column. A link to a cell opens the cell.
for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("thead th").forEach((head, column) => head.querySelector("button").onclick = () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = row => row.cells[column].dataset.value ?? "";
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if ((x === "") !== (y === "")) return x === "" ? 1 : -1;  // unknown values stay last
      const order = column === 0 || isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows);
  });
const open = () => { const cell = location.hash && document.querySelector(location.hash); if (cell) cell.open = true; };
addEventListener("hashchange", open); open();

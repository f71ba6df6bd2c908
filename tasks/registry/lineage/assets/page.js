"use strict";
// Reads what the page already holds; builds no HTML from text, fetches nothing.
(() => {
  const panel = document.getElementById("panel");
  const nodes = [...document.querySelectorAll("[data-node]")];
  const edges = [...document.querySelectorAll(".edge")];

  const reach = (start, from, to) => {
    const seen = new Set([start]);
    const queue = [start];
    while (queue.length) {
      const here = queue.pop();
      for (const edge of edges) {
        if (edge.dataset[from] === here && !seen.has(edge.dataset[to])) {
          seen.add(edge.dataset[to]);
          queue.push(edge.dataset[to]);
        }
      }
    }
    return seen;
  };

  const choose = (number) => {
    const detail = document.getElementById("n" + number);
    if (!detail) return;
    const copy = detail.cloneNode(true);
    copy.removeAttribute("id");
    panel.replaceChildren(copy);
    panel.scrollTop = 0;
    const down = reach(number, "from", "to");
    const up = reach(number, "to", "from");
    for (const node of nodes) {
      node.classList.toggle("chosen", node.dataset.node === number);
      node.classList.toggle("faded", !down.has(node.dataset.node) && !up.has(node.dataset.node));
    }
    for (const edge of edges) {
      const { from, to } = edge.dataset;
      const lit = (down.has(from) && down.has(to)) || (up.has(from) && up.has(to));
      edge.classList.toggle("lit", lit);
      edge.classList.toggle("faded", !lit);
    }
  };

  const clear = () => {
    for (const item of [...nodes, ...edges]) item.classList.remove("chosen", "faded", "lit");
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#n'], [data-node]");
    if (!link) return;
    event.preventDefault();
    choose(link.dataset.node ?? link.getAttribute("href").slice(2));
  });

  const search = document.getElementById("search");
  const matches = document.getElementById("matches");
  const texts = new Map(nodes.map((node) => [node, document.getElementById("n" + node.dataset.node).textContent.toLowerCase()]));
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    clear();
    if (!wanted) {
      matches.value = "";
      return;
    }
    const found = nodes.filter((node) => texts.get(node).includes(wanted));
    matches.value = `${found.length} of ${nodes.length} boxes`;
    for (const node of nodes) node.classList.toggle("faded", !found.includes(node));
    for (const edge of edges) edge.classList.add("faded");
    if (found.length) found[0].scrollIntoView({ block: "center", inline: "center" });
  });
  search.addEventListener("keydown", (event) => {
    const first = nodes.find((node) => !node.classList.contains("faded"));
    if (event.key === "Enter" && search.value.trim() && first) choose(first.dataset.node);
    if (event.key === "Escape") {
      search.value = "";
      clear();
      matches.value = "";
    }
  });
})();

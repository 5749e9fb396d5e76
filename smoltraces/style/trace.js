"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// ---- a trace that has been laid out: its text reaches the page through textContent alone, never as HTML
function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}
function append(parent, items) {
  for (const item of items) {
    if (typeof item === "string") parent.append(item);
    else if (item.items) {
      const node = make("span", "back"), far = item.reach === null ? "" : `, ${item.reach} sentence${
        item.reach === 1 ? "" : "s"} back`;
      node.title = "gives up or corrects a step" + far;
      if (item.opens) {
        const sign = make("b", "", `↶${item.reach ?? ""} `);
        sign.setAttribute("role", "img");
        sign.setAttribute("aria-label", "backtrack" + far);
        node.append(sign);
      }
      append(node, item.items);
      parent.append(node);
    } else {
      const node = make("mark", data.types[item[1]], item[0]);
      node.title = data.types[item[1]];
      parent.append(node);
    }
  }
}
function block(label, className, gap, items) {
  const text = make("div", "text " + className);
  text.dir = "auto";
  append(text, items);
  return make("div", `run gap${gap}`, make("div", "stage", label), text);
}
function counts(row) {
  const nodes = [`${row.words} words `];
  row.pivots.forEach((n, t) => {
    if (!n) return;
    const node = make("mark", data.types[t] + " count", data.types[t][0].toUpperCase() + n);
    node.title = `${n} × ${data.types[t]}`;
    nodes.push(node, " ");
  });
  if (row.backs) nodes.push(`↶${row.backs} `);
  if (row.score !== null) nodes.push(`· style ${row.score.toFixed(2)}`);
  return nodes;
}
function legend() {
  const backtrack = make("span", "", make("span", "back", make("b", "", "↶n")), " backtrack by n sentences");
  return ["pivots:", ...data.types.map(type => make("mark", type, type)), backtrack, "stages:",
    ...data.stages.map(stage => make("span", "swatch " + stage, stage))];
}

// ---- search: every word must occur, "a phrase" as it stands
const plain = items => items.map(i => typeof i === "string" ? i : i.items ? plain(i.items) : i[0]).join("");
const lower = text => text.replace(/\s+/g, " ").toLowerCase();
const termsOf = text => [...text.matchAll(/"([^"]+)"|[^\s"]+/g)].map(m => lower(m[1] ?? m[0]).trim()).filter(Boolean);
function places(nodes, terms) { // where they occur in the nodes' text, in order
  const pattern = terms.map(t => t.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/ /g, "\\s+")).join("|"), found = [];
  if (pattern) for (const node of nodes) {
    const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT), parts = [];
    let text = "", k = 0;
    while (walker.nextNode()) { parts.push([text.length, walker.currentNode]); text += walker.currentNode.data; }
    for (const match of text.matchAll(new RegExp(pattern, "gi"))) {
      const range = new Range(), end = match.index + match[0].length;
      while (k + 1 < parts.length && parts[k + 1][0] <= match.index) k++;
      range.setStart(parts[k][1], match.index - parts[k][0]);
      let e = k;
      while (e + 1 < parts.length && parts[e + 1][0] < end) e++;
      range.setEnd(parts[e][1], end - parts[e][0]);
      found.push(range);
    }
  }
  return found;
}
function highlight(ranges) {
  if (globalThis.Highlight) CSS.highlights.set("hit", new Highlight(...ranges));
}

const rows = data.rows, $ = id => document.getElementById(id);
const list = $("list"), spacer = $("spacer"), panes = $("panes"), query = $("query");
const state = { shown: [], cursor: 0, left: -1, right: -1, keep: false, beside: null, hits: [], hit: -1 };

// ---- what is shown, and in which order
for (const row of rows)
  row.haystack = lower([row.id, row.label, row.question, ...row.runs.map(r => plain(r[2])), row.response].join(" "));
const byKey = new Map(rows.map(row => [row.key, []]));
rows.forEach((row, i) => byKey.get(row.key).push(i));
const terms = () => termsOf(query.value);

const sorts = { order: ["file order", null], words: ["length", r => r.words], pivots: ["pivots", r => r.total],
  density: ["pivots per 100 words", r => r.words ? r.total / r.words : 0], backs: ["backtracks", r => r.backs],
  score: ["style score", r => r.score ?? -1] };
for (const row of rows) row.total = row.pivots.reduce((a, b) => a + b, 0);

const controls = $("controls"), facets = {};
function select(name, options, parent = controls) {
  const node = make("select", "", ...options.map(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  }));
  node.id = "by-" + name.replace(/\W/g, "-");
  node.addEventListener("change", refresh);
  parent.append(make("label", "", name + " ", node));
  return node;
}
for (const [name, values] of Object.entries(data.facets))
  facets[name] = select(name, [["", "all"], ...values.map((v, i) => [String(i), v])]);
const correct = rows.some(r => r.correct !== null) &&
  select("answer", [["", "all"], ["true", "✓ right"], ["false", "✗ wrong"]]);
const types = make("fieldset", "", make("legend", "", "has"));
controls.append(types);
const boxes = [...data.types, "backtrack"].map(type => {
  const box = make("input");
  box.type = "checkbox";
  box.id = "has-" + type;
  box.addEventListener("change", refresh);
  types.append(make("label", "", box, " ", type === "backtrack" ? "↶ backtrack" : make("mark", type, type)));
  return box;
});
const sort = select("sort by", Object.entries(sorts).filter(([k]) => k !== "score" || rows.some(r => r.score !== null))
  .map(([k, v]) => [k, v[0]]));
const descending = make("button", "", "↓ most first");
descending.id = "descending";
descending.addEventListener("click", () => {
  const down = descending.textContent.startsWith("↓");
  descending.textContent = down ? "↑ least first" : "↓ most first";
  refresh();
});
controls.append(descending);

function refresh() {
  const wanted = terms(), by = sorts[sort.value][1], sign = descending.textContent.startsWith("↓") ? -1 : 1;
  const chosen = Object.entries(facets).filter(([, s]) => s.value).map(([name, s]) => [name, data.facets[name][s.value]]);
  state.shown = [];
  rows.forEach((row, i) => {
    if (chosen.some(([name, value]) => row.facets[name] !== value)) return;
    if (correct && correct.value && String(row.correct) !== correct.value) return;
    if (boxes.some((box, t) => box.checked && !(t < data.types.length ? row.pivots[t] : row.backs))) return;
    if (wanted.every(term => row.haystack.includes(term))) state.shown.push(i);
  });
  if (by) state.shown.sort((a, b) => sign * (by(rows[a]) - by(rows[b])) || a - b);
  descending.hidden = !by;
  $("count").textContent = state.shown.length === rows.length ? `${rows.length} traces` :
    `${state.shown.length} of ${rows.length} traces`;
  list.querySelector(".none").hidden = state.shown.length > 0;
  state.cursor = Math.max(0, state.shown.indexOf(state.left));
  list.scrollTop = 0;
  draw();
  if (state.shown.includes(state.left)) reveal();
  mark();
}

// ---- the list draws the rows in sight and no others
let height = 0;
function draw() {
  height = parseFloat(getComputedStyle(document.documentElement).fontSize) *
    parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
  spacer.style.height = state.shown.length * height + "px";
  const first = Math.max(0, Math.floor(list.scrollTop / height) - 4);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 4);
  const drawn = new Set([state.cursor].filter(at => at < state.shown.length));
  for (let at = first; at < last; at++) drawn.add(at);
  spacer.replaceChildren(...[...drawn].sort((a, b) => a - b).map(option));
  if (state.shown.length) list.setAttribute("aria-activedescendant", "option-" + state.cursor);
  else list.removeAttribute("aria-activedescendant");
}
function verdict(row) { return row.correct === null ? "" : row.correct ? "✓ right" : "✗ wrong"; }
function option(at) {
  const i = state.shown[at], row = rows[i], node = make("div", at === state.cursor ? "cursor" : "");
  const say = verdict(row), mark = make("span", "", say && say[0]);
  mark.title = say;
  node.id = "option-" + at;
  node.setAttribute("role", "option");
  node.setAttribute("aria-selected", i === state.left || i === state.right);
  node.setAttribute("aria-posinset", at + 1);
  node.setAttribute("aria-setsize", state.shown.length);
  node.setAttribute("aria-label", [row.label, say, row.id, row.question, `${row.words} words, ${row.total} pivots`]
    .filter(Boolean).join(", ").slice(0, 400));
  const about = make("div", "", row.question || (row.runs.length ? plain(row.runs[0][2]).slice(0, 200) : "no trace"));
  about.dir = "auto";
  node.append(make("div", "", make("b", "", row.label), mark, make("bdi", "id quiet", row.id)), about,
    make("div", "quiet", ...counts(row)));
  node.style.transform = `translateY(${at * height}px)`;
  node.addEventListener("click", event => {
    state.cursor = at;
    if (event.shiftKey && state.left >= 0) state.keep = true;
    open(i, true);
  });
  return node;
}
let waiting = false;
list.addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
});
addEventListener("resize", draw);
function reveal() {
  const top = state.cursor * height;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
  draw();
}
function move(to) {
  if (!state.shown.length) return;
  state.cursor = Math.max(0, Math.min(state.shown.length - 1, to));
  open(state.shown[state.cursor], false);
  reveal();
}

// ---- one trace, or two
function others(i) { return byKey.get(rows[i].key).filter(j => j !== i); }
function open(i, show) {
  if (state.keep && i !== state.left) state.right = i;
  else if (!state.keep) {
    state.left = i;
    state.right = state.beside === null ? -1 : others(i).find(j => rows[j].label === state.beside) ?? -1;
  }
  if (show) document.body.dataset.view = "trace";
  draw();
  render();
}
function beside(j) { // null closes it
  state.keep = false;
  state.beside = j === null ? null : rows[j].label;
  state.right = j ?? -1;
  draw();
  render();
}
function button(text, action, pressed) {
  const node = make("button", "", text);
  if (pressed !== undefined) node.setAttribute("aria-pressed", pressed);
  node.addEventListener("click", action);
  return node;
}
function pane(i, ownQuestion) {
  const row = rows[i], node = make("article", row.runs.length > 400 ? "pane long" : "pane"), facts = make("div", "facts quiet", ...counts(row));
  node.tabIndex = 0;
  node.setAttribute("aria-label", `Trace ${row.label} ${row.id}`);
  if (row.answer) facts.append(" · reference answer ", make("bdi", "", row.answer));
  if (row.extracted) facts.append(" · answered ", make("bdi", "", row.extracted));
  node.append(make("h2", "", make("bdi", "", row.label), " ", verdict(row), " ", make("bdi", "quiet", row.id)), facts);
  if (row.question && ownQuestion) node.append(block("question", "", 2, [row.question]));
  if (!row.runs.length) node.append(block("", "quiet", 2, ["no trace"]));
  const more = make("div"); // a trace of millions of characters is drawn as far as it is asked for
  node.append(more);
  if (row.response) node.append(make("div", "gap2"), block("response", "", 2, [row.response]));
  let next = 0;
  const draw = () => {
    for (let size = 0; next < row.runs.length && size < 100000; next++) {
      const [stage, gap, items] = row.runs[next];
      more.before(block(next && row.runs[next - 1][0] === stage ? "" : stage, stage, gap, items));
      size += plain(items).length;
    }
    more.replaceChildren(...next < row.runs.length ? [button("Show more of this trace", () => { draw(); mark(); })] : []);
  };
  draw();
  return node;
}
function bar() { // what can stand beside the trace
  const nodes = [button("← List", () => { document.body.dataset.view = "list"; list.focus(); reveal(); })];
  nodes[0].className = "narrow";
  const same = others(state.left);
  if (same.length) nodes.push(make("span", "quiet", "beside it, on the same question:"), ...same.slice(0, 12).map(j =>
    button(rows[j].label, () => state.right === j && !state.keep ? close() : beside(j), state.right === j)));
  const compare = button("any other…", () => { state.keep ? close() : keep(); }, state.keep);
  compare.id = "compare";
  nodes.push(compare);
  if (state.keep && state.right < 0) nodes.push(make("b", "", "choose the other in the list"));
  if (state.right >= 0) nodes.push(button("Close right", close));
  nodes.push(make("span", "quiet", ""));
  nodes.at(-1).id = "hits";
  return nodes;
}
function render() {
  const shown = [state.left, state.right].filter(i => i >= 0), questions = new Set(shown.map(i => rows[i].question));
  const [question] = questions.size === 1 ? questions : [""];
  $("bar").replaceChildren(...shown.length ? bar() : []);
  $("question").replaceChildren(...question ? [block("question", "", 0, [question])] : []);
  panes.replaceChildren(...shown.map(i => pane(i, !question)));
  if (!shown.length) panes.append(make("p", "empty quiet", "Choose a trace from the list, or press ↓."));
  mark(true);
}
function keep() {
  if (state.left < 0) return;
  state.keep = true;
  state.beside = null;
  document.body.dataset.view = "list";
  render();
  list.focus();
}
function close() { state.keep = false; beside(null); }

// ---- what was searched for, in the text (where the browser can mark it without touching the page)
function mark(go) {
  const wanted = terms();
  state.hits = globalThis.Highlight ? places($("reader").querySelectorAll(".text"), wanted) : [];
  state.hit = -1;
  highlight(state.hits);
  if (globalThis.Highlight) CSS.highlights.delete("hit-now");
  if ($("hits")) $("hits").textContent = wanted.length ? `${state.hits.length} found here` : "";
  if (go && state.hits.length) jump(1);
}
function jump(step) {
  if (!state.hits.length) return;
  state.hit = (state.hit + step + state.hits.length) % state.hits.length;
  const range = state.hits[state.hit], node = range.startContainer.parentElement;
  CSS.highlights.set("hit-now", new Highlight(range));
  $("hits").textContent = `${state.hit + 1} of ${state.hits.length} found here`;
  const scrolls = innerWidth <= 800 ? $("reader") : node.closest(".pane, #question");
  const box = range.getBoundingClientRect(), view = scrolls.getBoundingClientRect();
  if (box.top < view.top + 40 || box.bottom > view.bottom) scrolls.scrollTop += box.top - view.top - view.height / 3;
}

// ---- keys and buttons
query.addEventListener("input", refresh);
query.addEventListener("keydown", event => {
  if (event.key === "Enter" || event.key === "ArrowDown") { event.preventDefault(); list.focus(); move(state.cursor); }
});
list.addEventListener("keydown", event => {
  const page = Math.max(1, Math.floor(list.clientHeight / height) - 1);
  const to = { ArrowDown: state.cursor + (state.left >= 0 ? 1 : 0), ArrowUp: state.cursor - 1, Home: 0, End: Infinity,
    PageDown: state.cursor + page, PageUp: state.cursor - page }[event.key];
  if (to !== undefined) { event.preventDefault(); move(to); }
  else if ((event.key === "Enter" || event.key === " ") && state.shown.length && event.target === list) {
    event.preventDefault();
    open(state.shown[state.cursor], true);
    panes.querySelector(".pane:last-child").focus();
  }
});
function back() {
  if (state.right >= 0 || state.keep) close();
  else if (document.body.dataset.view === "trace" || panes.contains(document.activeElement)) {
    document.body.dataset.view = "list";
    list.focus();
    reveal();
  } else if (query.value) { query.value = ""; refresh(); }
}
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const typing = event.target === query;
  if (event.key === "Escape") {
    event.preventDefault();
    if (!typing) return back();
    if (query.value) { query.value = ""; refresh(); } else list.focus();
  } else if (!typing && event.target.tagName !== "SELECT") {
    const keys = { "/": () => { document.body.dataset.view = "list"; query.focus(); query.select(); }, "?": help,
      j: () => move(state.cursor + (state.left >= 0 ? 1 : 0)), k: () => move(state.cursor - 1), n: () => jump(1),
      N: () => jump(-1), c: () => state.keep ? close() : keep(), p: () => {
        if (state.left < 0) return;
        const same = others(state.left), at = same.indexOf(state.right);
        if (same.length) beside(same[(at + 1) % same.length]);
      } };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  }
});
function help() { $("help").showModal(); }
$("keys").addEventListener("click", help);
$("clear").addEventListener("click", () => {
  query.value = "";
  for (const node of [...Object.values(facets), correct]) if (node) node.value = "";
  for (const box of boxes) box.checked = false;
  refresh();
  query.focus();
});
$("legend").append(...legend());
if (innerWidth <= 800) $("filters").open = false;
refresh();
if (rows.length) open(0, false);
else render();

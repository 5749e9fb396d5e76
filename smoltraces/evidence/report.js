const $ = id => document.getElementById(id), state = { shown: [], drawn: 0, open: new Set() }, AT_ONCE = 12;
const signs = ["✓ ", "✗ ", "… "];
data.rows.forEach((row, i) => {
  row.number = i;
  row.text = lower([row.runs, row.tail].map(runs => runs.map(r => plain(r[2])).join(" ")).join(" … ") + " " + row.response);
});
for (const problem of data.problems) {
  problem.rows = [];
  problem.text = lower([problem.id, problem.question].join(" "));
}
for (const row of data.rows) data.problems[row.problem].rows.push(row);
const several = name => new Set(data.rows.map(row => row[name])).size > 1;
const many = { student: several("student"), seed: several("seed"), sample: several("sample") };

// ---- filters and search
const filters = [];
function select(name, values, of) {
  if (values.length < 2) return;
  const node = make("select", "", make("option", "", "all"), ...values.map(([, label]) => make("option", "", label)));
  node.id = "by-" + name;
  node.addEventListener("change", refresh);
  filters.push(row => !node.selectedIndex || of(row) === values[node.selectedIndex - 1][0]);
  $("controls").append(make("label", "", name + " ", node));
}
const labelled = (name, label) => [...new Set(data.rows.map(row => row[name]))].map(v => [v, label[v] ?? v]);
const query = make("input"), count = make("span"), clear = make("button", "", "Clear");
const whole = make("input"), wholeLabel = make("label", "", whole, " with the other answers to these problems");
Object.assign(query, { type: "search", id: "query", placeholder: "Search questions and outputs", autocomplete: "off",
  spellcheck: false });
query.setAttribute("aria-label", "Search questions and outputs");
query.addEventListener("input", refresh);
Object.assign(whole, { type: "checkbox", id: "whole" });
whole.addEventListener("change", refresh);
count.id = "count";
count.setAttribute("role", "status");
clear.id = "clear";
clear.addEventListener("click", () => {
  query.value = "";
  for (const node of $("controls").querySelectorAll("select")) node.selectedIndex = 0;
  whole.checked = false;
  refresh();
  query.focus();
});
function build() {
  $("controls").append(query);
  select("student", labelled("student", data.students), row => row.student);
  select("variant", labelled("variant", {}), row => row.variant);
  select("benchmark", [...new Set(data.problems.map(p => p.benchmark))].map(b => [b, data.benchmarks[b]]),
    row => data.problems[row.problem].benchmark);
  select("answer", data.outcomes.map((o, i) => [i, signs[i] + o]), row => row.outcome);
  $("controls").append(wholeLabel, clear, count);
  $("legend").append(...legend());
}
function refresh() {
  const wanted = termsOf(query.value), narrowed = wanted.length ||
    [...$("controls").querySelectorAll("select")].some(node => node.selectedIndex);
  let n = 0;
  state.shown = [];
  state.found = new Set();
  for (const problem of data.problems) {
    const rows = problem.rows.filter(row => filters.every(f => f(row)) &&
      wanted.every(term => row.text.includes(term) || problem.text.includes(term)));
    if (!rows.length) continue;
    n += rows.length;
    for (const row of rows) if (wanted.some(term => row.text.includes(term))) state.found.add(row.number);
    state.shown.push([problem, whole.checked ? problem.rows : rows]);
  }
  wholeLabel.hidden = !narrowed;
  clear.hidden = !narrowed;
  count.textContent = (narrowed ? `${n} of ${data.rows.length}` : data.rows.length) + " answers to " +
    `${state.shown.length} problem${state.shown.length === 1 ? "" : "s"}`;
  state.drawn = 0;
  $("problems").replaceChildren(...state.shown.length ? [] : [make("p", "quiet", "No answer matches.")]);
  more();
}

// ---- problems are drawn a dozen at a time, an answer when it is opened
function more() {
  const next = state.shown.slice(state.drawn, state.drawn + AT_ONCE);
  $("problems").append(...next.map(([problem, rows]) => article(problem, rows)));
  state.drawn += next.length;
  const left = state.shown.length - state.drawn;
  $("more").hidden = left <= 0;
  $("more").textContent = `Show ${Math.min(left, AT_ONCE)} more of ${left} problems`;
  mark();
}
$("more").addEventListener("click", () => {
  const last = $("problems").lastElementChild;
  more();
  last?.nextElementSibling?.querySelector("button, summary").focus();
});
function mark() {
  highlight(places($("problems").querySelectorAll(".text"), termsOf(query.value)));
}
function article(problem, rows) {
  const node = make("article", "problem"), answers = make("div", "answers"), button = make("button", "", "Side by side");
  const head = make("h3", "", data.benchmarks[problem.benchmark] ?? problem.benchmark, " ", make("bdi", "quiet", problem.id));
  const gold = make("span", "", "reference answer ", make("bdi", "", problem.answer ?? "not known"));
  button.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-label", `Side by side: ${problem.id}`);
  button.addEventListener("click", () => {
    const on = answers.classList.toggle("beside");
    button.setAttribute("aria-pressed", on);
    for (const details of answers.children) details.open = on;
  });
  node.append(make("header", "", head, gold, button));
  const question = block("", problem.question ? "" : "quiet", 0,
    [problem.question || "The question is not shown: its benchmark is not on this machine."]);
  question.tabIndex = 0;
  question.setAttribute("role", "region");
  question.setAttribute("aria-label", "Question " + problem.id);
  answers.append(...rows.map(answer));
  node.append(question, answers);
  return node;
}
function answer(row) {
  const node = make("details"), outcome = data.outcomes[row.outcome];
  const facts = make("span", "words", ...counts(row), ` · ${row.tokens} tokens`);
  const label = [data.students[row.student] ?? row.student, row.variant, "seed " + row.seed, "sample " + row.sample]
    .filter((_, i) => [many.student, true, many.seed, many.sample][i]).join(" · ");
  node.append(make("summary", "", make("span", "chip " + outcome.replace(" ", "-"), signs[row.outcome] + outcome),
    make("span", "", make("b", "", make("bdi", "", label))),
    make("span", "", row.extracted === null ? "no answer found" : "answered ", make("bdi", "", row.extracted ?? "")), facts));
  node.addEventListener("toggle", () => {
    if (node.open && node.children.length === 1) {
      node.append(output(row));
      mark();
    }
  });
  if (state.found.has(row.number)) {
    node.append(output(row));
    node.open = true;
  }
  return node;
}
function output(row) {
  const node = make("div", "output"), draw = runs => runs.forEach(([stage, gap, items], k) =>
    node.append(block(k && runs[k - 1][0] === stage ? "" : stage, stage, gap, items)));
  node.tabIndex = 0;
  node.setAttribute("role", "region");
  node.setAttribute("aria-label", "Output of " + row.variant);
  draw(row.runs);
  if (row.left) node.append(block("", "quiet", 2, [`… ${row.left.toLocaleString("en")} characters are left out here …`]));
  draw(row.tail);
  if (!row.runs.length && !row.response) node.append(block("", "quiet", 0, ["an empty output"]));
  if (row.response) node.append(block(row.runs.length ? "response" : "", "", 0, [row.response]));
  return node;
}

// ---- what has to be scrolled can be reached by Tab
function scrolls() {
  for (const node of document.querySelectorAll(".wide"))
    if (node.scrollWidth > node.clientWidth) node.tabIndex = 0; else node.removeAttribute("tabindex");
}
addEventListener("resize", scrolls);
document.addEventListener("toggle", scrolls, true);
scrolls();

// ---- on paper everything is open that has no button to open it
const folded = () => document.querySelectorAll("details.facts");
addEventListener("beforeprint", () => { for (const node of folded()) { node.dataset.open = node.open; node.open = true; } });
addEventListener("afterprint", () => { for (const node of folded()) node.open = node.dataset.open === "true"; });
if (data.rows.length) {
  build();
  refresh();
} else $("controls").hidden = true;

(root => {
  const all = (what, within = root) => [...within.querySelectorAll(what)], one = what => root.querySelector(what);
  root.classList.add("smoltraces-on");
  one(".smoltraces-live").hidden = false;
  // JupyterLab takes keys and the focus from what does not ask to keep them
  for (const node of all("input, select, button")) node.setAttribute("data-lm-suppress-shortcuts", "true");
  one(".smoltraces-live").addEventListener("mousedown", event => event.stopPropagation());

  const [problem, variant, only] = all("select"), [back, on] = all("button"), problems = all("details");
  const fits = trace => (!variant.value || trace.dataset.label === variant.value) &&
    (!only.value || trace.dataset.has.split(" ").includes(only.value));
  function show() {
    const kept = problems.map(one => all("article", one).filter(fits).length);
    if (!kept[problem.selectedIndex]) problem.selectedIndex = Math.max(0, kept.findIndex(Boolean));
    problems.forEach((one, i) => {
      problem.options[i].disabled = !kept[i];
      one.hidden = i !== problem.selectedIndex || !kept[i];
      one.open = true;
      for (const trace of all("article", one)) trace.hidden = !fits(trace);
    });
    const left = kept.filter(Boolean).length;
    one("output").textContent =
      left ? `${kept.reduce((a, b) => a + b)} traces of ${left} problems` : "No trace is like that.";
    back.disabled = !step(-1);
    on.disabled = !step(1);
  }
  function step(by) { // the next problem that has something to show
    let i = problem.selectedIndex + by;
    while (problem.options[i]?.disabled) i += by;
    return problem.options[i];
  }
  for (const select of [problem, variant, only]) select.addEventListener("change", show);
  back.addEventListener("click", () => { step(-1).selected = true; show(); });
  on.addEventListener("click", () => { step(1).selected = true; show(); });
  show();
})(document.currentScript.closest(".smoltraces-explore"));

// a method's buttons in all figures switch together
const buttons = all(".legend button[data-method]"), groups = all(".series, .marks");
const toggles = all(".legend .all");

function setShown(name, shown) {
  buttons.filter((button) => button.dataset.method === name)
    .forEach((button) => button.setAttribute("aria-pressed", String(shown)));
  groups.filter((group) => group.dataset.method === name).forEach((group) => group.classList.toggle("off", !shown));
  all(".chart").forEach((figure) => {
    figure.classList.toggle("few", all(".series:not(.off)", figure).length <= Number(figure.dataset.most));
  });
  const some = buttons.some((button) => button.getAttribute("aria-pressed") === "true");
  toggles.forEach((toggle) => { toggle.textContent = some ? "Hide all" : "Show all"; });
}

function bringOut(figure, name) {
  const shown = all(".series:not(.off)", figure).some((group) => group.dataset.method === name);
  figure.classList.toggle("out", shown);
  all("[data-method]", figure).forEach((part) => part.classList.toggle("on", part.dataset.method === name));
}

all(".chart").forEach((figure) => all("[data-method]", figure).forEach((part) => {
  ["pointerenter", "focus"].forEach((kind) => part.addEventListener(kind, () => bringOut(figure, part.dataset.method)));
  ["pointerleave", "blur"].forEach((kind) => part.addEventListener(kind, () => bringOut(figure, null)));
}));
buttons.forEach((button) => button.addEventListener("click", () => {
  setShown(button.dataset.method, button.getAttribute("aria-pressed") !== "true");
  bringOut(button.closest(".chart"), button.dataset.method);
}));
toggles.forEach((toggle) => toggle.addEventListener("click", () => {
  const shown = toggle.textContent === "Show all";
  new Set(buttons.map((button) => button.dataset.method)).forEach((name) => setShown(name, shown));
}));
// a line is easier to rest on when it is wide
groups.forEach((group) => all(".line", group).forEach((line) => {
  const target = line.cloneNode();
  target.setAttribute("class", "target");
  group.append(target);
}));

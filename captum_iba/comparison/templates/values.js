// sorting: undefined values last in either direction; methods that could not run are in a body of their own
const headings = all("#table thead th");
const names = new Intl.Collator("en", { numeric: true });

function compareCells(column, sign) {
  return (one, other) => {
    const [a, b] = [one, other].map((row) => row.children[column].dataset.value);
    if (column === 0) return sign * names.compare(a, b);
    const [x, y] = [a, b].map((text) => Number(text.replace("inf", "Infinity")));
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return sign * (x - y || 0);
  };
}

headings.forEach((heading, column) => find("button", heading).addEventListener("click", () => {
  const order = heading.getAttribute("aria-sort");
  const next = order === "none" ? heading.dataset.first : order === "ascending" ? "descending" : "ascending";
  headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? next : "none"));
  const body = find("#ran");
  body.append(...[...body.rows].sort(compareCells(column, next === "ascending" ? 1 : -1)));
  const name = find("button", heading).firstChild.textContent.trim();
  find("#sorted").textContent = `Sorted by ${name}, ${next}.`;
}));

// a hint where the table is wider than the page, and a shadow where more of it is to the right
const box = find(".scroll");

function showSideways() {
  const hidden = box.scrollWidth - box.clientWidth;
  find(".sideways").hidden = hidden <= 1;
  box.classList.toggle("more", hidden - box.scrollLeft > 1);
}

box.addEventListener("scroll", showSideways);
window.addEventListener("resize", showSideways);
showSideways();

// paired differences
function difference(metric, method, base) {
  const [i, j] = [method, base].sort((a, b) => a - b);
  const [, , mean, error, n] = data.pairs[metric].find((pair) => pair[0] === i && pair[1] === j);
  return { name: data.ran[method], mean: mean === null ? null : method === i ? mean : -mean, error, n };
}

// to the error's second significant digit, as in the table
function inDigits(value, error) {
  if (!error || error < 1e-5) return value.toPrecision(3);
  return value.toFixed(Math.max(0, 1 - Math.floor(Math.log10(error))));
}

function verdict(found, higher) {
  if (found.mean === null) return "no example in common";
  if (higher === null) return "";
  if (!(Math.abs(found.mean) > 2 * found.error) || found.error === null) return "not told apart";
  return (found.mean > 0) === higher ? "better" : "worse";
}

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text ?? "";
  if (className) made.className = className;
  return made;
}

function track(found, widest, word) {
  const made = element("div", "", word === "better" || word === "worse" ? "track" : "track level");
  if (found.mean === null) return made;
  const at = (value) => 50 + (48 * value) / widest;
  const bar = element("i"), dot = element("b");
  bar.style.left = `${at(found.mean - (found.error ?? 0))}%`;
  bar.style.width = `${(96 * (found.error ?? 0)) / widest}%`;
  dot.style.left = `${at(found.mean)}%`;
  made.append(bar, dot);
  return made;
}

function differenceRow(found, widest, higher) {
  const row = element("tr"), value = element("td"), drawn = element("td"), word = verdict(found, higher);
  const heading = element("th"), examples = `${found.n} example${found.n === 1 ? "" : "s"}`;
  // a line may end inside a long name
  found.name.split(/(?<=[a-z0-9])(?=[A-Z])|(?<=[/_.-])/).forEach((part) => heading.append(part, element("wbr")));
  heading.scope = "row";
  value.textContent = found.mean === null ? "–"
    : `${found.mean > 0 ? "+" : ""}${inDigits(found.mean, found.error)} ± ${found.error === null ? "–" : inDigits(found.error, found.error)}`;
  value.append(element("small", word && found.n ? `${word}, ${examples}` : word || examples));
  drawn.append(track(found, widest, word));
  row.append(heading, value, drawn);
  return row;
}

function showDifferences() {
  const base = Number(find("#compare-method").value), metric = Number(find("#compare-metric").value);
  const { name, higher } = data.metrics[metric], sign = higher === false ? 1 : -1;
  const found = data.ran.map((_, i) => i).filter((i) => i !== base).map((i) => difference(metric, i, base));
  const place = (one) => (one.mean === null ? Infinity : sign * one.mean);
  found.sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b)));
  const widest = Math.max(...found.map((one) => Math.abs(one.mean ?? 0) + (one.error ?? 0))) || 1;
  const better = higher === null ? "" : `; ${higher ? "above" : "below"} zero is better`;
  find("#differences caption").textContent = `${name}: method minus ${data.ran[base]}${better}`;
  find("#differences tbody").replaceChildren(...found.map((one) => differenceRow(one, widest, higher)));
}

if (find("#compare")) {
  ["#compare-method", "#compare-metric"].forEach((id) => find(id).addEventListener("change", showDifferences));
  showDifferences();
}

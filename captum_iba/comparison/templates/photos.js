// one method's maps at a time, so that the others need no memory as pictures
const radios = all("#switch input");

function showPhoto(figure, map, method) {
  const picture = find(".map", figure), scale = find(".scale", figure);
  picture.hidden = scale.hidden = !map;
  find(".no-map", figure).hidden = Boolean(map);
  if (!map) {
    picture.removeAttribute("src");
    return;
  }
  picture.src = `data:image/png;base64,${map[0]}`;
  picture.alt = `heat map of ${method.name}`;
  find(".low", figure).textContent = map[1];
  find(".high", figure).textContent = map[2];
  find(".unit", figure).textContent = method.unit;
}

function showMethod(place) {
  const method = data.mapped[place];
  radios[place].checked = true;
  find("#shown").textContent = method.name;
  all("#grid .photo").forEach((figure, i) => showPhoto(figure, data.maps[place][i], method));
  const strip = find("#switch .strip"), label = radios[place].parentElement;
  strip.scrollLeft = label.offsetLeft - (strip.clientWidth - label.clientWidth) / 2;
}

function step(by) {
  const now = radios.findIndex((radio) => radio.checked);
  showMethod((now + by + radios.length) % radios.length);
}

if (radios.length) {
  radios.forEach((radio, place) => radio.addEventListener("change", () => showMethod(place)));
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const busy = event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || event.defaultPrevented;
    // these use the keys themselves: the table scrolls, sliders and lists move, radio buttons switch already
    if (!by || busy || event.target.closest(".scroll, input:not([type=checkbox]), select")) return;
    event.preventDefault();
    step(by);
  });
  const setOpacity = () => find("#grid").style.setProperty("--opacity", find("#opacity").value / 100);
  find("#opacity").addEventListener("input", setOpacity);
  setOpacity();
  if (find("#boxes")) {
    const setBoxes = () => find("#grid").classList.toggle("with-boxes", find("#boxes").checked);
    find("#boxes").addEventListener("change", setBoxes);
    setBoxes();
  }
  showMethod(Math.max(0, radios.findIndex((radio) => radio.checked)));
}

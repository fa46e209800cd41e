// lines of methods that are not wanted are hidden in all texts
all("#lines input").forEach((box) => {
  const show = () => all(`#texts .line[data-place="${box.value}"]`).forEach((line) => { line.hidden = !box.checked; });
  box.addEventListener("change", show);
  show();
});

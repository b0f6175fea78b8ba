(() => {
  "use strict";
  const find = (query) => document.querySelector(query);
  document.querySelectorAll("[data-script]").forEach((element) => { element.hidden = false; });

  const search = find("#search");
  if (search) {
    const rows = [...document.querySelectorAll(".rows li")];
    const groups = [...document.querySelectorAll(".stratum")];
    search.addEventListener("input", () => {
      const wanted = search.value.trim().toLowerCase();
      rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
      groups.forEach((group) => { group.hidden = !group.querySelector(".rows li:not([hidden])"); });
      if (wanted) document.querySelectorAll("#examples details").forEach((more) => { more.open = true; });
      find("#found").textContent = wanted ? `${rows.filter((row) => !row.hidden).length} rows` : "";
    });
  }

  const map = find("#rows-map");
  if (!map) return;
  const data = JSON.parse(find("#map-data").textContent);
  const tip = find("#map-tip"), ring = map.querySelector(".ring"), choice = find("#map-stratum");
  const wanted = () => (choice ? choice.value : "");
  const shown = (index) => wanted() === "" || data.stratum[index] === Number(wanted());
  if (choice) choice.addEventListener("change", () => {
    map.classList.toggle("focus", wanted() !== "");
    map.querySelectorAll("path").forEach((path) => { path.classList.toggle("on", path.dataset.s === wanted()); });
  });
  const leave = () => { tip.hidden = true; ring.setAttribute("r", 0); };
  map.addEventListener("pointerleave", leave);
  map.addEventListener("pointermove", (event) => {
    const box = map.getBoundingClientRect(), scale = map.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = -1, nearest = 15 * scale;
    data.spots.forEach((spot, index) => {
      const away = Math.hypot(spot[0] - x, spot[1] - y);
      if (away < nearest && shown(index)) { nearest = away; best = index; }
    });
    if (best < 0) { leave(); return; }
    const [px, py] = data.spots[best];
    ring.setAttribute("cx", px);
    ring.setAttribute("cy", py);
    ring.setAttribute("r", 7 * scale);
    tip.textContent = `${data.names[data.stratum[best]]} \u00b7 score ${data.score[best]} \u00b7 ${data.kept[best] ? "kept" : "dropped"}`;
    tip.hidden = false;
    tip.style.left = `${Math.min(px / scale, box.width - tip.offsetWidth)}px`;
    tip.style.top = `${py / scale + 14}px`;
  });
})();

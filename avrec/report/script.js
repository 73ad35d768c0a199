"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// Without scripts all panels are shown, one below the other.
for (const box of document.querySelectorAll("[data-tabs]")) {
  const panels = [...box.querySelectorAll(":scope > .panel")];
  if (panels.length < 2) continue;
  const list = document.createElement("div");
  list.className = "tabs";
  list.setAttribute("role", "tablist");
  const same = name => panels.filter(p => p.dataset.tab === name).length > 1;
  const seen = {};
  const tabs = panels.map((panel, n) => {
    const tab = document.createElement("button"), name = panel.dataset.tab;
    seen[name] = (seen[name] || 0) + 1;
    tab.textContent = same(name) ? `${name} ${seen[name]}` : name;
    tab.setAttribute("role", "tab");
    panel.setAttribute("role", "tabpanel");
    tab.onclick = () => show(n);
    tab.onkeydown = e => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
      if (step) { const next = (n + step + tabs.length) % tabs.length; show(next); tabs[next].focus(); }
    };
    list.append(tab);
    return tab;
  });
  const show = chosen => panels.forEach((panel, n) => {
    panel.hidden = n !== chosen;
    tabs[n].setAttribute("aria-selected", n === chosen);
    tabs[n].tabIndex = n === chosen ? 0 : -1;
  });
  box.prepend(list);
  show(0);
}

const plane = document.getElementById("plane");
if (plane) {
  const svg = plane.querySelector("svg"), tip = document.getElementById("tip"), mini = tip.querySelector(".mini");
  const legend = [...document.querySelectorAll(".legend button")];
  const spot = document.getElementById("spot"), dot = document.getElementById("spot-dot");
  let only = null, shown = null;
  const hide = () => { tip.hidden = true; spot.setAttribute("d", ""); dot.setAttribute("d", ""); };
  const open = () => data.points.filter(p => only === null || p[3] === only);
  const look = e => {
    const matrix = svg.getScreenCTM(), at = new DOMPoint(e.clientX, e.clientY).matrixTransform(matrix.inverse());
    let best = null, least = 28 / matrix.a;
    for (const p of open()) {
      const far = Math.hypot(p[0] - at.x, p[1] - at.y);
      if (far < least) { best = p; least = far; }
    }
    show(best);
  };
  const show = point => {
    shown = point;
    if (!point) return hide();
    const [x, y, title, group, cell] = point, d = `M${x} ${y}h0`;
    spot.setAttribute("d", d);
    dot.setAttribute("d", d);
    dot.setAttribute("class", `dots on c${group}`);
    tip.querySelector("span").textContent = title;
    tip.querySelector("small").textContent = legend[group].querySelector("span").textContent;
    mini.style.display = cell ? "block" : "none";
    if (cell) {
      mini.style.width = `${cell[2]}px`;
      mini.style.height = `${cell[3]}px`;
      mini.style.backgroundPosition = `-${cell[0]}px -${cell[1]}px`;
    }
    tip.hidden = false;
    const box = plane.getBoundingClientRect(), place = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
    const left = place.x - box.left, top = place.y - box.top;
    tip.style.left = `${Math.max(4, Math.min(left + 12, box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${top > tip.offsetHeight + 16 ? top - tip.offsetHeight - 12 : top + 14}px`;
  };
  svg.addEventListener("pointermove", look);
  svg.addEventListener("pointerdown", look);
  svg.addEventListener("keydown", e => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key], along = open().sort((p, q) => p[0] - q[0] || p[1] - q[1]);
    if (step) show(along[(along.indexOf(shown) + step + along.length) % along.length]);
    if (e.key === "Escape") show(null);
  });
  svg.addEventListener("blur", () => show(null));
  svg.addEventListener("pointerleave", e => { if (e.pointerType === "mouse") hide(); });
  legend.forEach((button, n) => button.onclick = () => {
    only = only === n ? null : n;
    hide();
    svg.classList.toggle("picked", only !== null);
    legend.forEach((b, m) => b.setAttribute("aria-pressed", m === only));
    svg.querySelectorAll("[data-group]").forEach((path, m) => path.classList.toggle("on", m === only));
  });
}

const audio = document.getElementById("audio");
for (const button of document.querySelectorAll(".play")) {
  button.onclick = () => {
    document.getElementById("playing").textContent = button.dataset.title;
    audio.parentElement.hidden = false;
    audio.src = data.sounds[button.dataset.sound];
    // A second tap interrupts the first, which then rejects.
    audio.play().catch(() => {});
  };
}

"use strict";
(async () => {
  const read = (id) => document.getElementById(id).textContent;
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); };
  let draw = () => {};
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); draw(); });
  system.addEventListener("change", () => { label(); draw(); });
  label();

  const packed = read("plotly");
  if (!packed || typeof DecompressionStream === "undefined") return;
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);

  const palette = JSON.parse(read("palette"));
  const figures = JSON.parse(read("figures"));
  const resolve = (value, colours) => {
    if (Array.isArray(value)) return value.map((v) => (v && typeof v === "object" ? resolve(v, colours) : v));
    return Object.fromEntries(Object.entries(value).map(([key, v]) => {
      if (key.endsWith("color") && typeof v === "string" && v[0] === "@") return [key, colours[v.slice(1)]];
      return [key, v && typeof v === "object" ? resolve(v, colours) : v];
    }));
  };
  draw = () => {
    const theme = dark();
    const style = getComputedStyle(root);
    const named = (name) => style.getPropertyValue(name).trim();
    const colours = { ground: named("--ground"), ink: named("--ink"), grid: named("--line"), muted: theme ? "#59616b" : "#b4b9c1" };
    (theme ? palette.dark : palette.light).forEach((colour, i) => { colours[i] = colour; });
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = resolve(figures[place.dataset.figure], colours);
      Plotly.react(place, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    }
  };
  draw();
  document.body.dataset.drawn = "true";
})();

"use strict";
const dark = window.matchMedia("(prefers-color-scheme: dark)"), narrow = window.matchMedia("(max-width: 640px)");
// Pixels of a colour bar below a figure, and letters of a name beside it, on a phone.
const BELOW = 72, LETTERS = 16;
const looks = $themes, drawn = new Set();
const current = () => (dark.matches ? looks.dark : looks.light);

// The library is text until the first figure comes into view: the page can be read before it is understood.
function library() {
  if (!window.Plotly) {
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  }
  return window.Plotly;
}

function dressed(figure, look) {
  const phone = narrow.matches;
  const below = { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom", len: 0.9 };
  const bar = trace => phone
    ? { ...trace.colorbar, ...below, title: { ...trace.colorbar.title, side: "bottom", text: trace.colorbar.title?.text?.replace($away, "") }, tickcolor: look.ink }
    : { ...trace.colorbar, tickcolor: look.ink };
  const barred = figure.data.some(trace => looks.light[trace.meta] && trace.showscale !== false);
  const data = figure.data.map(trace => looks.light[trace.meta]
    ? { ...trace, colorscale: look[trace.meta], colorbar: bar(trace) } : trace);
  const layout = { ...figure.layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
    font: { color: look.ink, size: 12, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: look.hover, font: { color: look.ink }, align: "left" } };
  if (phone) layout.margin = { ...layout.margin, l: 40, r: 8 };
  if (phone && barred) { layout.margin.b = (layout.margin.b ?? 64) + BELOW; layout.height = (layout.height ?? $height) + BELOW; }
  for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name))
    layout[name] = { ...layout[name], gridcolor: look.grid, zerolinecolor: look.grid, linecolor: look.grid, automargin: true };
  if (phone) layout.yaxis = shortened(layout.yaxis ?? {}, data);
  return [data, layout];
}

// A phone has no room for long names beside a figure: they are cut, and hovering tells them whole.
function shortened(axis, data) {
  const names = axis.ticktext ?? [...new Set(data.flatMap(trace => trace.y ?? []))].filter(name => typeof name === "string");
  if (!names.some(name => name.length > LETTERS)) return axis;
  const cut = names.map(name => (name.length > LETTERS ? name.slice(0, LETTERS - 1) + "…" : name));
  return { ...axis, tickmode: "array", tickvals: axis.tickvals ?? names, ticktext: cut };
}

function draw(plot, look, printed = false) {
  const figure = JSON.parse(document.getElementById(plot.id + "-data").textContent);
  const [data, layout] = dressed(figure, look);
  if (printed) sized(plot, layout); else plot.style.zoom = "";
  if (!drawn.has(plot)) plot.replaceChildren();
  library().react(plot, data, layout, $config);
  drawn.add(plot);
}

// Paper cannot be scrolled: a figure that needs more than its width (690px fits A4 and Letter) is drawn at that and made smaller.
function sized(plot, layout) {
  const needed = Math.max(690, parseInt(plot.style.minWidth, 10));
  Object.assign(layout, { width: needed, autosize: false });
  plot.style.zoom = String(690 / needed);
}

const plots = [...document.querySelectorAll(".plot")];
const coming = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) { coming.unobserve(target); draw(target, current()); }
}, { rootMargin: "300px" });
for (const plot of plots) coming.observe(plot);
const again = () => { for (const plot of drawn) draw(plot, current()); };
dark.addEventListener("change", again);
// A colour bar that moves below leaves its old marks behind: the figure is drawn from nothing.
narrow.addEventListener("change", () => { for (const plot of drawn) { library().purge(plot); draw(plot, current()); } });
const shown = plot => !plot.closest("details:not([open])");
window.addEventListener("beforeprint", () => { for (const plot of plots.filter(shown)) draw(plot, looks.light, true); });
window.addEventListener("afterprint", again);

// The contents: closed where they would cover the page, and the section in view is named in them.
const contents = document.getElementById("contents"), wide = window.matchMedia("(min-width: 1160px)");
const fold = () => { contents.open = wide.matches; };
fold();
wide.addEventListener("change", fold);
contents.addEventListener("click", event => { if (event.target.closest("a") && !wide.matches) contents.open = false; });
const links = new Map([...contents.querySelectorAll("a")].map(link => [link.hash.slice(1), link]));
const reading = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) links.get(target.id)?.classList.toggle("current", isIntersecting);
}, { rootMargin: "-10% 0px -70% 0px" });
for (const section of document.querySelectorAll("section")) reading.observe(section);
// A link to a folded figure opens it.
function unfold() {
  const there = location.hash && document.getElementById(location.hash.slice(1));
  const closed = there && there.closest("details:not([open])");
  if (closed) { closed.open = true; there.scrollIntoView(); }
}
window.addEventListener("hashchange", unfold);
unfold();
document.documentElement.dataset.ready = String(plots.length);

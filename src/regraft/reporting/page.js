"use strict";
const dark = window.matchMedia("(prefers-color-scheme: dark)"), narrow = window.matchMedia("(max-width: 640px)");
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
  const below = { orientation: "h", x: 0.5, xanchor: "center", y: -0.08, yanchor: "top", len: 0.9, lenmode: "fraction" };
  const bar = trace => phone
    ? { ...trace.colorbar, ...below, title: { ...trace.colorbar.title, side: "bottom" }, tickcolor: look.ink }
    : { ...trace.colorbar, tickcolor: look.ink };
  const data = figure.data.map(trace => looks.light[trace.meta]
    ? { ...trace, colorscale: look[trace.meta], colorbar: bar(trace) } : trace);
  const layout = { ...figure.layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
    font: { color: look.ink, size: 12, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: look.hover, font: { color: look.ink }, align: "left" } };
  for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name))
    layout[name] = { ...layout[name], gridcolor: look.grid, zerolinecolor: look.grid, linecolor: look.grid, automargin: true };
  return [data, layout];
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
narrow.addEventListener("change", again);
const open = plot => !plot.closest("details:not([open])");
window.addEventListener("beforeprint", () => { for (const plot of plots.filter(open)) draw(plot, looks.light, true); });
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

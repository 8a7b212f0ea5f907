"""Style sheet of the reports (light, dark, print, phones), and a script that shows values under the pointer."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f6f7f9; --card: #ffffff; --text: #1a1d23; --muted: #59616d; --rule: #dfe3e8; --soft: #eef1f4;
  --link: #0b5cad; --good: #0d6e4b; --good-soft: #dff3ea; --fair: #7d5200; --fair-soft: #fbefd5;
  --bad: #b3261e; --bad-soft: #fce4e1;
  --s0: #0067ac; --s1: #c54b06; --s2: #00785a; --s3: #a33d86; --s4: #2587be; --s5: #916400; --s6: #5d4dc0;
  --s7: #626a75;
  --shadow: 0 1px 2px rgb(16 24 40 / 5%); --edge: rgb(16 24 40 / 22%);
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1318; --card: #171c23; --text: #e7eaee; --muted: #a2abb8; --rule: #2b323c; --soft: #202731;
    --link: #7cbcf5; --good: #5fd3a3; --good-soft: #12352a; --fair: #f0c060; --fair-soft: #3a2e12;
    --bad: #ff948a; --bad-soft: #43201d;
    --s0: #58b2f2; --s1: #ff9350; --s2: #43d0a3; --s3: #e88dcb; --s4: #9fd7ff; --s5: #e9b949; --s6: #aca0ff;
    --s7: #a2abb8;
    --shadow: none; --edge: rgb(0 0 0 / 60%);
  }
}
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 3.5rem; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 70rem; margin: 0 auto; padding: 2.25rem clamp(1rem, 4vw, 2.5rem) 4rem; }
a { color: var(--link); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; border-radius: 4px; }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; margin: 0; }
h1 { font-size: clamp(1.6rem, 5vw, 2.25rem); letter-spacing: -.02em; font-weight: 680; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; font-weight: 650; }
h3 { font-size: .95rem; font-weight: 620; }
p { margin: 0; }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.eyebrow { color: var(--muted); font-size: .82rem; margin-bottom: .35rem; overflow-wrap: anywhere; }
.headline { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem .8rem; }
.about { color: var(--muted); margin-top: .5rem; max-width: 62rem; }
.lead { color: var(--muted); max-width: 48rem; margin-top: .35rem; }
.said { color: var(--muted); max-width: 54rem; font-size: .86rem; }
.pill {
  display: inline-block; font-size: .78rem; font-weight: 600; line-height: 1.3; padding: .14rem .55rem;
  border-radius: 99px; background: var(--soft); color: var(--muted); white-space: nowrap;
}
.pill.good { background: var(--good-soft); color: var(--good); }
.pill.fair { background: var(--fair-soft); color: var(--fair); }
.pill.bad { background: var(--bad-soft); color: var(--bad); }
nav {
  position: sticky; top: 0; z-index: 3; background: var(--ground); border-bottom: 1px solid var(--rule);
  margin: 1.6rem 0 0;
}
nav ul { display: flex; gap: 0 1.25rem; list-style: none; margin: 0; padding: 0 2px; overflow-x: auto;
  scrollbar-width: none; }
nav a { display: block; padding: .6rem 0; font-size: .88rem; color: var(--muted); text-decoration: none;
  white-space: nowrap; }
nav a:hover { color: var(--text); text-decoration: underline; }
section { margin-top: 2.8rem; }
section > * + * { margin-top: .8rem !important; }
section > h2 + .lead { margin-top: .35rem !important; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.6rem; }
.stat { flex: 1 1 13.5rem; }
.cards.by-three .stat { flex-basis: 17rem; }
.stat .pill { white-space: normal; border-radius: .8rem; }
.stat, .card {
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px; box-shadow: var(--shadow);
  min-width: 0;
}
.stat { padding: .9rem 1.05rem 1rem; display: flex; flex-direction: column; gap: .25rem; }
.stat .label { font-size: .84rem; color: var(--muted); }
.stat .value { font-size: 1.4rem; font-weight: 650; letter-spacing: -.015em; line-height: 1.25; }
.stat .error-of { font-size: .95rem; font-weight: 500; letter-spacing: 0; color: var(--muted); white-space: nowrap; }
.stat .unit { font-size: .84rem; font-weight: 450; letter-spacing: 0; color: var(--muted); }
.stat .detail { font-size: .84rem; color: var(--muted); line-height: 1.45; }
.note {
  background: var(--soft); border-radius: 10px; padding: .7rem .95rem; font-size: .92rem;
  border-left: 4px solid var(--muted);
}
.note.good { background: var(--good-soft); border-color: var(--good); }
.note.fair { background: var(--fair-soft); border-color: var(--fair); }
.note.bad { background: var(--bad-soft); border-color: var(--bad); }
ul.note { list-style: none; margin: 0; }
header .note { margin-top: 1rem; }
.note li + li { margin-top: .35rem; }
.plain { margin: .5rem 0 0; padding-left: 1.15rem; font-size: .92rem; }
.plain li + li { margin-top: .2rem; }
.missing { color: var(--muted); font-style: italic; }
figure { margin: 0; padding: 1.05rem 1.15rem 1rem; }
figure > h3 + * { margin-top: .7rem !important; }
figcaption { margin-top: .75rem; font-size: .86rem; color: var(--muted); max-width: 54rem; }
.top { align-items: start; }
.two, .three { display: grid; gap: .8rem; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 54rem) {
  .two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
.raster { background: #fff; border-radius: 8px; padding: .5rem; overflow-x: auto; border: 1px solid var(--rule); }
.raster img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.raster img.wide { min-width: 35rem; }
.sideways { display: none; font-size: .8rem; color: var(--muted); margin-top: .35rem; }
/* A shadow marks each side where content is hidden. */
.scroll {
  overflow-x: auto; max-width: 100%; overflow-wrap: break-word; container-type: inline-size;
  background:
    linear-gradient(90deg, var(--card) 40%, transparent) 0 0 / 2.5rem 100% no-repeat local,
    linear-gradient(270deg, var(--card) 40%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
    linear-gradient(90deg, var(--edge), transparent) 0 0 / .8rem 100% no-repeat scroll,
    linear-gradient(270deg, var(--edge), transparent) 100% 0 / .8rem 100% no-repeat scroll;
}
figure .scroll { margin-top: .4rem; }
figure .scroll + .scroll { margin-top: 1.3rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; font-size: .86rem; color: var(--muted); padding: 0 0 .5rem; }
caption > span { display: block; position: sticky; left: 0; width: fit-content; max-width: 100cqi; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; padding: 0; }
th, td { text-align: left; padding: .42rem .9rem .42rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: baseline; }
tbody tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; }
tbody th { min-width: 7.5rem; }
tbody th.number { min-width: 0; }
thead th { color: var(--muted); font-size: .82rem; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; padding: .42rem 0 .42rem 1.1rem; }
.number + :not(.number) { padding-left: 1.3rem; }
tbody td:not(.number) { min-width: 5rem; }
.errors { display: inline-block; text-align: left; padding-left: .3em; }
.strong > * { font-weight: 650; }
.group > * { color: var(--muted); font-size: .82rem; padding-top: .9rem; }
td.number b, b.rare { font-weight: 700; color: var(--bad); }
.better { color: var(--good); } .worse { color: var(--bad); } .same { color: var(--muted); }
td .pill { font-size: .74rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 0 1.6rem;
  margin: 0; font-size: .9rem; }
dl > div { display: flex; justify-content: space-between; gap: 1rem; padding: .35rem 0;
  border-bottom: 1px solid var(--rule); }
dt { color: var(--muted); } dd { margin: 0; text-align: right; overflow-wrap: anywhere; min-width: 0; }
figure details { margin-top: .9rem; }
details { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }
details > summary { cursor: pointer; padding: .75rem 1.1rem; font-weight: 560; font-size: .95rem; }
details > :not(summary) { margin: 0 1.1rem 1rem; }
pre { background: var(--soft); border-radius: 8px; padding: .7rem .9rem; margin: 0; white-space: pre-wrap; }
pre + p, p + pre, pre + pre { margin-top: .6rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--muted);
  font-size: .84rem; }

.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; list-style: none; margin: 0 0 .55rem; padding: 0;
  font-size: .84rem; color: var(--muted); }
.legend li { display: flex; align-items: center; gap: .45rem; }
.legend .key { flex: none; width: 1.5rem; height: .75rem; }
.y-name { color: var(--muted); font-size: .8rem; margin-bottom: .55rem; }
.chart { position: relative; }
.chart svg { display: block; overflow: visible; }
.chart svg svg { overflow: hidden; }
.chart text { font-size: 12px; fill: var(--muted); }
.grid { stroke: var(--rule); stroke-width: 1; shape-rendering: crispEdges; }
.axis { stroke: var(--muted); stroke-width: 1; shape-rendering: crispEdges; }
.line { fill: none; stroke-width: 1.8; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.line.faint { stroke-width: 1; opacity: .38; }
.reference { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.band { stroke: none; opacity: .18; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); }
.s4 { stroke: var(--s4); } .s5 { stroke: var(--s5); } .s6 { stroke: var(--s6); } .s7 { stroke: var(--s7); }
.f0 { fill: var(--s0); } .f1 { fill: var(--s1); } .f2 { fill: var(--s2); } .f3 { fill: var(--s3); }
.f4 { fill: var(--s4); } .f5 { fill: var(--s5); } .f6 { fill: var(--s6); } .f7 { fill: var(--s7); }
.d0 { stroke-dasharray: none; } .d1 { stroke-dasharray: 7 4; } .d2 { stroke-dasharray: 2 4; }
.d3 { stroke-dasharray: 9 3 2 3; } .d4 { stroke-dasharray: 12 4 2 4 2 4; }
.marker { stroke: var(--card); stroke-width: 1.5; }
.chart .name { fill: var(--text); font-size: 13px; }
.chart .figure { fill: var(--text); font-size: 13px; }
.error { stroke-width: 2.5; }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: 1rem 1.1rem; }
.multiples.few { grid-template-columns: repeat(auto-fill, minmax(min(15rem, 45%), 1fr)); }
.multiples > div { min-width: 0; }
.multiples p { display: flex; justify-content: space-between; gap: .5rem; font-size: .8rem; margin-bottom: .3rem; }
.multiples p span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.multiples p span:last-child { color: var(--muted); white-space: nowrap; }
.multiples svg { display: block; width: 100%; background: var(--soft); border-radius: 6px; }
.tolerance { fill: var(--muted); opacity: .22; }
.expected { stroke: var(--muted); stroke-width: 1; vector-effect: non-scaling-stroke; stroke-dasharray: 4 3;
  fill: none; }
.bar { fill: var(--s0); } .bar.out { fill: var(--s1); }
.cross { stroke: var(--muted); stroke-width: 1; pointer-events: none; }
.readout {
  position: absolute; z-index: 2; pointer-events: none; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px;
  box-shadow: 0 4px 14px rgb(0 0 0 / 16%); padding: .4rem .6rem; font-size: .8rem; line-height: 1.4;
  white-space: nowrap; top: .2rem;
}
.readout b { display: block; font-weight: 600; }
@media (max-width: 40rem) {
  main { padding-top: 1.4rem; }
  .cards { gap: .6rem; }
  .stat, .cards.by-three .stat { flex-basis: 9.6rem; } .stat { padding: .75rem .85rem .85rem; }
  .stat .value { font-size: 1.18rem; }
  figure { padding: .9rem .9rem .85rem; }
  table { font-size: .84rem; } th, td { padding-right: .6rem; } .number { padding-left: .8rem; padding-right: 0; }
  tbody th { min-width: 6.5rem; }
  /* The first column stays visible while a table is scrolled. */
  .scroll tr > :first-child { position: sticky; left: 0; z-index: 1; background: var(--card); }
  .sideways { display: block; }
}
@media print {
  :root { --ground: #fff; --shadow: none; }
  nav { display: none; } main { max-width: none; padding: 0; }
  .card, .stat, tr { break-inside: avoid; } body { font-size: 10pt; }
  .scroll, .raster { overflow: visible; } .raster img.wide { min-width: 0; } .sideways { display: none; }
}
"""

# Optional: shows the values of curves under the pointer, from the points of their polylines.
SCRIPT = """
for (const chart of document.querySelectorAll(".chart[data-x]")) {
  const [x0, x1] = chart.dataset.x.split(" ").map(Number), [y0, y1] = chart.dataset.y.split(" ").map(Number);
  const log = "log" in chart.dataset, svg = chart.querySelector("svg"), inner = svg.querySelector("svg");
  const height = inner.viewBox.baseVal.height, lines = [...inner.querySelectorAll("polyline[data-name]")];
  const show = v => {
    const a = Math.abs(v);
    if (a >= 1e4) return Math.round(v).toLocaleString("en");
    return a && a < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(5));
  };
  let box, cross;
  const leave = () => { box?.remove(); cross?.remove(); box = cross = undefined; };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", event => {
    const area = inner.getBoundingClientRect(), at = (event.clientX - area.left) / area.width * 1000;
    if (at < 0 || at > 1000) { leave(); return; }
    if (!box) {
      box = chart.appendChild(document.createElement("div"));
      box.className = "readout";
      cross = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "line"));
      cross.setAttribute("class", "cross");
    }
    const rows = [], distance = p => Math.abs(p.x - at);
    let nearest;
    for (const line of lines) {
      const points = [...line.points];
      if (!points.length || at > points.at(-1).x + 25 || at < points[0].x - 25) continue;
      const p = points.reduce((a, b) => distance(b) < distance(a) ? b : a);
      if (!nearest || distance(p) < distance(nearest)) nearest = p;
      const share = 1 - p.y / height, y = log ? y0 * (y1 / y0) ** share : y0 + (y1 - y0) * share;
      rows.push(line.dataset.name + "  " + show(y));
    }
    if (!nearest) { leave(); return; }
    cross.setAttribute("x1", nearest.x / 10 + "%"); cross.setAttribute("x2", nearest.x / 10 + "%");
    cross.setAttribute("y1", 0); cross.setAttribute("y2", height);
    const head = document.createElement("b");
    // Points are written with four digits.
    head.textContent = chart.dataset.xname + " " + show(+(x0 + (x1 - x0) * nearest.x / 1000).toPrecision(4));
    box.replaceChildren(head, ...rows.map(text => {
      const row = document.createElement("div"); row.textContent = text; return row;
    }));
    const left = area.left - chart.getBoundingClientRect().left + nearest.x / 1000 * area.width;
    box.style.left = Math.max(0, nearest.x < 500 ? left + 12 : left - 12 - box.offsetWidth) + "px";
  });
}
"""

// What pages of ours draw with: elements, tokens, curves, graphs. All text goes in as text.
"use strict";
const SVG = "http://www.w3.org/2000/svg";

function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

function draw(tag, options = {}, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(options)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}

const shown = (value) =>
  value === null || value === undefined ? "" : typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(4)) : String(value);

function summary(lines) {
  const list = make("dl");
  for (const [name, value] of lines) list.append(make("dt", {}, name), make("dd", {}, shown(value)));
  return list;
}

function graph({ nodes, edges }) {
  const columns = Math.max(...nodes.map((node) => node.depth)) + 1;
  const counts = Array(columns).fill(0);
  for (const node of nodes) node.at = [(columns - 1 - node.depth) * 230 + 10, counts[node.depth]++ * 64 + 10];
  const image = draw("svg", { width: columns * 230, height: Math.max(...counts) * 64 + 10, role: "img", "aria-label": "lineage" });
  for (const [from, to] of edges) {
    const [x1, y1] = nodes[from].at, [x2, y2] = nodes[to].at;
    image.append(draw("path", { class: "edge", d: `M${x1 + 200} ${y1 + 23} C${x1 + 215} ${y1 + 23} ${x2 - 15} ${y2 + 23} ${x2} ${y2 + 23}` }));
  }
  for (const node of nodes) {
    const [x, y] = node.at;
    image.append(draw("rect", { class: "box", x, y, width: 200, height: 46, rx: 4 }));
    image.append(draw("text", { x: x + 8, y: y + 18 }, node.title.slice(0, 32)), draw("text", { x: x + 8, y: y + 36 }, node.text.slice(0, 32)));
    image.lastChild.append(draw("title", {}, `${node.title}\n${node.about}`));
  }
  return image;
}

function curve({ name, points }) {
  const [width, height, left] = [640, 200, 80];
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - 10);
  const y = (value) => height - 20 - ((value - y0) / (y1 - y0 || 1)) * (height - 40);
  const image = draw("svg", { width, height, role: "img", "aria-label": name });
  image.append(draw("line", { class: "axis", x1: left, y1: height - 20, x2: width - 10, y2: height - 20 }));
  image.append(draw("polyline", { class: "curve", points: points.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
  // numbers grow away from the picture's edges, which would cut them
  for (const value of [y0, y1]) image.append(draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, shown(value)));
  for (const [value, anchor] of [[x0, "start"], [x1, "end"]]) image.append(draw("text", { x: x(value), y: height - 4, "text-anchor": anchor }, shown(value)));
  image.append(draw("text", { x: left, y: 12 }, name));
  return image;
}

function tokens(block, about) {
  const text = make("pre");
  for (const [words, ids, weight, role] of block.pieces) {
    const kind = weight === 0 ? "w0" : weight < 0 ? "wn" : weight === 1 ? "w1" : weight < 1 ? "wl" : "wh";
    words.forEach((word, index) => {
      const token = make("span", { class: `t ${kind}` }, word);
      token.title = `id ${ids[index].join(" ")}, weight ${weight}, ${role || "nobody"}, ${block.place}`;
      token.addEventListener("mouseenter", () => (about.textContent = token.title));
      text.append(token);
    });
  }
  return text;
}

function bar({ total, segments }) {
  const image = draw("svg", { width: 600, height: 26, viewBox: "0 0 600 26", role: "img", "aria-label": "fill of the bin" });
  image.append(draw("rect", { class: "rest", x: 0, y: 2, width: 600, height: 22 }));
  let at = 0;
  segments.forEach(([length, title], index) => {
    const part = draw("rect", { class: `segment s${index % 2}`, x: (at / total) * 600, y: 2, width: (length / total) * 600, height: 22 });
    part.append(draw("title", {}, title));
    image.append(part);
    at += length;
  });
  return image;
}

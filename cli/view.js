// The page of `postmill view`: everything is drawn from one block of data, and all text goes in as text.
"use strict";
const ROW = 26;
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
  const [width, height, left] = [640, 200, 60];
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - 10);
  const y = (value) => height - 20 - ((value - y0) / (y1 - y0 || 1)) * (height - 40);
  const image = draw("svg", { width, height, role: "img", "aria-label": name });
  image.append(draw("line", { class: "axis", x1: left, y1: height - 20, x2: width - 10, y2: height - 20 }));
  image.append(draw("polyline", { class: "curve", points: points.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
  for (const value of [y0, y1]) image.append(draw("text", { x: 4, y: y(value) + 4 }, shown(value)));
  for (const value of [x0, x1]) image.append(draw("text", { x: x(value) - 8, y: height - 4 }, shown(value)));
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

function table(data) {
  const { columns, details } = data;
  const count = columns.length ? columns[0].data.length : 0;
  let order = Array.from({ length: count }, (_, index) => index);
  let chosen = -1, sorted = -1, up = true;
  const layout = `grid-template-columns: ${columns.map((column) => (column.wide ? "minmax(120px, 3fr)" : "minmax(50px, 1fr)")).join(" ")}`;
  const list = make("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": data.name });
  const detail = make("div", { class: "detail" }, "Choose a row.");
  const space = make("div");
  const sheet = [];
  const grid = (node) => { node.style.gridTemplateColumns = layout.split(": ")[1]; return node; };

  function choose(index) {
    chosen = index;
    paint();
    const found = details[index];
    detail.replaceChildren();
    const about = make("p", { class: "about", "aria-live": "polite" });
    detail.append(about);
    if (!found) {
      detail.append(data.beyond || "This row has no details in this page.");
      return;
    }
    for (const block of found) {
      if (block.title) detail.append(make("h2", {}, block.title));
      if (block.pieces) detail.append(tokens(block, about));
      else if (block.segments) detail.append(bar(block));
      else if (block.lines) detail.append(summary(block.lines));
      else detail.append(make("pre", {}, block.text));
    }
  }

  function paint() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
    const last = Math.min(order.length, first + Math.ceil(list.clientHeight / ROW) + 10);
    for (const node of sheet.splice(0)) node.remove();
    for (let place = first; place < last; place++) {
      const index = order[place];
      const row = make("div", { class: "row", role: "option", "aria-selected": String(index === chosen), onclick: () => choose(index) });
      grid(row).style.top = `${place * ROW}px`;
      for (const column of columns) {
        const value = column.data[index];
        row.append(make("span", { class: typeof value === "number" ? "number" : "" }, column.names ? column.names[value] : shown(value)));
      }
      sheet.push(row);
      list.append(row);
    }
  }

  function arrange() {
    space.style.height = `${order.length * ROW}px`;
    list.scrollTop = 0;
    paint();
  }

  const head = grid(make("div", { class: "head" }));
  columns.forEach((column, number) => {
    head.append(make("button", {
      title: `sort by ${column.name}`,
      onclick: () => {
        up = sorted === number ? !up : true;
        sorted = number;
        const values = column.data;
        order.sort((a, b) => ((values[a] > values[b]) - (values[a] < values[b])) * (up ? 1 : -1) || a - b);
        arrange();
      },
    }, column.name));
  });
  const search = make("input", {
    type: "search", placeholder: "filter rows", "aria-label": "filter rows",
    oninput: () => {
      const wanted = search.value.toLowerCase();
      const all = Array.from({ length: count }, (_, index) => index);
      const fits = (index) => columns.some((column) => String(column.names ? column.names[column.data[index]] : column.data[index]).toLowerCase().includes(wanted));
      order = wanted ? all.filter(fits) : all;
      arrange();
    },
  });
  list.append(space);
  list.addEventListener("scroll", () => requestAnimationFrame(paint));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !order.length) return;
    event.preventDefault();
    const place = Math.min(order.length - 1, Math.max(0, order.indexOf(chosen) + step));
    if (place * ROW < list.scrollTop || (place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = place * ROW - list.clientHeight / 2;
    choose(order[place]);
  });
  const left = make("div", {}, search, head, list);
  const page = make("div", { class: "split" }, left, detail);
  requestAnimationFrame(() => { arrange(); if (count) choose(0); });
  return page;
}

async function start() {
  const packed = document.getElementById("data").textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const data = JSON.parse(text);
  const main = document.getElementById("main");
  const tabs = [];
  for (const one of data.tables) tabs.push([`${one.name} (${one.total.toLocaleString("en")})`, () => [...(one.note ? [make("p", { class: "about" }, one.note)] : []), table(one)]]);
  if (data.curves.length) tabs.push(["curves", () => data.curves.map(curve)]);
  tabs.push(["lineage", () => [graph(data.graph)]]);
  for (const [name, lines] of data.summary) tabs.push([name, () => [summary(lines)]]);
  const bar = make("nav", { role: "tablist" });
  const open = (button, build) => {
    for (const other of bar.children) other.setAttribute("aria-selected", String(other === button));
    main.replaceChildren(...build());
  };
  for (const [name, build] of tabs) {
    const button = make("button", { role: "tab", "aria-selected": "false", onclick: () => open(button, build) }, name);
    bar.append(button);
  }
  main.before(bar);
  open(bar.firstChild, tabs[0][1]);
  document.body.dataset.ready = "yes";
}

start().catch((fault) => { document.getElementById("main").textContent = `This page needs a browser of 2023 or newer. ${fault}`; });

// The page of `postmill view`: everything is drawn from one block of data, with what draw.js has.
const ROW = 26;

// A small copy of a picture, with its boxes: shares of its sides.
function picture({ picture: [href, width, height, boxes], title }) {
  const image = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title, class: "picture" });
  image.append(draw("image", { href, width, height }));
  for (const [x1, y1, x2, y2] of boxes) {
    const at = { class: "frame" };
    if (x2 === undefined) image.append(draw("circle", { ...at, cx: x1 * width, cy: y1 * height, r: 3 }));
    else image.append(draw("rect", { ...at, x: x1 * width, y: y1 * height, width: Math.max(x2 - x1, 0) * width, height: Math.max(y2 - y1, 0) * height }));
  }
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
      if (block.picture) detail.append(picture(block));
      else if (block.pieces) detail.append(tokens(block, about));
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
  performance.mark("ready");
}

start().catch((fault) => { document.getElementById("main").textContent = `This page needs a browser of 2023 or newer. ${fault}`; });

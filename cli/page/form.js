// The form: fields from what the stages declare. What is filled in becomes a command, which the server makes and checks.
const asked = { recipe: "sft", data: "", model: "", output: "out", settings: {} };
let planned = null;

function remember() {
  sessionStorage.setItem("asked", JSON.stringify(asked));
}

function set(key, value, usual) {
  if (value === usual || value === "") delete asked.settings[key];
  else asked.settings[key] = value;
  changed();
}

function input(key, field) {
  const usual = field.value ?? field.default;
  const now = asked.settings[key] ?? (usual === null ? "" : String(usual));
  const id = `field-${key}`;
  if (field.names.length || field.kind === "bool") {
    const names = field.kind === "bool" ? ["true", "false"] : [...field.names];
    if (!names.includes(now)) names.unshift(now);
    const choice = make("select", { id, onchange: () => set(key, choice.value, String(usual ?? "")) });
    for (const name of names) choice.append(make("option", { value: name }, name));
    choice.value = now;
    return choice;
  }
  const text = make("input", {
    id, autocomplete: "off", spellcheck: "false", placeholder: usual === null ? "" : String(usual),
    inputmode: field.kind === "n" ? "numeric" : field.kind === "x" ? "decimal" : "text",
    oninput: () => set(key, text.value.trim(), String(usual ?? "")),
  });
  text.value = asked.settings[key] ?? "";
  return text;
}

function drawForm() {
  const form = at("form");
  form.replaceChildren();
  for (const section of planned.sections) {
    const group = make("fieldset", {}, make("legend", {}, section.name === section.stage ? section.name : `${section.name} (${section.stage})`));
    for (const field of section.fields) {
      if (!field.first && !at("every").checked) continue;
      const key = `${section.name}.${field.path}`;
      const label = make("label", { for: `field-${key}` }, field.path.replaceAll("_", "-"));
      group.append(make("div", { class: `field${key in asked.settings ? " changed" : ""}` }, label, input(key, field), make("span", { class: "about" }, field.doc)));
    }
    form.append(group);
  }
}

const shapeOf = (plan) => JSON.stringify(plan.sections.map((section) => [section.name, section.chosen])) + at("every").checked + asked.recipe;
let shape = "";

const refresh = newest(async (isNewest) => {
  let plan;
  try {
    plan = await ask("plan", asked);
  } catch (error) {
    if (isNewest()) at("faults").replaceChildren(error.message);
    return;
  }
  if (!isNewest()) return;
  planned = plan;
  at("command").textContent = ["postmill", ...plan.argv].map(quoted).join(" ");
  at("faults").replaceChildren(plan.faults.join("\n"));
  at("steps").textContent = plan.commands.join("\n");
  at("toml").textContent = plan.recipe;
  at("run").disabled = !about.allow_run || plan.faults.length > 0;
  if (shapeOf(plan) !== shape) {
    shape = shapeOf(plan);
    drawForm();
    drawMaskFields();
  }
  showMasks();
  showMemory();
});

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);
const changed = later(250, () => {
  remember();
  refresh();
});

// masks: options of the section that tokenizes, shown on rows of one's own

const MASK_OPTIONS = ["loss_scale", "thinking", "template_name", "system"];
const tokenizer = () => planned.sections.find((section) => section.stage === "tokenize");

function drawMaskFields() {
  const section = tokenizer();
  at("mask-fields").replaceChildren();
  for (const name of section ? MASK_OPTIONS : []) {
    const field = section.fields.find((one) => one.path === name);
    if (!field) continue;
    const box = input(`${section.name}.${name}`, field);
    box.id = `mask-${name}`;
    box.title = field.doc;
    at("mask-fields").append(make("label", {}, make("span", {}, name.replaceAll("_", "-")), box));
  }
}

const showMasks = newest(async (isNewest) => {
  const section = tokenizer();
  const place = at("rows");
  if (!section || !asked.data || !asked.model) {
    place.replaceChildren(make("p", {}, say("choose_both")));
    return;
  }
  const options = {};
  for (const name of MASK_OPTIONS) {
    const field = section.fields.find((one) => one.path === name);
    const value = asked.settings[`${section.name}.${name}`] ?? field?.value;
    if (value) options[name] = String(value);
  }
  try {
    const found = await ask("masks", { data: asked.data, model: asked.model, options });
    if (!isNewest()) return;
    place.replaceChildren();
    for (const row of found.rows) {
      const raw = make("details", {}, make("summary", {}, say("raw")), make("pre", {}, row.raw));
      place.append(make("h2", {}, row.title), tokens(row, at("token")), raw);
    }
  } catch (error) {
    if (isNewest()) place.replaceChildren(fault(error));
  }
});

const showMemory = newest(async (isNewest) => {
  const place = at("memory");
  if (!asked.model || planned.faults.length) {
    place.replaceChildren(make("p", { class: "about" }, say("memory_none")));
    return;
  }
  try {
    const { trainings } = await ask("estimate", asked);
    if (!isNewest()) return;
    place.replaceChildren();
    for (const [name, found] of Object.entries(trainings)) {
      const lines = found.memory.map((part) => [part.name, bytes(part.expected)]);
      place.append(make("h2", {}, `${name} (${say("expected")})`), summary(lines), make("p", {}, say(found.fits ? "fits" : "fits_not")));
      for (const change of found.changes ?? []) place.append(make("p", {}, make("code", {}, change.flags), ` ${bytes(change.needs.expected)}`));
    }
  } catch (error) {
    if (isNewest()) place.replaceChildren(fault(error));
  }
});

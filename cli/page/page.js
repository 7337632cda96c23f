// The page: panels, runs and their curves, artifacts, and talking to two models.
let about = { allow_run: false, recipes: [] };
const TABS = ["data", "options", "runs", "artifacts", "talk"];

function openTab(name) {
  for (const one of TABS) {
    at(`tab-${one}`).setAttribute("aria-selected", String(one === name));
    at(`tab-${one}`).tabIndex = one === name ? 0 : -1;
    at(`panel-${one}`).hidden = one !== name;
  }
  if (name === "artifacts") showFiles();
  if (name === "runs") showJobs();
}

function drawTabs() {
  const step = { ArrowRight: 1, ArrowLeft: -1 };
  for (const name of TABS) {
    const tab = make("button", {
      role: "tab", id: `tab-${name}`, type: "button", "aria-controls": `panel-${name}`, "data-word": `tab_${name}`,
      onclick: () => openTab(name),
      onkeydown: (event) => {
        if (!(event.key in step)) return;
        const next = TABS[(TABS.indexOf(name) + step[event.key] + TABS.length) % TABS.length];
        openTab(next);
        at(`tab-${next}`).focus();
      },
    });
    at("tabs").append(tab);
  }
}

// files

async function showFiles() {
  const found = await ask("files");
  const fill = (id, entries) => at(id).replaceChildren(...entries.map((entry) => make("option", { value: entry.path })));
  fill("known-data", found.data);
  fill("known-models", found.models);
  for (const entry of found.recipes) {
    if (![...at("recipe").options].some((one) => one.value === entry.path)) at("recipe").append(make("option", { value: entry.path }, entry.path));
  }
  const lines = found.artifacts.map((entry) => {
    const button = make("button", { type: "button", "aria-label": `${say("look")}: ${entry.path}`, onclick: () => view(entry.path) }, say("look"));
    const cells = [entry.path, entry.kind, entry.rows ?? "", entry.digest ?? entry.about];
    return make("tr", {}, ...cells.map((cell) => make("td", { class: "mono" }, cell)), make("td", {}, button));
  });
  const heads = ["path", "kind", "rows", "digest", "look"].map(say);
  at("artifacts").replaceChildren(lines.length ? rowsOf(heads, lines) : say("artifacts_none"));
}

async function view(path) {
  const { address } = await ask("view", { name: path });
  window.open(address, "_blank", "noopener");
}

// runs

let watched = "";

const showJobs = newest(async (isNewest) => {
  const jobs = await ask("jobs");
  if (!isNewest()) return;
  watched = watched || (jobs[0]?.name ?? "");
  const lines = jobs.map((job) => {
    const act = async (what) => {
      await ask(what, { name: job.name });
      watched = job.name;
      showJobs();
    };
    const buttons = make("td");
    const button = (word, work) => buttons.append(make("button", { type: "button", "data-job": job.name, "data-act": word, "aria-label": `${say(word)}: ${job.name}`, onclick: work }, say(word)), " ");
    const can = { running: "stop", done: "" }[job.state] ?? "resume";
    if (about.allow_run && can) button(can, () => act(can));
    button("look", () => {
      watched = job.name;
      showJobs();
    });
    const code = job.code ? ` (${job.code})` : "";
    const cells = [job.name, job.command.map(quoted).join(" "), `${say(job.state)}${code}`, job.seconds ?? ""];
    return make("tr", { "data-state": job.state }, ...cells.map((cell) => make("td", { class: "mono" }, cell)), buttons);
  });
  at("jobs").replaceChildren(lines.length ? rowsOf(["tab_runs", "command", "state", "seconds", "look"].map(say), lines) : say("jobs_none"));
  const job = jobs.find((one) => one.name === watched);
  if (!job) return;
  const [found, measured] = await Promise.all([ask("job", { name: job.name }), ask("curves", { name: job.output })]);
  if (!isNewest()) return;
  const log = make("pre", { class: "log", tabindex: "0", "aria-label": job.name }, found.log + found.out);
  at("job").replaceChildren(make("h2", {}, job.name), log);
  log.scrollTop = log.scrollHeight;
  if (measured.curves.length) at("curves").replaceChildren(...measured.curves.map(curve));
});

async function start() {
  at("run").disabled = true;
  try {
    watched = (await ask("run", asked)).name;
    openTab("runs");
  } catch (error) {
    at("faults").replaceChildren(error.message);
  }
  at("run").disabled = false;
}

// talk

let talk = { sides: [], messages: {} };

function drawTalk() {
  const columns = talk.sides.map((side) => {
    const said = talk.messages[side].map((one) => make("pre", { class: `said ${one.role}` }, one.content));
    return make("div", {}, make("h2", {}, say(side)), ...said);
  });
  at("talk").replaceChildren(...columns);
}

async function load() {
  at("talk-state").textContent = say("loading");
  try {
    const { sides } = await ask("talk", { base: at("talk-base").value, tuned: at("talk-tuned").value });
    talk = { sides, messages: Object.fromEntries(sides.map((side) => [side, []])) };
    at("talk-state").textContent = say("loaded");
    drawTalk();
  } catch (error) {
    at("talk-state").textContent = error.message;
  }
}

async function question(event) {
  event.preventDefault();
  const text = at("question").value.trim();
  if (!text) return;
  at("question").value = "";
  for (const side of talk.sides) talk.messages[side].push({ role: "user", content: text });
  drawTalk();
  at("talk-state").textContent = say("thinking");
  try {
    const { answers } = await ask("say", { messages: talk.messages });
    for (const side of talk.sides) talk.messages[side].push({ role: "assistant", content: answers[side].text ?? answers[side].error });
    at("talk-state").textContent = "";
  } catch (error) {
    for (const side of talk.sides) talk.messages[side].pop();
    at("talk-state").textContent = error.message;
  }
  drawTalk();
}

// all together

function bind() {
  for (const name of ["recipe", "data", "model", "output"]) {
    at(name).addEventListener("input", () => {
      asked[name] = at(name).value.trim();
      if (name === "recipe") chooseRecipe();
      changed();
    });
  }
  at("language").addEventListener("change", () => {
    localStorage.setItem("language", language());
    fillWords();
    shape = "";
    refresh();
    showJobs();
    showFiles();
  });
  at("every").addEventListener("change", () => refresh());
  at("run").addEventListener("click", start);
  at("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(at("command").textContent);
    at("copy").textContent = say("copied");
  });
  at("talk-start").addEventListener("click", load);
  at("ask").addEventListener("submit", question);
  at("form").addEventListener("submit", (event) => event.preventDefault());
}

function chooseRecipe() {
  asked.settings = {};
  at("recipe-about").textContent = about.recipes.find((one) => one.name === asked.recipe)?.about ?? "";
}

async function begin() {
  drawTabs();
  at("language").value = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
  fillWords();
  openTabQuietly();
  if (!TOKEN) throw new Error(say("no_token"));
  about = await ask("about");
  Object.assign(asked, JSON.parse(sessionStorage.getItem("asked") ?? "{}"));
  at("folder").textContent = about.folder;
  at("recipe").replaceChildren(...about.recipes.map((one) => make("option", { value: one.name, title: one.about }, one.name)));
  await showFiles();
  const settings = asked.settings;
  chooseRecipe();
  asked.settings = settings;
  for (const name of ["recipe", "data", "model", "output"]) at(name).value = asked[name];
  if (!about.allow_run) at("run").title = say("run_not");
  bind();
  await refresh();
  setInterval(() => {
    if (!at("panel-runs").hidden && !document.hidden) showJobs().catch(() => {});
  }, 2000);
  document.body.dataset.ready = "yes";
  performance.mark("ready");
}

function openTabQuietly() {
  for (const one of TABS) at(`tab-${one}`).setAttribute("aria-selected", String(one === "data"));
}

begin().catch((error) => {
  at("faults").replaceChildren(error.message);
});

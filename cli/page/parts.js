// Questions to the server, words in the chosen language, and small parts that every panel uses.
const TOKEN = location.hash.slice(1);
const at = (id) => document.getElementById(id);
const language = () => at("language").value;
const say = (word) => WORDS[word][language() === "zh" ? 1 : 0];

// Ask the server. Throws an Error with its line if it refuses.
async function ask(what, body = {}) {
  const reply = await fetch(`/api/${what}`, {
    method: "POST", body: JSON.stringify(body), cache: "no-store",
    headers: { authorization: `Bearer ${TOKEN}`, "content-type": "application/json" },
  });
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error);
  return found;
}

// The last call alone counts, some time after it was made.
function later(milliseconds, work) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}

// Answers of an older question must not come after those of a newer one.
function newest(work) {
  let number = 0;
  return async (...words) => {
    const mine = ++number;
    return work(() => mine === number, ...words);
  };
}

const fault = (error) => make("p", { class: "fault" }, error.message);

function fillWords() {
  document.documentElement.lang = language();
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = say(node.dataset.word);
}

function rowsOf(heads, lines) {
  const head = make("tr", {}, ...heads.map((word) => make("th", { scope: "col" }, word)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
}

const bytes = (count) => (count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(2)} GiB` : `${(count / 2 ** 20).toFixed(1)} MiB`);

// The page at /: one photograph, its attention, its embedding and its neighbours.

const element = (id) => document.getElementById(id);
const controls = element("controls");
const COLLECTION = "default";

let photograph = null;
let asking = new AbortController();
let waiting = 0;
// Pictures of the items added from this page; the collection itself keeps vectors only.
const pictures = new Map();

/** What the server says is wrong, in words. */
class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function post(path, options, body, signal) {
  const headers = {};
  if (body instanceof Blob) {
    headers["Content-Type"] = body.type.startsWith("image/") ? body.type : "application/octet-stream";
  }
  const key = element("key").value;
  if (key) headers["X-API-Key"] = key;
  const query = new URLSearchParams(options);
  let response;
  try {
    response = await fetch(`${path}?${query}`, { method: "POST", headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached. Is it running?");
  }
  if (response.ok) return response;
  if (response.status === 401) element("key-field").hidden = false;
  const problem = await response.json().catch(() => ({}));
  const title = problem.title ?? `The server answered ${response.status}`;
  throw new Problem(problem.detail ? `${title}: ${problem.detail}` : title, response.status);
}

/** Run one task with the page showing that it waits and, if it fails, why. */
async function attempt(doing, task) {
  element("error").hidden = true;
  element("status").textContent = doing;
  waiting += 1;
  document.body.classList.add("busy");
  let done = "";
  try {
    done = (await task()) ?? "";
  } catch (error) {
    if (error.name === "AbortError") return;
    element("error").textContent = error instanceof Problem ? error.message : String(error);
    element("error").hidden = false;
  } finally {
    waiting -= 1;
    document.body.classList.toggle("busy", waiting > 0);
    if (waiting === 0) element("status").textContent = done;
  }
}

/** The options that the controls stand for; no size is the model's own. */
function chosen() {
  const form = new FormData(controls);
  const view = form.get("view");
  const options = { view, heads: view === "heads" ? "all" : (form.get("head") ?? "mean") };
  if (Number(element("size").value)) options.size = element("size").value;
  if (view === "mask") options.mass = element("mass").value;
  return options;
}

function describeControls() {
  const { view, heads, size } = chosen();
  element("size-text").textContent = size ? `${size} px` : "the model's own";
  element("mass-text").textContent = `${Math.round(element("mass").value * 100)} % of the attention`;
  element("mass-field").hidden = view !== "mask";
  element("heads").disabled = view === "heads";
  if (heads === "all") return "Every head";
  return heads === "mean" ? "Mean of all heads" : `Head ${heads}`;
}

function offerHeads(heads) {
  const choices = ["mean", ...heads].map((head) => {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "head", value: head, checked: head === "mean" });
    label.append(radio, head === "mean" ? " Mean" : ` ${head}`);
    return label;
  });
  element("heads").replaceChildren(element("heads").querySelector("legend"), ...choices);
}

/** Show an image from bytes, and forget the bytes that it showed before. */
function showBytes(image, blob) {
  URL.revokeObjectURL(image.src);
  image.hidden = false;
  image.src = URL.createObjectURL(blob);
}

function draw() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const caption = describeControls();
  return attempt("Looking…", async () => {
    const answer = await post("/attention", { output: "png", ...chosen() }, photograph, signal);
    showBytes(element("picture"), await answer.blob());
    element("picture").alt = `Where the model looks in the photograph. ${caption}.`;
    element("caption").textContent = caption;
  });
}

async function open(file) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  await attempt("Looking…", async () => {
    const [attention, embedding] = await Promise.all([
      post("/attention", {}, file, signal).then((answer) => answer.json()),
      post("/embed", {}, file, signal).then((answer) => answer.json()),
    ]);
    photograph = file;
    offerHeads(attention.images[0].heads);
    element("size").value = 0;
    element("model").textContent = embedding.model;
    element("dim").textContent = embedding.dim;
    element("digest").textContent = embedding.digest;
    element("name").textContent = file.name;
    element("neighbours").replaceChildren();
    showBytes(element("original"), file);
    element("results").hidden = false;
    await draw();
  });
}

function neighbour({ id, score, metadata }) {
  const entry = document.createElement("li");
  const title = metadata.name ?? id;
  if (pictures.has(id)) {
    const image = document.createElement("img");
    Object.assign(image, { src: pictures.get(id), alt: "" });
    entry.append(image);
  }
  const cosine = document.createElement("span");
  cosine.textContent = ` cosine ${score.toFixed(3)}`;
  entry.append(title, cosine);
  return entry;
}

function findSimilar() {
  return attempt("Searching…", async () => {
    const results = await post("/similar", { collection: COLLECTION, k: 8 }, photograph)
      .then(async (answer) => (await answer.json()).results)
      .catch((error) => {
        // The first photograph that is added makes the collection.
        if (error.status === 404) return [];
        throw error;
      });
    element("neighbours").replaceChildren(...results.map(neighbour));
    return results.length ? "" : "The collection is empty. Add some photographs first.";
  });
}

function addToCollection() {
  return attempt("Adding…", async () => {
    const file = photograph;
    const form = new FormData();
    form.append("images", file);
    form.append("metadata", JSON.stringify({ name: file.name }));
    const answer = await post(`/collections/${COLLECTION}/items`, {}, form);
    const [item] = (await answer.json()).items;
    if (!pictures.has(item.id)) pictures.set(item.id, URL.createObjectURL(file));
    return `${file.name} is in the collection.`;
  });
}

element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) open(target.files[0]);
  // So that choosing the same file again is a change.
  target.value = "";
});
controls.addEventListener("submit", (event) => event.preventDefault());
controls.addEventListener("input", describeControls);
controls.addEventListener("change", draw);
element("find").addEventListener("click", findSimilar);
element("add").addEventListener("click", addToCollection);
// A browser may not show every type that the server decodes.
element("original").addEventListener("error", ({ target }) => (target.hidden = true));

document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) open(clipboardData.files[0]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
});
describeControls();

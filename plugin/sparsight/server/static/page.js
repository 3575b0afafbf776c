// The page at /sparsight/: talks to the routes of docs/api.md and to nothing else.
import { $, element } from "./elements.js";
import { COLOURS, drawn, inWords, paint, toMillimetres } from "./marks.js";
import { item } from "./reviews.js";
import { attempt, call, say } from "./server.js";
import { confidenceInWords, groundedInWords, sides } from "./words.js";

const TOOLS = ["box", "stroke", "point"];
const PICTURES = location.pathname.endsWith("/reader");  // the page for images without DICOM
const ROLES = ["reader", "reviewer", "trainer", "admin"];  // each may do what those before it may
const [THING, THINGS, ONE, NAME] = PICTURES ? ["image", "images", "an image", "Image"] : ["study", "studies", "a study", "Study"];

// withheld: the answer is kept back by the server until the reader's own one came. drag: points of what is being drawn.
// aside: it is of another study than the one that is picked, and hidden. proposed: the question that nobody has typed.
const state = {
  reviewer: "page", role: null,  // or who logged in, and what they may do
  answer: null, withheld: false, geometry: null, slice: 0, evidence: true, marks: [], kind: null, tool: "box", drag: null, picture: null,
  sent: null, cannotTell: false, aside: false, proposed: "",
};

const may = (role) => state.role === null || ROLES.indexOf(state.role) >= ROLES.indexOf(role);
const offered = (study) => [...$("study").options].some(({ value }) => value === study);
const short = (id) => (id.length > 24 ? `…${id.slice(-14)}` : id);  // DICOM UIDs differ at their end

// --- picking and asking ---

// What is shown is of the study that is picked: an answer of another one is hidden, with what was begun on it.
function picked() {
  const study = $("study").value, shown = state.answer?.study;
  state.aside = Boolean(study && shown) && study !== shown;
  document.querySelector("main").classList.toggle("aside", state.aside);
  $("aside").textContent = state.aside ? `The answer about ${short(shown)} is put aside: pick that ${THING} again to go on with it.` : "";
  $("pick").textContent = study ? "" : `Pick ${ONE} to ask about.`;
  $("ask").disabled = !study || $("study").disabled;
  $("empty").hidden = Boolean(shown) && !state.aside;
  $("view-title").textContent = $("empty").hidden ? `${NAME} ${short(shown)}` : NAME;
  $("view-title").title = $("empty").hidden ? shown : "";
}

function asking(now) {
  $("study").disabled = now;  // what comes is of the one that is picked
  picked();
}

function propose(question) {
  const { value } = $("question");
  if (value.trim() && value !== state.proposed) return;  // typed, and not asked yet
  $("question").value = question;
  state.proposed = $("question").value;
}

async function ask(event) {
  event?.preventDefault();
  const request = { study: $("study").value, question: $("question").value, budget: Number($("budget").value) / 100, blinded: $("blinded").checked };
  if ($("ask").disabled || !request.study || !request.question.trim()) return;
  asking(true);
  const start = performance.now();
  const clock = setInterval(() => say(`looking at the ${THING}, ${((performance.now() - start) / 1000).toFixed(0)} s`), 500);
  say(`looking at the ${THING}`);
  const answer = await attempt(() => call("ask", request));
  clearInterval(clock);
  asking(false);
  if (!answer) return;
  state.proposed = request.question;
  say(`answered in ${((performance.now() - start) / 1000).toFixed(1)} s`);
  await show(answer);
  await history();
}

async function show(answer) {
  Object.assign(state, { answer, withheld: answer.withheld === true, geometry: null, picture: null, wanted: null, marks: [], drag: null, sent: null });
  $("canvas").width = 0;  // nothing of the answer before stays beside this one
  $("reviews").replaceChildren();
  $("study").value = answer.study;  // empty where it is offered no more
  propose(answer.question);
  picked();
  if (state.kind) choose(state.kind);
  if (state.withheld) $("answer").replaceChildren(element("p", answer.question, { class: "quiet" }), element("p", HELD));
  else describe(answer);
  for (const shown of document.querySelectorAll(".sighted")) shown.hidden = state.withheld;
  $("amend-words").textContent = state.withheld ? "Show the answer" : "Send correction";
  $("feedback").hidden = !may("reviewer");
  $("reward").textContent = "";
  for (const field of ["right", "comment", "difficulty"]) $(field).value = "";
  tellNothing(false);
  marksChanged();
  const geometry = await attempt(() => call(`episodes/${answer.episode}/geometry`));
  if (state.answer !== answer) return;  // another one was opened meanwhile
  state.geometry = geometry;
  $("view-tools").hidden = !geometry;
  await reviews();
  if (!geometry || state.answer !== answer) return;
  $("slice").max = geometry.shape[0] - 1;
  $("slice-tools").hidden = geometry.shape[0] < 2;
  await turnTo(geometry.slices[0]);
}

const HELD = "It was answered. The answer is kept back until you have given yours, which is kept apart and never learned from.";

function describe(answer) {
  const { kept, total, fraction } = answer.budget;
  const [grounded, doubt] = groundedInWords(answer.grounded);
  const rows = [
    ...(PICTURES ? [] : sides(answer)),
    ["Confidence", answer.abstained ? "too low to answer" : confidenceInWords(answer.confidence), answer.abstained],
    ["Grounded", grounded, doubt],
    ["Looked at", `${kept} of ${total} tokens (${(100 * fraction).toFixed(1)} %), ${answer.evidence.length} region${answer.evidence.length === 1 ? "" : "s"}`, false],
    ...(answer.slices ? [["First look", `${answer.slices.encoded} of ${answer.slices.total} slices were encoded before this answer`, false]] : []),
    ...(answer.recheck ? [["Re-check", answer.recheck.note, answer.recheck.changed]] : []),
    ...answer.notes.map((note) => ["Note", note, true]),
    ["Policy", answer.policy.id, false],
    ["Episode", answer.episode, false],
  ];
  const list = element("dl", null);
  for (const [name, text, warn] of rows) list.append(element("dt", name), element("dd", text, warn ? { class: "warning" } : {}));
  const parts = [element("p", answer.question, { class: "quiet" }), element("p", answer.abstained ? "No answer" : answer.answer, { class: "said" })];
  if (answer.abstained && answer.answer) parts.push(element("p", `It leaned towards: ${answer.answer}`, { class: "quiet" }));
  if (answer.reasoning) parts.push(element("p", answer.reasoning, { class: "reasoning" }));
  $("answer").replaceChildren(...parts, list);
}

async function history() {
  const episodes = ((await attempt(() => call("episodes?limit=20"))) ?? []).filter(({ study }) => !PICTURES || offered(study));
  $("history").replaceChildren(...episodes.map((episode) => {
    const item = element("li", null);
    const button = element("button", `${episode.question} → ${episode.abstained ? "no answer" : episode.answer}`, { type: "button", title: episode.study });
    button.addEventListener("click", () => show(episode));
    item.append(button);
    return item;
  }));
}

// --- looking ---

async function turnTo(slice) {
  if (!state.geometry) return;
  const depth = state.geometry.shape[0];
  state.slice = Math.max(0, Math.min(depth - 1, slice));
  $("slice").value = state.slice;
  const share = regions().reduce((sum, region) => sum + region.weight, 0);
  const told = state.withheld ? "" : `, regions here hold ${Math.round(100 * share)} % of the evidence`;
  $("slice-words").textContent = `${state.slice + 1} of ${depth}${told}`;
  const asked = `episodes/${state.answer.episode}/slice.png?slice=${state.slice}&evidence=${state.evidence && !state.withheld}`;
  const picture = new Image();
  picture.src = asked;
  state.wanted = asked;
  try { await picture.decode(); } catch { say("the slice could not be loaded", true); return; }
  if (state.wanted !== asked) return;  // a later slice was asked for meanwhile
  state.picture = picture;
  fit();
}

// The evidence on the slice that is shown.
const regions = () => (state.answer.evidence ?? []).filter(({ box_ijk: [low, high] }) => low[2] <= state.slice && state.slice < high[2]);

function fit() {
  if (!state.picture) return;
  const [dx, dy] = state.geometry.spacing_mm;
  const [, rows, columns] = state.geometry.shape;
  const room = { w: $("stage").clientWidth, h: Math.max(320, window.innerHeight * 0.62) };
  const scale = Math.min(room.w / (columns * dx), room.h / (rows * dy));
  const ratio = window.devicePixelRatio || 1;
  const canvas = $("canvas");
  canvas.style.width = `${columns * dx * scale}px`;
  canvas.style.height = `${rows * dy * scale}px`;
  canvas.width = Math.round(columns * dx * scale * ratio);
  canvas.height = Math.round(rows * dy * scale * ratio);
  draw();
}

function draw() {
  const canvas = $("canvas"), pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(state.picture, 0, 0, canvas.width, canvas.height);
  const show = (mark, colour, dashed) => paint(canvas, state.geometry, mark, colour, dashed);
  if (state.evidence) for (const { box_ijk: [from, to] } of regions()) show({ from, to }, COLOURS.evidence, true);
  for (const mark of state.marks) if (mark.slice === state.slice) show(mark);
  const under = state.drag && drawnNow();
  if (under) show(under);
}

const drawnNow = () => drawn(state.tool, state.kind, state.slice, state.drag, Number($("pen").value) || 0);

function place(event) {
  const area = $("canvas").getBoundingClientRect();
  const [, rows, columns] = state.geometry.shape;
  const at = (value, size) => Math.max(0, Math.min(size, value));
  return [at(((event.clientX - area.left) / area.width) * columns, columns), at(((event.clientY - area.top) / area.height) * rows, rows)];
}

// --- marking and correcting ---

function choose(kind) {
  state.kind = state.kind === kind ? null : kind;
  for (const button of document.querySelectorAll("button.mark")) button.setAttribute("aria-pressed", String(button.dataset.kind === state.kind));
  $("canvas").classList.toggle("drawing", state.kind !== null);
}

function release() {
  if (!state.drag) return;
  const mark = drawnNow();
  state.drag = null;
  if (mark) state.marks.push(mark);
  marksChanged();
}

function take(tool) {
  state.tool = tool;
  $("tool").value = tool;
  $("pen").disabled = tool === "box";
}

function tellNothing(cannot) {
  state.cannotTell = cannot;
  $("cannot-tell").setAttribute("aria-pressed", String(cannot));
  $("right").disabled = cannot;
  if (cannot) $("right").value = "";
}

function undo() {
  state.marks.pop();
  marksChanged();
}

function marksChanged() {
  $("undo").disabled = state.marks.length === 0;
  $("marks").textContent = inWords(state.marks);
  if (state.picture && state.geometry) draw();
}

// draft: the server keeps it, and nothing is learned from it until it is submitted.
async function correct(verdict, draft = false) {
  if ($("amend").disabled || !may("reviewer")) return;  // one is being sent
  const answer = $("right").value.trim(), { withheld, cannotTell } = state;
  if (withheld && (verdict !== "amend" || draft)) return;
  if (verdict === "amend" && !answer && !cannotTell && (withheld || !state.marks.length)) {
    say(withheld ? "write your own answer first, or that the image cannot tell" : "write the right answer or mark a region first", true);
    return;
  }
  const marks = withheld ? [] : state.marks.map((mark) => toMillimetres(mark, state.geometry));
  const request = { episode: state.answer.episode, verdict, marks, reviewer: state.reviewer, comment: $("comment").value.trim(), blinded: withheld, draft };
  if ($("difficulty").value) request.difficulty = $("difficulty").value;
  if (answer && verdict !== "accept") request.answer = answer;
  if (cannotTell && verdict !== "accept") request.cannot_tell = true;
  const content = JSON.stringify(request);
  if (state.sent?.content !== content) state.sent = { content, key: crypto.randomUUID() };  // the same sent again is one
  const reply = await sending(() => call("feedback", { ...request, key: state.sent.key }));
  if (!reply) return;
  if (state.answer.episode !== request.episode) { say("recorded, of the answer that was shown before"); return; }
  if (withheld) return reveal(reply.episode, answer || "the image cannot tell");
  const total = reply.reward.total;
  const parts = Object.entries(reply.reward.parts).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value.toFixed(2)}`);
  $("reward").textContent = `${reply.state === "draft" ? "Kept as a draft" : "Recorded"}. Reward ${total >= 0 ? "+" : ""}${total.toFixed(2)}${parts.length ? ` (${parts.join(", ")})` : ""}${reply.notes.map((note) => `; ${note}`).join("")}`;
  $("reward").className = total >= 0 ? "good" : "bad";
  say(reply.state === "draft" ? "kept as a draft" : "correction recorded");
  await reviews();
}

async function reveal(episode, own) {
  const answer = await attempt(() => call(`episodes/${episode}`));
  if (!answer) return;
  await show(answer);
  if (state.answer === answer) $("answer").append(element("p", `You said before you saw it: ${own}`, { class: "quiet", id: "own" }));
  await history();
}

async function reviews() {
  const { episode } = state.answer;
  if (!may("reviewer")) return;
  const given = state.withheld ? [] : (await attempt(() => call(`episodes/${episode}/feedback`))) ?? [];
  if (state.answer.episode !== episode) return;  // another answer is shown by now
  const change = async (key, name) => {
    if (await sending(() => call(`feedback/${encodeURIComponent(key)}/change`, { change: name, reviewer: state.reviewer, key: crypto.randomUUID() }))) {
      await reviews();
    }
  };
  $("reviews").replaceChildren(...given.map((one) => item(one, state.reviewer, change)));
}

async function sending(work) {
  const buttons = document.querySelectorAll("#feedback button");
  for (const button of buttons) button.disabled = true;
  const reply = await attempt(work);
  for (const button of buttons) button.disabled = false;
  return reply;
}

// --- learning ---

async function policies() {
  const versions = (await attempt(() => call("policies"))) ?? [];
  $("policies").replaceChildren(...versions.reverse().map((policy) => {
    const row = element("tr", null, policy.state === "live" ? { class: "live" } : {});
    const made = new Date(policy.created).toLocaleString();
    row.append(...[policy.id, policy.state, made, policy.reasons.join("; ")].map((text) => element("td", text)));
    const cell = element("td", null);
    if (may("trainer") && ["candidate", "retired"].includes(policy.state)) {
      const button = element("button", "Promote", { type: "button" });
      button.addEventListener("click", () => change(`policies/${encodeURIComponent(policy.id)}/promote`, `policy ${policy.id} is live`));
      cell.append(button);
    }
    row.append(cell);
    return row;
  }));
  $("rollback").disabled = versions.filter((policy) => ["live", "retired"].includes(policy.state)).length < 2;
}

async function change(path, done) {
  if (await attempt(() => call(path, undefined, "POST"))) say(done);
  await policies();
}

async function learn() {
  if (!(await attempt(() => call("learn", undefined, "POST")))) return;
  await followLearning();
}

async function followLearning() {
  $("learn").disabled = true;
  for (;;) {
    const job = await attempt(() => call("learn"));
    if (!job) break;
    const { stage, done, total, promoted, reasons } = job.stats;
    $("learning").textContent = job.state === "running" ? `learning: ${stage ?? "starting"} ${total ? `${done} of ${total}` : ""}`
      : job.state === "idle" ? "" : `${job.state}: ${promoted ? "promoted" : (reasons ?? [job.stats.error?.given ?? "not promoted"]).join("; ")}`;
    if (job.state !== "running") break;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  $("learn").disabled = false;
  await policies();
}

async function nextCase() {
  say("looking for the case that would teach most");
  const found = await attempt(() => call("next_case", {}));
  if (!found) return;
  if (!found.study) { say(`all ${THINGS} were corrected or labelled`); return; }
  if (!offered(found.study)) { say("the next case is none of this page: it is at /sparsight/", true); return; }
  $("study").value = found.study;
  $("question").value = "";
  propose(found.question);
  picked();
  say(`next: ${found.reason}`);
}

// --- keys, and starting ---

const KEYS = {
  "/": () => $("question").focus(),
  a: () => correct("accept"), r: () => correct("reject"), c: () => correct("amend"),
  e: () => $("toggle").click(),
  t: () => tellNothing(!state.cannotTell), d: () => correct("amend", true), 4: () => take(TOOLS[(TOOLS.indexOf(state.tool) + 1) % TOOLS.length]),
  1: () => choose("relevant"), 2: () => choose("missed"), 3: () => choose("irrelevant"),
  ArrowUp: () => turnTo(state.slice - 1), ArrowDown: () => turnTo(state.slice + 1), Escape: () => choose(state.kind),
};

function onKey(event) {
  if (event.repeat && !event.key.startsWith("Arrow")) return;  // a key held down is one press, save for turning slices
  if (event.ctrlKey && event.key === "Enter") return ask(event);
  const writing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName);
  if (writing || event.altKey || event.metaKey) return;
  if (event.ctrlKey) { if (event.key === "z" && state.marks.length && !state.aside) { event.preventDefault(); undo(); } return; }
  const action = KEYS[event.key];
  if (!action || ((!state.answer || state.aside) && event.key !== "/")) return;
  event.preventDefault();
  action();
}

function listen() {
  $("ask-form").addEventListener("submit", ask);
  $("feedback").addEventListener("submit", (event) => { event.preventDefault(); correct("amend"); });
  for (const button of document.querySelectorAll("[data-verdict]")) button.addEventListener("click", () => correct(button.dataset.verdict));
  for (const button of document.querySelectorAll("button.mark")) button.addEventListener("click", () => choose(button.dataset.kind));
  $("undo").addEventListener("click", undo);
  $("cannot-tell").addEventListener("click", () => tellNothing(!state.cannotTell));
  $("draft").addEventListener("click", () => correct("amend", true));
  $("tool").addEventListener("change", () => take($("tool").value));
  $("learn").addEventListener("click", learn);
  $("rollback").addEventListener("click", () => change("policies/rollback", "rolled back"));
  $("next-case").addEventListener("click", nextCase);
  $("budget").addEventListener("input", () => { $("budget-words").textContent = `${$("budget").value} %`; });
  $("slice").addEventListener("input", () => turnTo(Number($("slice").value)));
  $("toggle").addEventListener("click", () => {
    state.evidence = !state.evidence;
    $("toggle").setAttribute("aria-pressed", String(state.evidence));
    turnTo(state.slice);
  });
  const canvas = $("canvas");
  canvas.addEventListener("pointerdown", (event) => {
    if (!state.kind || !state.picture || state.withheld) return;
    canvas.setPointerCapture(event.pointerId);
    state.drag = [place(event)];
  });
  canvas.addEventListener("pointermove", (event) => { if (state.drag) { state.drag.push(place(event)); draw(); } });
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("wheel", (event) => {
    if (!state.geometry || state.geometry.shape[0] < 2) return;
    event.preventDefault();
    turnTo(state.slice + Math.sign(event.deltaY));
  }, { passive: false });
  document.addEventListener("keydown", onKey);
  window.addEventListener("resize", fit);
}

// Images have no study, and need no words of radiology.
function inPictures() {
  document.title = "sparsight reader";
  $("about").textContent = "Ask about an image, see what the answer rests on, correct it.";
  $("study-word").textContent = NAME;
  $("empty").textContent = "Pick an image and ask a question.";
}

async function begin() {
  if (PICTURES) inPictures();
  listen();
  const link = new URLSearchParams(location.search);  // ?study=…&question=… asks at once
  const me = await attempt(() => call("me"));
  if (me?.role) Object.assign(state, me);
  for (const part of document.querySelectorAll("[data-role]")) part.hidden = !may(part.dataset.role);
  const served = (await attempt(() => call("studies"))) ?? [];
  const studies = PICTURES ? served.filter((study) => !study.study_uid) : served;
  $("study").replaceChildren(...studies.map(({ id, modality }) => element("option", PICTURES ? short(id) : `${modality} ${short(id)}`, { value: id, title: id })));
  const suggest = () => {
    propose(studies.find(({ id }) => id === $("study").value)?.question ?? "");
    picked();
  };
  $("study").addEventListener("change", suggest);
  if (link.get("study")) $("study").value = link.get("study");
  suggest();
  say(studies.length ? `${studies.length} ${THINGS}` : `no ${THINGS} are served`, !studies.length);
  await Promise.all([history(), may("trainer") ? followLearning() : policies()]);
  if (link.get("question")) {
    $("question").value = link.get("question");
    await ask();
  }
}

begin();

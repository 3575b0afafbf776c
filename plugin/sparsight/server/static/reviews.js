// What was recorded of an answer, by every reader: what became of it, and what this page may do with its own.
import { element } from "./elements.js";

const WORDS = { submit: "Submit", withdraw: "Withdraw", undo: "Undo" };
const VERDICTS = { accept: "accepted", amend: "amended", reject: "rejected" };

// As the server's own rules are (docs/api.md).
export function possible({ state, changes }) {
  const states = changes[0]?.change === "draft" ? [] : ["submitted"];
  for (const { change } of changes) {
    if (change === "undo") states.pop();
    else states.push(change);
  }
  const found = { draft: ["submit", "withdraw"], submitted: ["withdraw"] }[state] ?? [];
  return states.length > 1 ? [...found, "undo"] : found;
}

function said(one) {
  const what = one.blinded ? "read blinded" : VERDICTS[one.verdict];
  const answer = one.answer ?? (one.cannot_tell ? "the image cannot tell" : "");
  const marks = one.marks.length ? `${one.marks.length} region${one.marks.length === 1 ? "" : "s"}` : "";
  return [`${one.reviewer}: ${what}`, answer, marks, one.difficulty, one.comment].filter(Boolean).join(", ");
}

function fate(one) {
  if (one.blinded) return "kept apart: nothing is learned from it";
  if (one.state === "draft") return "a draft: nothing is learned from it";
  const learned = one.learned_by.length ? `learned by ${one.learned_by.join(", ")}` : "not learned from yet";
  return one.state === "withdrawn" ? `withdrawn${one.learned_by.length ? `, but ${learned}` : ""}` : learned;
}

// One item of the list. change: called with the correction's key and what is to become of it.
export function item(one, reviewer, change) {
  const made = element("li", said(one), { "data-state": one.state });
  made.append(element("p", fate(one), { class: "quiet" }));
  const row = element("div", null, { class: "row" });
  for (const name of one.reviewer === reviewer ? possible(one) : []) {
    const button = element("button", WORDS[name], { type: "button", "data-change": name });
    button.addEventListener("click", () => change(one.key, name));
    row.append(button);
  }
  if (row.childElementCount) made.append(row);
  return made;
}

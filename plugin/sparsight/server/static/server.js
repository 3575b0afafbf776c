// Talking to the server, and saying what came of it.
import { $ } from "./elements.js";

export async function call(path, body, method = body === undefined ? "GET" : "POST") {
  const options = { method, headers: {}, redirect: "manual" };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options).catch(() => { throw new Error("the server does not answer; try again, nothing is lost"); });
  // A proxy in front answers an ended login with a page of its own, or sends there.
  if (response.status === 401 || response.type === "opaqueredirect") throw new Error("your login has ended; open this page in another tab, log in, and try again here: nothing is lost");
  const reply = await response.json().catch(() => null);
  if (reply === null || (!response.ok && !reply.error)) throw new Error(`a reply that is none of ours (${response.status}); try again, and ask who runs the server if it stays`);
  if (!response.ok) {
    const { given, expected, todo } = reply.error;
    throw new Error(`${given}; expected ${expected}; ${todo}`);
  }
  return reply;
}

export function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("warning", bad);
}

export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    say(error.message, true);
    return null;
  }
}

export const $ = (id) => document.getElementById(id);

// Elements of the page. Text is text, never HTML: a question or an answer is only shown.
export function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Whose left and right it is, in the words of the OHIF panel: said where a question or its answer names one.
const SIDE = /\b(left|right)\b/i;
const OURS = /^(nano|smol)\b/;  // their words name places in the picture; those of another model may mean the patient

export function sides({ question, answer, reasoning, reader }) {
  if (![question, answer, reasoning].some((text) => SIDE.test(text))) return [];
  const whose = OURS.test(reader) ? "those of the picture, not of the patient" : "those of the picture or of the patient: this model does not say which";
  return [["Left, right", whose, true]];
}

export function confidenceInWords(p) {
  const words = p >= 0.9 ? "very likely right" : p >= 0.75 ? "likely right" : p >= 0.6 ? "more likely right than not" : "uncertain";
  return `${words} (about ${Math.round(p * 10)} in 10)`;
}

export function groundedInWords(grounded) {
  if (grounded === null) return ["not tested", false];
  return grounded ? ["yes: without these regions the answer loses its support", false]
    : ["no: the answer hardly depends on these regions", true];
}

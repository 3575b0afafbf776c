/** What is said to the reader: words rather than bare numbers, the same as on the server's own page. */
import type { Answer, Feedback } from './client';

export const RESEARCH = 'Research use only: not for diagnosis.';

export interface Fact {
  name: string;
  text: string;
  warn?: boolean;
}

export function confidence(p: number): string {
  const words = p >= 0.9 ? 'very likely right' : p >= 0.75 ? 'likely right' : p >= 0.6 ? 'more likely right than not' : 'uncertain';
  return `${words} (about ${Math.round(p * 10)} in 10)`;
}

export function said(answer: Answer): string {
  return answer.abstained ? 'No answer' : answer.answer;
}

/** All that a reader must know to trust an answer or not. */
export function facts(answer: Answer): Fact[] {
  const { budget, grounded, slices, recheck } = answer;
  const regions = `${answer.evidence.length} region${answer.evidence.length === 1 ? '' : 's'}`;
  const found: Fact[] = [
    { name: 'Confidence', text: answer.abstained ? 'too low to answer' : confidence(answer.confidence), warn: answer.abstained },
  ];
  if (grounded === null) found.push({ name: 'Grounded', text: 'not tested' });
  else if (grounded) found.push({ name: 'Grounded', text: 'yes: without these regions the answer loses its support' });
  else found.push({ name: 'Not grounded', text: 'the answer hardly depends on the regions shown', warn: true });
  if (recheck) found.push({ name: 'Re-checked', text: recheck.note, warn: recheck.changed });
  found.push({ name: 'Looked at', text: `${kept(budget.kept, budget.total)}, ${regions}` });
  if (slices) found.push({ name: 'First look', text: `${slices.encoded} of ${slices.total} slices were encoded before this answer` });
  for (const note of answer.notes ?? []) found.push({ name: 'Note', text: note, warn: true });
  return found;
}

export function kept(n: number, total: number): string {
  return `${n} of ${total} tokens (${((100 * n) / total).toFixed(1)} %)`;
}

const STAGES: Record<string, string> = {
  loading: 'loading the study',
  encoding: 'looking at the images',
  selecting: 'choosing what to read',
  reading: 'reading',
  rechecking: 'in doubt: re-checking with more tokens',
};

export function stage(name: string): string {
  return STAGES[name] ?? name;
}

const signed = (value: number) => `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(2)}`;

export function reward(reply: Feedback): { total: string; parts: Fact[] } {
  const parts = Object.entries(reply.reward.parts).flatMap(([name, value]) =>
    value === null ? [] : [{ name, text: signed(value) }],
  );
  return { total: signed(reply.reward.total), parts };
}

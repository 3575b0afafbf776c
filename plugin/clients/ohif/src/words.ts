/** What is said to the reader: words rather than bare numbers, the same as on the server's own page. */
import type { Answer, Change, Feedback, Given, Learning, Policy, Results } from './client';
import type { Drawn } from './review';

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

const SIDE = /\b(left|right)\b/i;
const OURS = /^(nano|smol)\b/; // their words name places in the picture; those of another model may mean the patient

/** Whose left and right: said where a question or its answer names one. */
export function sides({ question, answer, reasoning, reader }: Answer): Fact[] {
  if (![question, answer, reasoning].some(text => SIDE.test(text))) return [];
  const whose = OURS.test(reader) ? 'those of the picture, not of the patient' : 'those of the picture or of the patient: this model does not say which';
  return [{ name: 'Left, right', text: whose, warn: true }];
}

export function said(answer: Answer): string {
  return answer.abstained ? 'No answer' : answer.answer;
}

/** All that a reader must know to trust an answer or not. */
export function facts(answer: Answer): Fact[] {
  const { budget, grounded, slices, recheck } = answer;
  const regions = `${answer.evidence.length} region${answer.evidence.length === 1 ? '' : 's'}`;
  const found: Fact[] = [
    ...sides(answer),
    { name: 'Confidence', text: answer.abstained ? 'too low to answer' : confidence(answer.confidence), warn: answer.abstained },
  ];
  if (grounded === null) found.push({ name: 'Grounded', text: 'not tested' });
  else if (grounded) found.push({ name: 'Grounded', text: 'yes: without these regions the answer loses its support' });
  else found.push({ name: 'Not grounded', text: 'the answer hardly depends on the regions shown', warn: true });
  if (recheck) found.push({ name: 'Re-checked', text: recheck.note, warn: recheck.changed });
  found.push({ name: 'Looked at', text: `${kept(budget.kept, budget.total)}, ${regions}` });
  if (slices) found.push({ name: 'First look', text: `${slices.encoded} of ${slices.total} slices were encoded before this answer` });
  for (const note of answer.notes ?? []) found.push({ name: 'Note', text: note, warn: true });
  found.push({ name: 'Policy', text: answer.policy.id });
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
  const notes = (reply.notes ?? []).map(text => ({ name: 'Note', text }));
  return { total: signed(reply.reward.total), parts: [...parts, ...notes] };
}

/** A recorded correction in a line. */
export function given(one: Given): string {
  const said = one.answer ?? (one.cannot_tell ? 'the image cannot tell' : '');
  const marks = one.marks.length ? `${one.marks.length} region${one.marks.length === 1 ? '' : 's'}` : '';
  const what = one.blinded ? 'read blinded' : { accept: 'accepted', amend: 'amended', reject: 'rejected' }[one.verdict];
  return [`${one.reviewer}: ${what}`, said, marks, one.difficulty ?? '', one.comment].filter(Boolean).join(', ');
}

/** What became of it. */
export function fate(one: Given): string {
  if (one.blinded) return 'kept apart: nothing is learned from it';
  const learned = one.learned_by.length ? `learned by ${one.learned_by.join(', ')}` : 'not learned from yet';
  if (one.state === 'draft') return 'a draft: nothing is learned from it';
  return one.state === 'withdrawn' ? `withdrawn${one.learned_by.length ? `, but ${learned}` : ''}` : learned;
}

export const CHANGES: Record<Change, string> = { submit: 'Submit', withdraw: 'Withdraw', undo: 'Undo' };

export function stored({ status, objects, left_out }: Results): string {
  const kinds = [...new Set(objects.map(object => object.kind))].join(', ');
  return `In the PACS: ${kinds} (${status}).${left_out.map(one => ` No ${one.kind}: ${one.why}.`).join('')}`;
}

/** How far learning is, or what came of it. */
export function learning(job: Learning | null): string {
  if (!job || job.state === 'idle') return '';
  const { stage, done, total, promoted, reasons, error } = job.stats as Record<string, any>;
  if (job.state === 'running') return `learning: ${stage ?? 'starting'}${total ? ` ${done} of ${total}` : ''}`;
  if (job.state !== 'done') return `learning ${job.state}: ${error?.given ?? 'see the log'}`;
  return promoted ? 'learned, and promoted' : `learned: ${(reasons ?? []).join('; ') || 'nothing new'}`;
}

export function policy(one: Policy): string {
  return `${one.id}: ${one.state}${one.sign_off ? `, signed by ${one.sign_off}` : ''}`;
}

export function mark(one: Drawn): string {
  return `${one.kind} ${'box' in one ? 'region' : one.path.length === 1 ? 'point' : 'stroke'}`;
}

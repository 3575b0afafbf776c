/** One review: verdict, answer, marks, undo; kept in the browser until it is recorded. Knows nothing of OHIF. */
import type { Answer, FeedbackRequest, Mark } from './client';
import type { Box } from './geometry';

export type Kind = Mark['kind'];
export type Verdict = FeedbackRequest['verdict'];

export interface Drawn {
  id: string; // of the measurement in the viewer
  kind: Kind;
  box: Box;
}

interface Draft {
  verdict: Verdict | null;
  answer: string;
  comment: string;
  marks: Drawn[];
  sent: { content: string; key: string } | null;
}

const EMPTY: Draft = { verdict: null, answer: '', comment: '', marks: [], sent: null };
const PREFIX = 'sparsight:draft:';

/** The part of Storage that is needed; a browser may refuse it. */
export interface Keeper {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export class Review {
  private draft: Draft;
  private past: Draft[] = [];

  constructor(
    readonly episode: string,
    private readonly keeper: Keeper,
  ) {
    this.draft = restored(keeper, episode);
  }

  get verdict(): Verdict | null {
    return this.draft.verdict;
  }
  get answer(): string {
    return this.draft.answer;
  }
  get comment(): string {
    return this.draft.comment;
  }
  get marks(): readonly Drawn[] {
    return this.draft.marks;
  }
  get empty(): boolean {
    const { verdict, answer, comment, marks } = this.draft;
    return !verdict && !answer && !comment && !marks.length;
  }

  judge(verdict: Verdict): void {
    this.change({ verdict: this.draft.verdict === verdict ? null : verdict });
  }

  /** Typing is one step: what is undone is the last thing that was done, not the last letter. */
  write(answer: string): void {
    this.change({ answer, ...(answer.trim() ? { verdict: 'amend' as const } : {}) }, !!this.draft.answer);
  }

  remark(comment: string): void {
    this.change({ comment }, !!this.draft.comment);
  }

  mark(drawn: Drawn): void {
    this.change({ marks: [...this.draft.marks.filter(other => other.id !== drawn.id), drawn] });
  }

  /** A region that was moved or stretched. */
  move(id: string, box: Box): void {
    if (!this.draft.marks.some(mark => mark.id === id)) return;
    this.change({ marks: this.draft.marks.map(mark => (mark.id === id ? { ...mark, box } : mark)) }, true);
  }

  unmark(id: string): void {
    if (this.draft.marks.some(mark => mark.id === id)) this.change({ marks: this.draft.marks.filter(mark => mark.id !== id) });
  }

  /** Take back the last step; the marks that are gone with it and those that are back. */
  undo(): { gone: Drawn[]; back: Drawn[] } | null {
    const before = this.past.pop();
    if (!before) return null;
    const missing = (a: readonly Drawn[], b: readonly Drawn[]) => a.filter(mark => !b.some(other => other.id === mark.id));
    const step = { gone: missing(this.draft.marks, before.marks), back: missing(before.marks, this.draft.marks) };
    this.draft = { ...before, sent: this.draft.sent };
    this.keep();
    return step;
  }

  discard(): void {
    this.change({ ...EMPTY, sent: this.draft.sent });
  }

  /** Why it cannot be sent yet, in words; null where it can. */
  missing(answer: Answer): string | null {
    const { verdict, answer: right, marks } = this.draft;
    if (!verdict) return 'Accept, amend or reject first.';
    const same = right.trim().toLowerCase() === answer.answer.trim().toLowerCase();
    if (verdict === 'amend' && !right.trim() && !marks.length) return 'Write the right answer, or mark a region.';
    if (verdict === 'accept' && right.trim() && !same) return 'Another answer is an amendment.';
    if (verdict === 'reject' && right.trim() && same) return 'This is the answer that was given.';
    return null;
  }

  /** What is sent. The same content has the same key, however often it is sent: it is recorded once. */
  request(reviewer: string, newKey: () => string = () => crypto.randomUUID()): FeedbackRequest {
    const { verdict, answer, comment, marks } = this.draft;
    if (!verdict) throw new Error('a review without a verdict');
    const content = {
      episode: this.episode,
      reviewer,
      verdict,
      answer: answer.trim() || null,
      comment: comment.trim(),
      marks: marks.map(({ kind, box }) => ({ kind, box_mm: box })),
    };
    const text = JSON.stringify(content);
    if (this.draft.sent?.content !== text) this.draft.sent = { content: text, key: `ohif-${newKey()}` };
    this.keep();
    return { ...content, key: this.draft.sent.key };
  }

  /** It is recorded: nothing is kept of it in the browser. */
  recorded(): void {
    this.past = [];
    attempt(() => this.keeper.removeItem(PREFIX + this.episode));
  }

  private change(next: Partial<Draft>, sameStep = false): void {
    if (!sameStep) this.past.push(this.draft);
    this.draft = { ...this.draft, ...next };
    this.keep();
  }

  private keep(): void {
    attempt(() => this.keeper.setItem(PREFIX + this.episode, JSON.stringify(this.draft)));
  }
}

function restored(keeper: Keeper, episode: string): Draft {
  const text = attempt(() => keeper.getItem(PREFIX + episode));
  try {
    return text ? { ...EMPTY, ...(JSON.parse(text) as Partial<Draft>) } : { ...EMPTY };
  } catch {
    return { ...EMPTY };
  }
}

/** A browser may have no room, or forbid it: the review goes on without. */
function attempt<T>(work: () => T): T | null {
  try {
    return work();
  } catch {
    return null;
  }
}

/** One review: verdict, answer, marks, undo; kept in the browser until it is recorded. Knows nothing of OHIF. */
import type { Answer, FeedbackRequest, Mark } from './client';
import type { Box, Vec3 } from './geometry';

export type Kind = Mark['kind'];
/** The colour of each kind of mark, on the image as in the panel. */
export const MARKS: Record<Kind, string> = { relevant: '#5fd38d', missed: '#ffb020', irrelevant: '#ff7a70' };
export type Verdict = FeedbackRequest['verdict'];
export type Difficulty = NonNullable<FeedbackRequest['difficulty']>;

export const DIFFICULTIES: Difficulty[] = ['easy', 'moderate', 'hard'];

/** A marked region: a box, or a path with half a pen's width in mm; one point is a click. id: of its measurement; frame: of reference. */
export type Drawn = { id: string; kind: Kind; frame?: string } & ({ box: Box } | { path: Vec3[]; radius: number });

interface Draft {
  verdict: Verdict | null;
  answer: string;
  cannotTell: boolean;
  difficulty: Difficulty | null;
  comment: string;
  marks: Drawn[];
  sent: { content: string; key: string } | null;
}

const EMPTY: Draft = { verdict: null, answer: '', cannotTell: false, difficulty: null, comment: '', marks: [], sent: null };
const PREFIX = 'sparsight:draft:';
const UID = /^[0-9.]{1,64}$/;

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
  get cannotTell(): boolean {
    return this.draft.cannotTell;
  }
  get difficulty(): Difficulty | null {
    return this.draft.difficulty;
  }
  get comment(): string {
    return this.draft.comment;
  }
  get marks(): readonly Drawn[] {
    return this.draft.marks;
  }
  get empty(): boolean {
    const { verdict, answer, cannotTell, difficulty, comment, marks } = this.draft;
    return !verdict && !answer && !cannotTell && !difficulty && !comment && !marks.length;
  }

  judge(verdict: Verdict): void {
    this.change({ verdict: this.draft.verdict === verdict ? null : verdict });
  }

  /** Typing is one step: what is undone is the last thing that was done, not the last letter. */
  write(answer: string): void {
    const amended = answer.trim() ? { verdict: 'amend' as const, cannotTell: false } : {};
    this.change({ answer, ...amended }, !!this.draft.answer);
  }

  /** That this image does not answer the question, in place of an answer; the same again takes it back. */
  tellNothing(): void {
    const cannotTell = !this.draft.cannotTell;
    this.change({ cannotTell, ...(cannotTell ? { verdict: 'amend' as const, answer: '' } : {}) });
  }

  rate(difficulty: Difficulty): void {
    this.change({ difficulty: this.draft.difficulty === difficulty ? null : difficulty });
  }

  /** One step harder; from hard back to not said. */
  rateNext(): void {
    const { difficulty } = this.draft;
    this.change({ difficulty: difficulty ? (DIFFICULTIES[DIFFICULTIES.indexOf(difficulty) + 1] ?? null) : 'easy' });
  }

  remark(comment: string): void {
    this.change({ comment }, !!this.draft.comment);
  }

  mark(drawn: Drawn): void {
    this.change({ marks: [...this.draft.marks.filter(other => other.id !== drawn.id), drawn] });
  }

  /** Of a region that is there without being drawn: relevant, then irrelevant, then no mark. */
  markNext(id: string, box: Box, frame = ''): void {
    const before = this.draft.marks.find(mark => mark.id === id)?.kind;
    if (before === 'irrelevant') this.unmark(id);
    else this.mark({ id, kind: before ? 'irrelevant' : 'relevant', box, frame });
  }

  /** A region that was moved or stretched. */
  move(id: string, shape: { box: Box } | { path: Vec3[] }): void {
    if (!this.draft.marks.some(mark => mark.id === id)) return;
    this.change({ marks: this.draft.marks.map(mark => (mark.id === id ? ({ ...mark, ...shape } as Drawn) : mark)) }, true);
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
    const { verdict, answer: right, cannotTell, marks } = this.draft;
    if (!verdict) return 'Accept, amend or reject first.';
    if (cannotTell && right.trim()) return 'Either another answer, or that the image cannot tell.';
    if (cannotTell && verdict === 'accept' && !answer.abstained) return 'An answer that cannot be told is amended or rejected.';
    const same = right.trim().toLowerCase() === answer.answer.trim().toLowerCase();
    if (verdict === 'amend' && !right.trim() && !marks.length && !cannotTell) return 'Write the right answer, or mark a region.';
    if (verdict === 'accept' && right.trim() && !same) return 'Another answer is an amendment.';
    if (verdict === 'reject' && right.trim() && same) return 'This is the answer that was given.';
    return null;
  }

  /** What is sent. The same content has the same key, however often it is sent: it is recorded once. */
  request(reviewer: string, how: How = {}, newKey: () => string = () => crypto.randomUUID()): FeedbackRequest {
    const { verdict, answer, cannotTell, difficulty, comment, marks } = this.draft;
    if (!verdict) throw new Error('a review without a verdict');
    const content = {
      episode: this.episode,
      reviewer,
      verdict,
      answer: answer.trim() || null,
      cannot_tell: cannotTell,
      difficulty,
      comment: comment.trim(),
      marks: how.blinded ? [] : marks.map(sent),
      draft: how.draft ?? false,
      blinded: how.blinded ?? false,
    };
    const text = JSON.stringify(content);
    if (this.draft.sent?.content !== text) this.draft.sent = { content: text, key: `ohif-${newKey()}` };
    this.keep();
    return { ...content, key: this.draft.sent.key };
  }

  /** Another tab changed what the browser keeps under `key`, null: all of it. Take it over, where it is this review; whether it is. */
  follow(key: string | null): boolean {
    if (key !== null && key !== PREFIX + this.episode) return false;
    this.draft = restored(this.keeper, this.episode);
    this.past = [];
    return true;
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

/** draft: nothing is learned from it until it is submitted. blinded: what was said before the answer was seen. */
export interface How {
  draft?: boolean;
  blinded?: boolean;
}

/** With the frame of reference that its millimetres are of, where the images have one: the server refuses a mark of another. */
function sent(mark: Drawn): Mark {
  const { kind, frame } = mark;
  const of = frame && UID.test(frame) ? { frame_of_reference: frame } : {};
  return 'box' in mark ? { kind, box_mm: mark.box, ...of } : { kind, path_mm: mark.path, radius_mm: mark.radius, ...of };
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

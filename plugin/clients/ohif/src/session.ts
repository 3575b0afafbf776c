/** One reader at one viewer: what is on screen, the question, the answer, its review. The panel shows it, keys steer it. */
import { Refused, type Answer, type Client, type Feedback, type Kept, type Study, type Tokens } from './client';
import type { Drawing } from './overlay';
import { Review, type Keeper, type Kind, type Verdict } from './review';
import type { Place, Shown, Viewer } from './viewer';

export interface Asking {
  question: string;
  stage: string;
  reasoning: string;
  answer: string;
  kept: Kept | null;
  since: number; // ms
}

type Screen = Pick<Viewer, 'shown' | 'frameOfReference' | 'onChange' | 'jump' | 'draw' | 'stopDrawing' | 'label' | 'erase' | 'onDrawn'>;
interface Picture {
  visible: boolean;
  opacity: number;
  show(drawing: Drawing | null): void;
}

const REVIEWER = 'sparsight:reviewer';
const SKIPPED = 'sparsight:skipped';
const WANTED = 'sparsight:wanted'; // the question that goes with the case that is opened next
const PSEUDONYM = /^[A-Za-z0-9._-]{1,64}$/;

export class Session extends EventTarget {
  shown: Shown | null = null;
  question = '';
  suggestions: string[] = [];
  asking: Asking | null = null;
  answer: Answer | null = null;
  earlier: Answer[] = [];
  review: Review | null = null;
  recorded: Feedback | null = null;
  drawing: Kind | null = null;
  chosen = -1;
  busy = '';
  trouble = '';
  private place: Place | null = null;
  private tokens: Tokens | null = null;
  private stop: AbortController | null = null;
  private studies: Study[] | null = null;
  private readonly ends: (() => void)[] = [];

  constructor(
    private readonly client: Client,
    private readonly screen: Screen,
    readonly picture: Picture,
    private readonly kept: Keeper,
    private readonly thisTab: Keeper,
    private readonly open: (study: Study) => void,
  ) {
    super();
  }

  start(): void {
    this.ends.push(
      this.screen.onChange(() => void this.follow()),
      this.screen.onDrawn(() => this.place, {
        added: (id, box) => {
          if (!this.drawing || !this.review) return;
          this.review.mark({ id, kind: this.drawing, box });
          this.screen.label(id, this.drawing);
          this.drawing = null;
          this.screen.stopDrawing();
          this.changed();
        },
        moved: (id, box) => this.review?.move(id, box),
        removed: id => {
          this.review?.unmark(id);
          this.changed();
        },
      }),
    );
    void this.follow();
  }

  end(): void {
    this.stop?.abort();
    this.ends.splice(0).forEach(end => end());
  }

  get reviewer(): string {
    return this.kept.getItem(REVIEWER) ?? 'anonymous';
  }
  set reviewer(name: string) {
    if (PSEUDONYM.test(name)) this.kept.setItem(REVIEWER, name);
    this.changed();
  }

  /** Another series came on screen: its suggestions, its earlier answers, and the newest of them. */
  async follow(): Promise<void> {
    const shown = this.screen.shown();
    const before = this.shown;
    this.shown = shown;
    if (!shown || shown.series === before?.series) return;
    this.stop?.abort();
    this.leave();
    await this.attempt('', async () => {
      this.studies ??= await this.client.studies();
      const study = this.study();
      this.earlier = await this.client.episodes(study);
      const wanted = this.wantedQuestion(study);
      const suggested = this.studies.find(other => other.id === study)?.question;
      const asked = this.earlier.map(answer => answer.question);
      this.suggestions = [...new Set([suggested, ...asked].filter(text => text !== undefined))].slice(0, 5);
      this.question = wanted ?? suggested ?? '';
      if (!wanted && this.earlier[0]) await this.show(this.earlier[0]);
    });
  }

  async ask(): Promise<void> {
    const question = this.question.trim();
    if (!question || !this.shown || this.asking) return;
    const stop = (this.stop = new AbortController());
    this.leave();
    this.asking = { question, stage: 'loading', reasoning: '', answer: '', kept: null, since: performance.now() };
    const asking = this.asking;
    this.place = this.here();
    const study = this.study();
    const heard = (change: Partial<Asking>) => {
      Object.assign(asking, change);
      this.changed();
    };
    await this.attempt('', async () => {
      try {
        const answer = await this.client.ask(
          { study, question },
          {
            stage: stage => heard({ stage }),
            kept: kept => heard({ kept, reasoning: '' }),
            token: text => heard({ reasoning: asking.reasoning + text }),
            answer: answer => heard({ answer }),
          },
          stop.signal,
        );
        this.asking = null;
        if (this.study() !== study) return; // another series is on screen by now: it is in that study's list
        this.earlier = [answer, ...this.earlier.filter(other => other.episode !== answer.episode)];
        await this.show(answer);
      } catch (error) {
        if (!stop.signal.aborted) throw error;
      } finally {
        if (this.asking === asking) this.asking = null;
      }
    });
  }

  cancel(): void {
    if (this.drawing) this.mark(this.drawing);
    this.stop?.abort();
    this.asking = null;
    this.changed();
  }

  /** Bring an answer on screen, with the draft of its review. */
  async show(answer: Answer): Promise<void> {
    this.leave();
    this.answer = answer;
    this.review = new Review(answer.episode, this.kept);
    this.question = answer.question;
    this.place = this.here();
    this.changed();
    const [geometry, tokens] = await Promise.all([this.client.geometry(answer.episode), this.client.tokens(answer.episode)]);
    if (this.answer !== answer) return;
    this.place = { ...this.place, geometry };
    this.tokens = tokens;
    this.changed();
    this.step(1);
  }

  // --- evidence ---

  /** Go to a region's slice, heaviest first. */
  choose(n: number): void {
    const region = this.answer?.evidence[n];
    if (!region || !this.place) return;
    this.chosen = n;
    this.screen.jump(region, this.place);
    this.changed();
  }

  step(by: 1 | -1): void {
    const count = this.answer?.evidence.length ?? 0;
    if (count) this.choose((Math.max(this.chosen, by > 0 ? -1 : 0) + by + count) % count);
  }

  toggleEvidence(): void {
    this.picture.visible = !this.picture.visible;
    this.changed();
  }

  fade(by: number): void {
    this.picture.opacity = Math.min(1, Math.max(0.1, this.picture.opacity + by));
    this.changed();
  }

  // --- review ---

  judge(verdict: Verdict): void {
    this.edit(review => review.judge(verdict));
  }

  write(answer: string): void {
    this.edit(review => review.write(answer));
  }

  remark(comment: string): void {
    this.edit(review => review.remark(comment));
  }

  /** The next rectangle marks a region of this kind; the same key again: no mark after all. */
  mark(kind: Kind): void {
    if (!this.review || this.recorded) return;
    this.drawing = this.drawing === kind ? null : kind;
    if (this.drawing) this.screen.draw();
    else this.screen.stopDrawing();
    this.changed();
  }

  unmark(id: string): void {
    this.edit(review => review.unmark(id));
    this.screen.erase(id);
  }

  undo(): void {
    this.edit(review => review.undo()?.gone.forEach(mark => this.screen.erase(mark.id)));
  }

  discard(): void {
    const marks = this.review?.marks ?? [];
    this.edit(review => review.discard());
    marks.forEach(mark => this.screen.erase(mark.id));
  }

  async submit(): Promise<void> {
    const { review, answer } = this;
    if (!review || !answer || this.recorded || this.busy) return;
    this.trouble = review.missing(answer) ?? '';
    this.changed();
    if (this.trouble) return;
    await this.attempt('sending', async () => {
      const reply = await this.client.feedback(review.request(this.reviewer));
      review.recorded();
      if (this.review === review) this.recorded = reply;
    });
  }

  /** Open the study where one more correction would teach most; the one on screen counts as seen. */
  async nextCase(): Promise<void> {
    await this.attempt('looking for the next case', async () => {
      const skipped = new Set<string>(JSON.parse(this.thisTab.getItem(SKIPPED) ?? '[]'));
      if (this.shown) skipped.add(this.study());
      this.thisTab.setItem(SKIPPED, JSON.stringify([...skipped]));
      const next = await this.client.nextCase([...skipped]);
      const study = this.studies?.find(other => other.id === next.study);
      if (!next.study || !study?.study_uid) {
        this.thisTab.removeItem(SKIPPED); // begin anew next time
        this.trouble = 'All cases were seen.';
        return;
      }
      this.thisTab.setItem(WANTED, JSON.stringify({ study: study.id, question: next.question }));
      this.open(study);
    });
  }

  // --- inside ---

  /** The id under which the server knows what is on screen: of its series, or of a picture within one. */
  private study(): string {
    const { series = '', image = '' } = this.shown ?? {};
    const known = (id: string) => this.studies?.some(study => study.id === id);
    return !known(series) && known(image) ? image : series;
  }

  private wantedQuestion(study: string): string | null {
    const text = this.thisTab.getItem(WANTED);
    if (!text) return null;
    const wanted = JSON.parse(text) as { study: string; question: string };
    if (wanted.study !== study) return null;
    this.thisTab.removeItem(WANTED);
    return wanted.question;
  }

  private here(): Place {
    return { series: this.shown?.series ?? '', frame: this.screen.frameOfReference(), geometry: null };
  }

  private drawn(): Drawing | null {
    const regions = this.answer?.evidence ?? this.asking?.kept?.regions;
    if (!regions || !this.place) return null;
    return { place: this.place, regions, tokens: this.tokens, chosen: this.chosen, marks: this.review?.marks ?? [] };
  }

  private edit(change: (review: Review) => void): void {
    if (!this.review || this.recorded) return;
    change(this.review);
    this.trouble = '';
    this.changed();
  }

  /** What was on screen goes; drafts stay where they are kept. */
  private leave(): void {
    const marks = this.review?.marks ?? [];
    Object.assign(this, { answer: null, review: null, recorded: null, drawing: null, tokens: null, chosen: -1, trouble: '' });
    marks.forEach(mark => this.screen.erase(mark.id)); // after the review was put away, which they would vanish from
    this.changed();
  }

  private async attempt(busy: string, work: () => Promise<void>): Promise<void> {
    this.busy = busy;
    this.changed();
    try {
      await work();
    } catch (error) {
      this.trouble = error instanceof Refused ? error.message : `Something went wrong here: ${String(error)}`;
    } finally {
      this.busy = '';
      this.changed();
    }
  }

  private changed(): void {
    this.picture.show(this.drawn());
    this.dispatchEvent(new Event('change'));
  }
}

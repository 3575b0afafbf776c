/** One reader at one viewer: what is on screen, the question, the answer, its review. The panel shows it, keys steer it. */
import { isWithheld, Refused, type Answer, type Client, type Feedback, type Study, type Tokens, type Withheld } from './client';
import { Asking, type Reading } from './asking';
import { Cases } from './cases';
import { beside, corners, type Box } from './geometry';
import { Recorded } from './given';
import { Lessons } from './lessons';
import type { Drawing, Picture } from './overlay';
import { Review, type Drawn, type Keeper, type Kind, type Verdict } from './review';
import { NEXT_TOOL, type Place, type Screen, type Shown, type Tool } from './viewer';
import { Unread } from './unread';
import { Who } from './who';
import * as words from './words';

const SOON_MS = 250;
const NO_MARKS: readonly Drawn[] = [];

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
  tool: Tool = 'box';
  pen = 0; // mm: width of strokes and points
  chosen = -1;
  readings: Reading[] = []; // of the answer on screen, where it was heard here
  reading = -1; // whose tokens are shown; -1: the evidence
  withheld: Withheld | null = null;
  own: string | null = null; // what this reader answered before the answer was shown
  stored = '';
  readonly who: Who;
  readonly given: Recorded;
  readonly lessons: Lessons;
  readonly cases: Cases;
  readonly unread: Unread;
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
    thisTab: Keeper,
    open: (study: Study) => void,
  ) {
    super();
    const [work, reviewer] = [this.attempt.bind(this), () => this.reviewer];
    this.who = new Who(kept);
    this.unread = new Unread(kept);
    this.given = new Recorded(client, work, reviewer, () => this.who.may('reviewer'));
    const around = { studies: () => this.studies, study: () => (this.shown ? this.study() : null) };
    this.cases = new Cases(client, work, thisTab, around, open);
    this.lessons = new Lessons(client, work, reviewer, () => this.changed(), () => this.who.may('trainer'));
  }

  start(): void {
    const heard = (event: StorageEvent) => void this.elsewhere(event.key);
    window.addEventListener('storage', heard);
    this.ends.push(
      () => window.removeEventListener('storage', heard),
      () => this.lessons.end(),
      this.screen.onChange(() => void this.follow()),
      this.screen.onDrawn(() => this.place, {
        added: (id, shape) => {
          if (!this.drawing || !this.review) return;
          if (this.review.marks.some(mark => mark.id === id)) return this.review.move(id, shape); // one that was touched again
          if (this.place?.geometry && beside('box' in shape ? corners(shape.box) : shape.path, this.place.geometry)) {
            this.screen.erase(id);
            return this.say('That is outside the image, and was not marked. Draw over the image.');
          }
          this.review.mark({ id, kind: this.drawing, ...('box' in shape ? shape : { ...shape, radius: this.pen / 2 }) });
          this.screen.label(id, this.drawing);
          this.putDown();
        },
        moved: (id, shape) => this.review?.move(id, shape),
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
    return this.who.reviewer;
  }
  set reviewer(name: string) {
    this.who.reviewer = name;
    this.changed();
  }

  /** Another series came on screen: its suggestions, its earlier answers, and the newest of them. */
  async follow(): Promise<void> {
    const [before, shown] = [this.shown, this.screen.shown()];
    this.shown = shown;
    if (!shown || shown.series === before?.series) return;
    this.stop?.abort();
    this.leave();
    await this.attempt('', async () => {
      if (!this.studies) {
        const [me, studies] = await Promise.all([this.client.me(), this.client.studies()]);
        [this.who.me, this.studies] = [me, studies];
      }
      const study = this.study();
      this.earlier = await this.client.episodes(study);
      const wanted = this.cases.wanted(study);
      const suggested = this.studies.find(other => other.id === study)?.question;
      this.suggestions = [...new Set([suggested, ...this.earlier.map(answer => answer.question)].filter(text => text !== undefined))].slice(0, 5);
      this.question = wanted ?? suggested ?? '';
      const unread = this.unread.of(study);
      if (unread) this.hold(unread);
      else if (!wanted && this.earlier[0]) await this.show(this.earlier[0]);
    });
  }

  async ask(): Promise<void> {
    const question = this.question.trim();
    if (!question || !this.shown) return;
    if (this.asking) return this.say('One question at a time: Esc stops the one that is being answered.');
    const stop = (this.stop = new AbortController());
    this.leave();
    const asking = (this.asking = new Asking(question));
    this.place = this.here();
    const study = this.study();
    this.changed();
    await this.attempt('', async () => {
      try {
        const answer = await this.client.ask(
          { study, question, blinded: this.unread.wanted },
          asking.listener(() => this.changed()),
          stop.signal,
        );
        this.asking = null;
        if (isWithheld(answer)) this.unread.keep(answer);
        if (this.study() !== study) return; // another series is on screen by now: it is in that study's list
        if (isWithheld(answer)) return this.hold(answer);
        await this.arrive(answer, asking.readings);
      } catch (error) {
        if (!stop.signal.aborted) throw error;
      } finally {
        if (this.asking === asking) this.asking = null;
      }
    });
  }

  cancel(): void {
    this.putDown();
    this.stop?.abort();
    this.asking = null;
    this.changed();
  }

  // --- a blinded first read ---

  toggleBlinded(): void {
    this.unread.wanted = !this.unread.wanted;
    this.changed();
  }

  /** Send the reader's own answer; then ours is shown. */
  async readFirst(): Promise<void> {
    const { withheld, review } = this;
    if (!withheld || !review || this.busy) return;
    if (!review.answer.trim() && !review.cannotTell) return this.say('Write your own answer, or that the image cannot tell.');
    await this.attempt('sending', async () => {
      await this.client.feedback(review.request(this.reviewer, { blinded: true }));
      const own = review.cannotTell ? 'the image cannot tell' : review.answer.trim();
      review.recorded();
      this.unread.drop(withheld);
      const answer = await this.client.answer(withheld.episode);
      if (this.withheld !== withheld) return;
      await this.arrive(answer, []);
      this.own = own;
    });
  }

  /** Give it up: what was asked stays kept back. */
  forget(): void {
    if (!this.withheld) return;
    this.unread.drop(this.withheld);
    this.review?.recorded();
    this.leave();
  }

  private hold(withheld: Withheld): void {
    this.leave();
    this.withheld = withheld;
    this.question = withheld.question;
    this.review = new Review(withheld.episode, this.kept);
    this.changed();
  }

  private async arrive(answer: Answer, readings: Reading[]): Promise<void> {
    this.earlier = [answer, ...this.earlier.filter(other => other.episode !== answer.episode)];
    await this.show(answer, readings);
  }

  /** Bring an answer on screen, with the draft of its review. */
  async show(answer: Answer, readings: Reading[] = []): Promise<void> {
    this.leave();
    this.answer = answer;
    this.readings = readings;
    this.given.begin(answer.episode);
    this.review = this.who.may('reviewer') ? new Review(answer.episode, this.kept) : null;
    this.question = answer.question;
    this.place = this.here();
    this.changed();
    const [geometry, tokens] = await Promise.all([this.client.geometry(answer.episode), this.client.tokens(answer.episode)]);
    if (this.answer !== answer) return;
    this.place = { ...this.place, geometry };
    this.tokens = tokens;
    this.changed();
    this.step(1);
    await this.given.load();
    this.changed();
  }

  // --- evidence ---

  /** Go to a region's slice, heaviest first. */
  choose(n: number): void {
    const region = this.answer?.evidence[n];
    if (!region || !this.place) return;
    this.reading = -1;
    this.chosen = n;
    this.screen.jump(region, this.place);
    this.changed();
  }

  step(by: 1 | -1): void {
    const count = this.answer?.evidence.length ?? 0;
    if (count) this.choose((Math.max(this.chosen, by > 0 ? -1 : 0) + by + count) % count);
  }

  /** Through the readings of the question, each with the tokens it kept, and back to the evidence. */
  stepReading(by: 1 | -1): void {
    if (this.readings.length < 2) return;
    const count = this.readings.length + 1; // the evidence is before the first
    this.showReading(((this.reading + 1 + by + count) % count) - 1);
  }

  showReading(n: number): void {
    this.reading = n;
    this.chosen = -1;
    const region = this.readings[n]?.regions[0];
    if (region && this.place) this.screen.jump(region, this.place);
    this.changed();
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
    if (!this.withheld) this.edit(review => review.judge(verdict));
  }

  write(answer: string): void {
    this.edit(review => review.write(answer));
  }

  /** What is drawn next marks a region of this kind; the same key again: no mark after all. */
  mark(kind: Kind): void {
    if (!this.review || this.recorded || this.withheld) return;
    if (this.drawing === kind) return this.putDown();
    this.drawing = kind;
    this.screen.draw(this.tool);
    this.changed();
  }

  /** Without drawing: the region that is looked at is relevant, irrelevant, not marked. */
  markRegion(): void {
    const region = this.answer?.evidence[this.chosen];
    if (region) this.edit(review => review.markNext(`region-${this.chosen}`, region.box_mm as Box, this.place?.frame));
  }

  /** No mark after all: what was begun on the image goes. */
  private putDown(): void {
    if (!this.drawing) return;
    this.drawing = null;
    this.screen.stopDrawing();
    this.changed();
  }

  /** Draw boxes, strokes or points from now on. */
  take(tool: Tool = NEXT_TOOL[this.tool]): void {
    this.tool = tool;
    if (this.drawing) this.screen.draw(tool);
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
    this.putDown();
    const marks = this.review?.marks ?? [];
    this.edit(review => review.discard());
    marks.forEach(mark => this.screen.erase(mark.id));
  }

  /** draft: the server keeps it, and nothing is learned from it until it is submitted. */
  async submit(draft = false): Promise<void> {
    if (this.withheld) return draft ? undefined : this.readFirst();
    const { review, answer } = this;
    if (!review || !answer || this.recorded || this.busy) return;
    const missing = review.missing(answer);
    if (missing) return this.say(missing);
    this.putDown();
    await this.attempt('sending', async () => {
      const reply = await this.client.feedback(review.request(this.reviewer, { draft }));
      review.recorded();
      if (this.review === review) this.recorded = reply;
    });
    await this.attempt('', () => this.given.load()); // the reward is shown by then
  }

  /** Another review of the same answer. */
  reviewAgain(): void {
    if (!this.answer || !this.recorded) return;
    this.review?.marks.forEach(mark => this.screen.erase(mark.id));
    this.review = new Review(this.answer.episode, this.kept);
    this.recorded = null;
    this.changed();
  }

  /** The answer and its corrections as DICOM into the PACS. */
  async storeResults(): Promise<void> {
    const { answer } = this;
    if (!answer || this.busy) return;
    await this.attempt('storing in the PACS', async () => {
      const results = await this.client.store(answer.episode);
      if (this.answer === answer) this.stored = words.stored(results);
    });
  }

  async nextCase(): Promise<void> {
    await this.cases.next();
    if (this.cases.seenAll) this.say('All cases were seen.');
  }

  modality(study: string): string {
    return this.studies?.find(other => other.id === study)?.modality ?? '';
  }

  // --- inside ---

  /** The id under which the server knows what is on screen: of its series, or of a picture within one. */
  private study(): string {
    const { series = '', image = '' } = this.shown ?? {};
    const known = (id: string) => this.studies?.some(study => study.id === id);
    return !known(series) && known(image) ? image : series;
  }

  private here(): Place {
    return { series: this.shown?.series ?? '', frame: this.screen.frameOfReference(), geometry: null };
  }

  private drawn(): Drawing | null {
    const read = this.readings[this.reading];
    const regions = read?.regions ?? this.answer?.evidence ?? this.asking?.kept?.regions;
    if (!regions || !this.place) return null;
    const tokens = read ? null : this.tokens;
    return { place: this.place, regions, tokens, chosen: this.chosen, marks: this.review?.marks ?? NO_MARKS };
  }

  /** Another tab wrote into this review, or has sent or dropped it. */
  private async elsewhere(key: string | null): Promise<void> {
    const { review } = this;
    const begun = !!review && !review.empty;
    if (this.recorded || !review?.follow(key)) return;
    if (!begun || !review.empty) return this.say('');
    this.say('This review was sent or dropped in another tab.');
    await this.attempt('', () => this.given.load());
  }

  private say(trouble: string): void {
    this.trouble = trouble;
    this.changed();
  }

  edit(change: (review: Review) => void): void {
    if (!this.review || this.recorded) return;
    change(this.review);
    this.say('');
  }

  /** What was on screen goes; drafts stay where they are kept. */
  private leave(): void {
    this.putDown();
    const marks = this.review?.marks ?? [];
    Object.assign(this, { answer: null, review: null, recorded: null, tokens: null, chosen: -1, trouble: '' });
    Object.assign(this, { readings: [], reading: -1, withheld: null, own: null, stored: '' });
    this.given.begin('');
    marks.forEach(mark => this.screen.erase(mark.id)); // after the review was put away, which they would vanish from
    this.changed();
  }

  /** Do it, and say what went wrong. What is done soon is not announced before: without a GPU each frame costs a tenth of a second. */
  private async attempt(busy: string, work: () => Promise<void>): Promise<void> {
    if (busy) [this.busy, this.trouble] = [busy, ''];
    const soon = setTimeout(() => this.changed(), SOON_MS);
    try {
      await work();
    } catch (error) {
      this.trouble = error instanceof Refused ? error.message : `Something went wrong here: ${String(error)}`;
    } finally {
      clearTimeout(soon);
      if (busy) this.busy = '';
      this.changed();
    }
  }

  private changed(): void {
    this.dispatchEvent(new Event('change'));
    this.picture.show(this.drawn());
  }
}

/** An answer as it comes: what was heard of it so far. */
import type { Kept, Listener } from './client';

/** One reading of the question: the tokens it kept, as regions, and what was reasoned from them. */
export interface Reading extends Kept {
  reasoning: string;
}

export class Asking {
  stage = 'loading';
  answer = '';
  readings: Reading[] = [];
  readonly since = performance.now(); // ms

  constructor(readonly question: string) {}

  /** The reading that is under way; null before the first. */
  get kept(): Kept | null {
    return this.readings.at(-1) ?? null;
  }
  get reasoning(): string {
    return this.readings.at(-1)?.reasoning ?? '';
  }

  /** What to do with each event of the stream. */
  listener(changed: () => void): Listener {
    const then = (heard: () => void) => {
      heard();
      changed();
    };
    return {
      stage: stage => then(() => (this.stage = stage)),
      kept: kept => then(() => this.readings.push({ ...kept, reasoning: '' })),
      token: text =>
        then(() => {
          if (!this.readings.length) this.readings.push({ kept: 0, total: 0, regions: [], reasoning: '' });
          this.readings.at(-1)!.reasoning += text;
        }),
      answer: answer => then(() => (this.answer = answer)),
    };
  }
}

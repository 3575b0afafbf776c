/** What was recorded of an answer, by every reader, and what can still become of it. Knows nothing of OHIF. */
import type { Change, Client, Given } from './client';

export type Work = (busy: string, work: () => Promise<void>) => Promise<void>;

/** What its reader may do with a correction now: as the server's own rules are (docs/api.md). */
export function possible(given: Given): Change[] {
  const changes = given.changes.map(one => one['change']);
  const states = changes[0] === 'draft' ? [] : ['submitted'];
  for (const change of changes) {
    if (change === 'undo') states.pop();
    else states.push(change ?? '');
  }
  const found: Change[] = given.state === 'draft' ? ['submit', 'withdraw'] : given.state === 'submitted' ? ['withdraw'] : [];
  return states.length > 1 ? [...found, 'undo'] : found;
}

export class Recorded {
  list: Given[] = [];
  private episode = '';

  constructor(
    private readonly client: Pick<Client, 'given' | 'change'>,
    private readonly work: Work,
    private readonly reviewer: () => string,
    private readonly reviews: () => boolean,
  ) {}

  /** Nothing is known of this answer yet. */
  begin(episode: string): void {
    this.episode = episode;
    this.list = [];
  }

  async load(): Promise<void> {
    const { episode } = this;
    if (!episode || !this.reviews()) return;
    const list = await this.client.given(episode);
    if (this.episode === episode) this.list = list;
  }

  /** The newest of this reader's own corrections that can be changed so. */
  newest(change: Change): Given | undefined {
    return this.list.filter(given => given.reviewer === this.reviewer() && possible(given).includes(change)).at(-1);
  }

  async change(given: Given | undefined, change: Change): Promise<void> {
    if (!given) return;
    await this.work(`${WORDS[change]} the review`, async () => {
      await this.client.change(given.key, change, this.reviewer(), `ohif-${crypto.randomUUID()}`);
      await this.load();
    });
  }
}

const WORDS: Record<Change, string> = { submit: 'submitting', withdraw: 'withdrawing', undo: 'undoing the last change of' };

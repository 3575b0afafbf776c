/** Which case comes next, and the question that goes with it. Knows nothing of OHIF. */
import type { Case, Client, Study } from './client';
import type { Work } from './given';
import type { Keeper } from './review';

const SKIPPED = 'sparsight:skipped';
const WANTED = 'sparsight:wanted'; // the question that goes with the case that is opened next
const LISTED = 5;

/** The studies that the server has, and which of them is on screen. */
export interface Around {
  studies(): Study[] | null;
  study(): string | null;
}

export class Cases {
  queue: Case[] | null = null; // best first; null: not looked for yet
  seenAll = false;

  constructor(
    private readonly client: Pick<Client, 'nextCase'>,
    private readonly work: Work,
    private readonly thisTab: Keeper,
    private readonly around: Around,
    private readonly open: (study: Study) => void,
  ) {}

  /** Open the study where one more correction would teach most; the one on screen counts as seen. */
  async next(): Promise<void> {
    await this.work('looking for the next case', async () => {
      const skipped = new Set<string>(JSON.parse(this.thisTab.getItem(SKIPPED) ?? '[]'));
      const here = this.around.study();
      if (here) skipped.add(here);
      this.thisTab.setItem(SKIPPED, JSON.stringify([...skipped]));
      const { study, question } = await this.client.nextCase([...skipped]);
      this.seenAll = !study || !this.go(study, question ?? '');
      if (this.seenAll) this.thisTab.removeItem(SKIPPED); // begin anew next time
    });
  }

  /** List the cases where a correction would teach most; looking at them takes the server some seconds. */
  async list(): Promise<void> {
    await this.work('looking for the next cases', async () => {
      const here = this.around.study();
      this.queue = (await this.client.nextCase(here ? [here] : [], LISTED)).queue;
    });
  }

  /** Open a study with its question; false where it cannot be shown here. */
  go(id: string, question: string): boolean {
    const study = this.around.studies()?.find(other => other.id === id);
    if (!study?.study_uid) return false;
    this.thisTab.setItem(WANTED, JSON.stringify({ study: id, question }));
    this.open(study);
    return true;
  }

  /** The question that a study was opened with. */
  wanted(study: string): string | null {
    const text = this.thisTab.getItem(WANTED);
    if (!text) return null;
    const wanted = JSON.parse(text) as { study: string; question: string };
    if (wanted.study !== study) return null;
    this.thisTab.removeItem(WANTED);
    return wanted.question;
  }
}

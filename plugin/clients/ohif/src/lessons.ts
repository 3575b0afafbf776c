/** Learning from the corrections, and which policy answers. Knows nothing of OHIF. */
import type { Client, Learning, Policy } from './client';
import type { Work } from './given';

const LOOK_MS = 1500;

export class Lessons {
  policies: Policy[] = []; // newest first
  job: Learning | null = null;
  private ended = false;

  constructor(
    private readonly client: Pick<Client, 'learn' | 'learning' | 'policies' | 'promote'>,
    private readonly work: Work,
    private readonly reviewer: () => string,
    private readonly changed: () => void,
    private readonly trains: () => boolean,
    private readonly lookMs = LOOK_MS,
  ) {}

  end(): void {
    this.ended = true;
  }

  get running(): boolean {
    return this.job?.state === 'running';
  }

  /** The policies, and to who decides what is learned how far that is. */
  async load(): Promise<void> {
    await this.work('', async () => {
      this.policies = (await this.client.policies()).reverse();
      this.job = this.trains() ? await this.client.learning() : null;
    });
    if (this.running) await this.follow();
  }

  async start(): Promise<void> {
    if (this.running) return;
    await this.work('', async () => {
      this.job = await this.client.learn();
    });
    await this.follow();
  }

  /** Make a version live, signed with the reader's pseudonym. */
  async promote(policy: Policy): Promise<void> {
    await this.work('promoting', async () => {
      await this.client.promote(policy.id, this.reviewer());
      this.policies = (await this.client.policies()).reverse();
    });
  }

  /** Look again and again until learning has ended, or the panel. */
  private async follow(): Promise<void> {
    while (this.running && !this.ended) {
      await new Promise(resolve => setTimeout(resolve, this.lookMs));
      let heard = false;
      await this.work('', async () => {
        this.job = await this.client.learning();
        if (!this.running) this.policies = (await this.client.policies()).reverse();
        heard = true;
      });
      if (!heard) return; // the server is away: it says so, and the section can be opened anew
      this.changed();
    }
  }
}

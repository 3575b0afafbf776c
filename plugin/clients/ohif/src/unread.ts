/** Blinded first reads in this browser: whether they are wanted, and what was asked so and not read yet. */
import type { Withheld } from './client';
import type { Keeper } from './review';

const WANTED = 'sparsight:blinded';
const BY_STUDY = 'sparsight:withheld:';

export class Unread {
  constructor(private readonly keeper: Keeper) {}

  get wanted(): boolean {
    return this.keeper.getItem(WANTED) === 'yes';
  }
  set wanted(yes: boolean) {
    this.keeper.setItem(WANTED, yes ? 'yes' : 'no');
  }

  of(study: string): Withheld | null {
    const text = this.keeper.getItem(BY_STUDY + study);
    return text ? (JSON.parse(text) as Withheld) : null;
  }

  keep(withheld: Withheld): void {
    this.keeper.setItem(BY_STUDY + withheld.study, JSON.stringify(withheld));
  }

  drop(withheld: Withheld): void {
    this.keeper.removeItem(BY_STUDY + withheld.study);
  }
}

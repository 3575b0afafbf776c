/** Who reads: by a login, or under a pseudonym of their own choice. Knows nothing of OHIF. */
import type { Me } from './client';
import type { Keeper } from './review';

export type Role = NonNullable<Me['role']>;
const ROLES: readonly Role[] = ['reader', 'reviewer', 'trainer', 'admin'];
const REVIEWER = 'sparsight:reviewer';
const PSEUDONYM = /^[A-Za-z0-9._-]{1,64}$/;

export class Who {
  me: Me | null = null; // once the server has said; a reviewer or role of null: nobody has to log in

  constructor(private readonly kept: Keeper) {}

  get reviewer(): string {
    return this.me?.reviewer ?? this.kept.getItem(REVIEWER) ?? 'anonymous';
  }
  set reviewer(name: string) {
    if (PSEUDONYM.test(name)) this.kept.setItem(REVIEWER, name);
  }

  get known(): boolean {
    return !!this.me?.reviewer;
  }

  /** Whether they may do what a role may: each may do what those before it may. */
  may(role: Role): boolean {
    return !!this.me && (this.me.role === null || ROLES.indexOf(this.me.role) >= ROLES.indexOf(role));
  }
}

/** A session with a stand-in for everything around it. */
import { vi } from 'vitest';
import { type Answer, type Client, type Given, type Learning, type Listener, type Policy, type Study, type Withheld } from '../src/client';
import type { Drawing } from '../src/overlay';
import { Session } from '../src/session';
import type { Role } from '../src/who';
import { answer, geometry, keeper, recorded, tokens } from './answers';

export const STUDIES: Study[] = [
  { id: '1.2.3', modality: 'CT', question: 'Is there a nodule?', study_uid: '1.2', series_uid: '1.2.3' },
  { id: '4.5.6', modality: 'DX', question: 'Is there a ring?', study_uid: '4.5', series_uid: '4.5.6' },
];

export const CASE = { study: '4.5.6', question: 'Is there a line?', score: 1, reason: 'disagreement' };
export const STORED = { episode: 'e1', status: 'verified' as const, to: 'pacs' as const, study_uid: '1.2', objects: [], left_out: [] };
export const POLICY: Policy = {
  id: 'p0000-00000000', parent: null, state: 'live', sha256: '', reader: 'nano', created: '', metrics: {}, reasons: [], sign_off: null, origin: null,
};
export const POLICIES: Policy[] = [POLICY, { ...POLICY, id: 'p0001-11111111', state: 'candidate' }];

interface Drawn {
  added(id: string, shape: unknown): void;
  moved(id: string, shape: unknown): void;
  removed(id: string): void;
}

export function setUp() {
  const screen = {
    change: () => {},
    drawn: {} as Drawn,
    shown: vi.fn(() => ({ study: '1.2', series: '1.2.3', image: '1.2.3.1', modality: 'CT', description: 'chest' })),
    frameOfReference: () => '9.9',
    onChange: (callback: () => void) => ((screen.change = callback), () => {}),
    onDrawn: (_: unknown, heard: Drawn) => ((screen.drawn = heard), () => {}),
    jump: vi.fn(), draw: vi.fn(), stopDrawing: vi.fn(), label: vi.fn(),
    erase: vi.fn((id: string): void => screen.drawn.removed(id)), // as the viewer says of whatever is erased
  };
  const client = {
    me: vi.fn(async () => ({ reviewer: null as string | null, role: null as Role | null })),
    studies: vi.fn(async () => STUDIES),
    episodes: vi.fn(async (_: string) => [] as (typeof answer)[]),
    geometry: vi.fn(async () => geometry),
    tokens: vi.fn(async () => tokens),
    feedback: vi.fn(async (_: unknown) => recorded),
    nextCase: vi.fn(async (_: string[], __?: number) => ({ ...CASE, study: CASE.study as string | null, queue: [CASE] })),
    ask: vi.fn(async (_: unknown, __: Listener, ___: AbortSignal): Promise<Answer | Withheld> => answer),
    answer: vi.fn(async (_: string) => ({ ...answer, episode: 'e9' })),
    given: vi.fn(async (_: string) => [] as Given[]),
    change: vi.fn(async (..._: string[]) => undefined),
    store: vi.fn(async (_: string) => STORED),
    policies: vi.fn(async () => POLICIES),
    learn: vi.fn(async (): Promise<Learning> => ({ state: 'running', stats: {} })),
    learning: vi.fn(async (): Promise<Learning> => ({ state: 'done', stats: { promoted: false, reasons: ['waits for a signature'] } })),
    promote: vi.fn(async (_: string, __: string) => POLICIES[1]!),
  };
  const picture = { visible: true, opacity: 1, last: null as Drawing | null, show: (drawing: Drawing | null) => void (picture.last = drawing) };
  const [kept, thisTab, open] = [keeper(), keeper(), vi.fn()];
  const make = () => new Session(client as unknown as Client, screen as any, picture, kept, thisTab, open);
  return { screen, client, picture, kept, thisTab, open, make, session: make() };
}

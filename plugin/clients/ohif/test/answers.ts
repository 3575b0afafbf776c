/** Replies as the server makes them. */
import type { Answer, Feedback, Geometry, Region, Tokens } from '../src/client';

export const region: Region = {
  box_mm: [[-10, -10, -3], [10, 10, 3]],
  box_ijk: [[10, 10, 4], [20, 20, 6]],
  weight: 0.6,
  propensity: 0.1,
  sop_uid: '1.2.3.5',
  slice: 5,
  image: null,
};

export const answer: Answer = {
  episode: 'e1',
  created: '2026-03-02T09:30:12+00:00',
  study: '1.2.3',
  prior: null,
  series_uid: '1.2.3',
  question: 'Is there a nodule?',
  answer: 'yes',
  reasoning: 'I see a nodule.',
  confidence: 0.78,
  abstained: false,
  grounded: true,
  necessity_nats: 1,
  budget: { kept: 60, total: 600, fraction: 0.1 },
  recheck: null,
  slices: null,
  evidence: [region, { ...region, weight: 0.4, sop_uid: '1.2.3.9' }],
  notes: [],
  policy: { id: 'p0', sha256: 'x' },
  reader: 'nano',
  timings_ms: {},
};

export const geometry: Geometry = {
  shape: [12, 56, 64],
  ijk_to_lps: [[2, 0, 0, -64], [0, 2, 0, -56], [0, 0, 3, -18], [0, 0, 0, 1]],
  spacing_mm: [2, 2, 3],
  slices: [5],
};

export const tokens: Tokens = {
  shape: [12, 7, 8],
  uvw_to_lps: [[16, 0, 0, -57], [0, 16, 0, -49], [0, 0, 3, -18], [0, 0, 0, 1]],
  tokens: [[3, 3, 5, 0.75], [4, 3, 5, 0.25]],
};

export const recorded: Feedback = {
  key: 'k',
  episode: 'e1',
  state: 'submitted',
  policy: { id: 'p0000-00000000', sha256: '0'.repeat(64) },
  reward: { total: -0.5, parts: { answer: -1, grounding: 0, missed: null }, version: 'v' },
};

/** A Storage of its own. */
export function keeper(): Storage {
  const held = new Map<string, string>();
  return {
    getItem: key => held.get(key) ?? null,
    setItem: (key, value) => void held.set(key, value),
    removeItem: key => void held.delete(key),
    clear: () => held.clear(),
    key: n => [...held.keys()][n] ?? null,
    get length() {
      return held.size;
    },
  };
}

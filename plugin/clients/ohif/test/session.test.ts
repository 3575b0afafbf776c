import { beforeEach, expect, test, vi } from 'vitest';
import { Refused, type Client, type Listener, type Study } from '../src/client';
import { KEYS, keyOf } from '../src/keys';
import type { Drawing } from '../src/overlay';
import { Session } from '../src/session';
import * as words from '../src/words';
import { answer, geometry, keeper, recorded, tokens } from './answers';

const STUDIES: Study[] = [
  { id: '1.2.3', modality: 'CT', question: 'Is there a nodule?', study_uid: '1.2', series_uid: '1.2.3' },
  { id: '4.5.6', modality: 'DX', question: 'Is there a ring?', study_uid: '4.5', series_uid: '4.5.6' },
];

interface Drawn {
  added(id: string, box: unknown): void;
  moved(id: string, box: unknown): void;
  removed(id: string): void;
}

function setUp() {
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
    studies: vi.fn(async () => STUDIES),
    episodes: vi.fn(async (_: string) => [] as (typeof answer)[]),
    geometry: vi.fn(async () => geometry),
    tokens: vi.fn(async () => tokens),
    feedback: vi.fn(async (_: unknown) => recorded),
    nextCase: vi.fn(async (_: string[]) => ({ study: '4.5.6' as string | null, question: 'Is there a line?', score: 1, reason: '' })),
    ask: vi.fn(async (_: unknown, __: Listener, ___: AbortSignal) => answer),
  };
  const picture = { visible: true, opacity: 1, last: null as Drawing | null, show: (drawing: Drawing | null) => void (picture.last = drawing) };
  const [kept, thisTab, open] = [keeper(), keeper(), vi.fn()];
  const make = () => new Session(client as unknown as Client, screen as any, picture, kept, thisTab, open);
  return { screen, client, picture, kept, thisTab, open, make, session: make() };
}

let it: ReturnType<typeof setUp>;
beforeEach(async () => {
  it = setUp();
  it.session.start();
  await vi.waitFor(() => expect(it.session.suggestions).not.toEqual([]));
});

test('a series on screen brings its suggestions and its earlier answers', async () => {
  expect(it.session.question).toBe('Is there a nodule?');
  it.client.episodes.mockResolvedValueOnce([{ ...answer, question: 'Which side?' }]);
  it.screen.shown.mockReturnValue({ study: '4.5', series: '4.5.6', image: '', modality: 'DX', description: '' });
  it.screen.change();
  await vi.waitFor(() => expect(it.session.answer?.question).toBe('Which side?'));
  expect(it.session.suggestions).toEqual(['Is there a ring?', 'Which side?']);
  expect(it.client.episodes).toHaveBeenLastCalledWith('4.5.6');
});

test('an answer comes word by word and is then shown with its evidence', async () => {
  const seen: [string, string, number][] = [];
  it.client.ask.mockImplementationOnce(async (_, listener) => {
    listener.kept?.({ kept: 6, total: 60, regions: answer.evidence });
    for (const text of ['I ', 'see ']) listener.token?.(text);
    seen.push([it.session.asking!.reasoning, it.session.asking!.stage, it.picture.last?.regions.length ?? 0]);
    listener.stage?.('rechecking');
    listener.kept?.({ kept: 60, total: 60, regions: [] });
    listener.token?.('none');
    seen.push([it.session.asking!.reasoning, it.session.asking!.stage, it.picture.last?.regions.length ?? 0]);
    return answer;
  });
  await it.session.ask();
  expect(seen).toEqual([['I see ', 'loading', 2], ['none', 'rechecking', 0]]);
  expect(it.session.asking).toBeNull();
  expect(it.picture.last).toMatchObject({ tokens, chosen: 0, place: { series: '1.2.3', frame: '9.9', geometry } });
  expect(it.screen.jump).toHaveBeenCalledWith(answer.evidence[0], expect.anything());
  it.session.step(-1);
  expect(it.session.chosen).toBe(1);
});

test('stopping ends it at once, without a word of trouble', async () => {
  it.client.ask.mockImplementationOnce(
    (_, __, signal) => new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(new DOMException('', 'AbortError')))),
  );
  const asked = it.session.ask();
  expect(it.session.asking).not.toBeNull();
  it.session.cancel();
  await asked;
  expect([it.session.asking, it.session.trouble, it.session.answer]).toEqual([null, '', null]);
});

test('what went wrong is said, and the question stays', async () => {
  it.client.ask.mockRejectedValueOnce(new Refused('busy', 'a queue', 'room', 'wait'));
  it.session.question = 'Why?';
  await it.session.ask();
  expect(it.session.trouble).toBe('A queue. Expected: room. To do: wait.');
  expect(it.session.question).toBe('Why?');
});

test('drawn regions become marks, are undone, and survive a reload', async () => {
  await it.session.ask();
  it.session.mark('missed');
  expect(it.screen.draw).toHaveBeenCalled();
  it.screen.drawn.added('m1', [[0, 0, 0], [5, 5, 0]]);
  expect(it.session.review?.marks).toMatchObject([{ id: 'm1', kind: 'missed' }]);
  expect(it.screen.stopDrawing).toHaveBeenCalled();
  it.screen.drawn.added('m2', [[0, 0, 0], [5, 5, 0]]); // drawn for another purpose
  expect(it.session.review?.marks).toHaveLength(1);
  expect(it.picture.last?.marks).toHaveLength(1);
  it.session.undo();
  expect(it.screen.erase).toHaveBeenCalledWith('m1');
  expect(it.session.review?.marks).toEqual([]);
  it.session.mark('relevant');
  it.screen.drawn.added('m3', [[0, 0, 0], [5, 5, 0]]);
  const { episode } = answer;
  it.client.episodes.mockResolvedValue([answer]);
  const again = it.make();
  again.start();
  await vi.waitFor(() => expect(again.answer?.episode).toBe(episode));
  expect(again.review?.marks).toMatchObject([{ id: 'm3', kind: 'relevant' }]);
});

test('leaving an answer keeps its draft, though its drawings go from the screen', async () => {
  await it.session.ask();
  it.session.mark('relevant');
  it.screen.drawn.added('m1', [[0, 0, 0], [5, 5, 0]]);
  await it.session.show({ ...answer, episode: 'e2' });
  expect(it.screen.erase).toHaveBeenCalledWith('m1');
  expect(it.session.review?.marks).toEqual([]);
  await it.session.show(answer);
  expect(it.session.review?.marks).toHaveLength(1);
});

test('a review is sent once it says something, and its reward is shown', async () => {
  await it.session.ask();
  await it.session.submit();
  expect(it.client.feedback).not.toHaveBeenCalled();
  expect(it.session.trouble).toMatch(/Accept/);
  it.session.reviewer = 'reader-1';
  it.session.reviewer = 'Jane Doe'; // no pseudonym
  it.session.write('no');
  await it.session.submit();
  expect(it.client.feedback).toHaveBeenCalledWith(expect.objectContaining({ reviewer: 'reader-1', verdict: 'amend', answer: 'no' }));
  expect(words.reward(it.session.recorded!)).toEqual({
    total: '−0.50',
    parts: [{ name: 'answer', text: '−1.00' }, { name: 'grounding', text: '+0.00' }],
  });
  it.session.judge('accept');
  expect(it.session.review?.verdict).toBe('amend');
});

test('the next case is opened with its question; what was seen is not offered again', async () => {
  await it.session.nextCase();
  expect(it.client.nextCase).toHaveBeenCalledWith(['1.2.3']);
  expect(it.open).toHaveBeenCalledWith(STUDIES[1]);
  it.screen.shown.mockReturnValue({ study: '4.5', series: '4.5.6', image: '', modality: 'DX', description: '' });
  const there = it.make();
  there.start();
  await vi.waitFor(() => expect(there.question).toBe('Is there a line?'));
  it.client.nextCase.mockResolvedValueOnce({ study: null, question: '', score: 0, reason: '' });
  await there.nextCase();
  expect(it.client.nextCase).toHaveBeenLastCalledWith(['1.2.3', '4.5.6']);
  expect(there.trouble).toBe('All cases were seen.');
});

test('keys are distinct, and letters in a field stay letters', () => {
  const named = KEYS.map(key => `${key.ctrl ? 'ctrl ' : ''}${key.key}`);
  expect(new Set(named).size).toBe(named.length);
  const press = (target: HTMLElement, key: string, ctrlKey = false) => {
    let found: unknown;
    document.body.append(target);
    target.addEventListener('keydown', event => (found = keyOf(event as KeyboardEvent)?.says));
    target.dispatchEvent(new KeyboardEvent('keydown', { key, ctrlKey, bubbles: true, composed: true }));
    return found;
  };
  expect(press(document.createElement('div'), 'a')).toBe('accept');
  expect(press(document.createElement('div'), 'a', true)).toBeUndefined();
  expect(press(document.createElement('textarea'), 'a')).toBeUndefined();
  expect(press(document.createElement('textarea'), 'Enter', true)).toBe('ask');
  expect(press(document.createElement('textarea'), 'z', true)).toBeUndefined();
  expect(press(document.createElement('input'), 'Escape')).toMatch(/stop/);
});

test('doubt is said plainly', () => {
  const facts = words.facts({ ...answer, grounded: false, recheck: { reason: 'negative', changed: true, first_answer: 'no', first_confidence: 0.5, first_budget: answer.budget, budget: answer.budget, note: 'No was re-checked with all tokens: now yes' } });
  expect(facts).toContainEqual({ name: 'Not grounded', text: 'the answer hardly depends on the regions shown', warn: true });
  expect(facts).toContainEqual({ name: 'Re-checked', text: 'No was re-checked with all tokens: now yes', warn: true });
  expect(facts.find(fact => fact.name === 'Looked at')?.text).toBe('60 of 600 tokens (10.0 %), 2 regions');
  expect(words.confidence(0.78)).toBe('likely right (about 8 in 10)');
});

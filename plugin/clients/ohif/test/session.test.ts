import { beforeEach, expect, test, vi } from 'vitest';
import { Refused, type Client, type Given } from '../src/client';
import { KEYS, keyOf } from '../src/keys';
import * as words from '../src/words';
import { possible } from '../src/given';
import { Lessons } from '../src/lessons';
import { answer, geometry, given, recorded, tokens, withheld } from './answers';
import { CASE, setUp, STORED, STUDIES } from './sessions';

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

test('where people log in, the server says who reviews, whatever was typed before', async () => {
  it.kept.setItem('sparsight:reviewer', 'reader-1');
  expect([it.session.reviewer, it.session.who.known]).toEqual(['reader-1', false]);
  it.client.me.mockResolvedValue({ reviewer: 'user-0f3a9c27b1de', role: null });
  const session = it.make();
  session.start();
  await vi.waitFor(() => expect(session.who.known).toBe(true));
  session.reviewer = 'reader-2';
  expect(session.reviewer).toBe('user-0f3a9c27b1de');
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
  it.screen.drawn.added('m1', { box: [[0, 0, 0], [5, 5, 0]] });
  expect(it.session.review?.marks).toMatchObject([{ id: 'm1', kind: 'missed' }]);
  expect(it.screen.stopDrawing).toHaveBeenCalled();
  it.screen.drawn.added('m2', { box: [[0, 0, 0], [5, 5, 0]] }); // drawn for another purpose
  expect(it.session.review?.marks).toHaveLength(1);
  expect(it.picture.last?.marks).toHaveLength(1);
  it.session.undo();
  expect(it.screen.erase).toHaveBeenCalledWith('m1');
  expect(it.session.review?.marks).toEqual([]);
  it.session.mark('relevant');
  it.screen.drawn.added('m3', { box: [[0, 0, 0], [5, 5, 0]] });
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
  it.screen.drawn.added('m1', { box: [[0, 0, 0], [5, 5, 0]] });
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
  it.client.nextCase.mockResolvedValueOnce({ ...CASE, study: null, queue: [] });
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
  expect(press(Object.assign(document.createElement('textarea'), { id: 'question' }), 'Enter', true)).toMatch(/^ask/);
  expect(press(document.createElement('input'), 'Enter', true)).toBeUndefined();
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

test('what is being drawn ends with Esc, with discarding, submitting and another answer', async () => {
  await it.session.ask();
  it.session.judge('accept');
  for (const ends of [() => it.session.cancel(), () => it.session.discard(), () => it.session.show(answer), () => it.session.submit()]) {
    it.screen.stopDrawing.mockClear();
    it.session.mark('relevant');
    if (!it.session.review!.verdict) it.session.judge('accept');
    await ends();
    expect([it.session.drawing, it.screen.stopDrawing.mock.calls.length]).toEqual([null, 1]);
  }
  expect(it.session.recorded).toEqual(recorded);
});

test('whose left and right it is, is said where one is named', () => {
  const whose = (more: object) => words.facts({ ...answer, ...more }).find(fact => fact.name === 'Left, right')?.text;
  expect(whose({})).toBeUndefined();
  expect(whose({ reasoning: 'It is bright, outright.' })).toBeUndefined();
  for (const name of ['question', 'answer', 'reasoning']) expect(whose({ [name]: 'upper Right' })).toMatch(/of the picture, not of the patient$/);
  expect(whose({ answer: 'left', reader: 'nano-2760bfd2' })).toMatch(/not of the patient$/);
  expect(whose({ answer: 'left', reader: 'some-model' })).toMatch(/does not say which$/);
});

test('what is drawn wholly outside the image is refused at once', async () => {
  await it.session.ask(); // 64 columns and 56 rows of 2 mm, from (-64, -56)
  it.session.mark('missed');
  it.screen.drawn.added('b', { box: [[-90, 0, 0], [-66, 10, 0]] });
  it.screen.drawn.added('s', { path: [[0, 60, 0], [5, 70, 0]] });
  expect([it.session.review!.marks.length, it.screen.erase.mock.calls]).toEqual([0, [['b'], ['s']]]);
  expect([it.session.trouble, it.session.drawing]).toEqual([expect.stringMatching(/outside the image/), 'missed']);
  it.screen.drawn.added('c', { box: [[-90, 0, 0], [-60, 10, 0]] });
  expect([it.session.review!.marks.length, it.session.drawing]).toEqual([1, null]);
});

test('a stroke is drawn with the pen that was chosen, a point with a click', async () => {
  await it.session.ask();
  it.session.take();
  it.session.pen = 6;
  it.session.mark('missed');
  expect(it.screen.draw).toHaveBeenLastCalledWith('stroke');
  it.screen.drawn.added('s', { path: [[0, 0, 0], [5, 5, 0]] });
  it.session.mark('relevant');
  it.session.take('point');
  expect(it.screen.draw).toHaveBeenLastCalledWith('point');
  it.screen.drawn.added('p', { path: [[1, 1, 0]] });
  expect(it.picture.last?.marks).toEqual([
    { id: 's', kind: 'missed', path: [[0, 0, 0], [5, 5, 0]], radius: 3 },
    { id: 'p', kind: 'relevant', path: [[1, 1, 0]], radius: 3 },
  ]);
  it.session.judge('amend');
  await it.session.submit();
  expect(it.client.feedback).toHaveBeenLastCalledWith(expect.objectContaining({ marks: [expect.objectContaining({ radius_mm: 3 }), expect.anything()] }));
});

test('the region that is looked at is marked by a key, and sent with its box', async () => {
  await it.session.ask();
  it.session.step(1);
  it.session.markRegion();
  it.session.markRegion();
  it.session.judge('reject');
  await it.session.submit();
  const marks = [{ kind: 'irrelevant', box_mm: answer.evidence[1]!.box_mm, frame_of_reference: '9.9' }];
  expect(it.client.feedback).toHaveBeenCalledWith(expect.objectContaining({ marks }));
});

test('a mark that is touched while another is to be drawn stays what it is', async () => {
  await it.session.ask();
  it.session.mark('missed');
  it.screen.drawn.added('m1', { box: [[0, 0, 0], [5, 5, 0]] });
  it.session.mark('relevant');
  it.screen.drawn.added('m1', { box: [[1, 0, 0], [6, 5, 0]] });
  expect(it.session.review?.marks).toEqual([{ id: 'm1', kind: 'missed', box: [[1, 0, 0], [6, 5, 0]] }]);
  expect(it.session.drawing).toBe('relevant');
});

test('a draft is kept, submitted, withdrawn and undone, each as a change of its own', async () => {
  await it.session.ask();
  it.session.write('no');
  it.client.feedback.mockResolvedValueOnce({ ...recorded, state: 'draft' });
  it.client.given.mockResolvedValue([given({ key: 'd', state: 'draft', changes: [{ change: 'draft' }] }), given({ key: 'x', reviewer: 'other' })]);
  await it.session.submit(true);
  expect(it.client.feedback).toHaveBeenLastCalledWith(expect.objectContaining({ draft: true }));
  expect(it.session.given.newest('submit')?.key).toBe('d');
  expect(it.session.given.newest('withdraw')?.key).toBe('d');
  it.client.given.mockResolvedValue([given({ key: 'd', changes: [{ change: 'draft' }, { change: 'submit' }] })]);
  await it.session.given.change(it.session.given.newest('submit'), 'submit');
  expect(it.client.change).toHaveBeenLastCalledWith('d', 'submit', 'anonymous', expect.stringMatching(/^ohif-/));
  expect(it.session.given.newest('submit')).toBeUndefined();
  await it.session.given.change(it.session.given.newest('submit'), 'submit');
  expect(it.client.change).toHaveBeenCalledTimes(1);
  it.session.reviewAgain();
  expect([it.session.recorded, it.session.review?.empty]).toEqual([null, true]);
});

test('what can become of a correction is what the server allows', () => {
  const of = (state: Given['state'], ...changes: string[]) => possible(given({ state, changes: changes.map(change => ({ change })) }));
  expect(of('submitted')).toEqual(['withdraw']);
  expect(of('draft', 'draft')).toEqual(['submit', 'withdraw']);
  expect(of('submitted', 'draft', 'submit')).toEqual(['withdraw', 'undo']);
  expect(of('withdrawn', 'withdraw')).toEqual(['undo']);
  expect(of('submitted', 'withdraw', 'undo')).toEqual(['withdraw']);
});

test('what was read blinded is said first, then the answer is shown', async () => {
  it.session.toggleBlinded();
  it.client.ask.mockResolvedValueOnce(withheld);
  await it.session.ask();
  expect(it.client.ask.mock.calls[0]![0]).toMatchObject({ blinded: true });
  expect([it.session.withheld, it.session.answer, it.picture.last]).toEqual([withheld, null, null]);
  it.session.judge('accept');
  it.session.mark('relevant');
  expect([it.session.review?.verdict, it.session.drawing]).toEqual([null, null]);
  await it.session.submit();
  expect(it.session.trouble).toMatch(/own answer/);
  it.session.write('no');
  await it.session.submit();
  expect(it.client.feedback).toHaveBeenCalledWith(expect.objectContaining({ episode: 'e9', blinded: true, verdict: 'amend', answer: 'no', marks: [] }));
  expect([it.session.withheld, it.session.answer?.episode, it.session.own]).toEqual([null, 'e9', 'no']);
  expect(it.session.recorded).toBeNull(); // the review of the answer is still to come
  expect(it.session.review?.empty).toBe(true);
});

test('a blinded reading outlives the page, and can be given up', async () => {
  it.session.toggleBlinded();
  it.client.ask.mockResolvedValueOnce(withheld);
  await it.session.ask();
  it.session.write('no');
  it.client.episodes.mockResolvedValue([answer]);
  const again = it.make();
  again.start();
  await vi.waitFor(() => expect(again.withheld).toEqual(withheld));
  expect([again.answer, again.review?.answer]).toEqual([null, 'no']);
  again.forget();
  expect([again.withheld, again.review]).toEqual([null, null]);
  const third = it.make();
  third.start();
  await vi.waitFor(() => expect(third.answer?.episode).toBe('e1'));
});

test('a reading whose answer does not come back is not lost', async () => {
  it.client.ask.mockResolvedValueOnce(withheld);
  await it.session.ask();
  it.session.edit(review => review.tellNothing());
  it.client.feedback.mockRejectedValueOnce(new Refused('away', 'the server does not answer', 'one', 'wait'));
  await it.session.submit();
  expect([it.session.withheld, it.session.review?.cannotTell]).toEqual([withheld, true]);
  await it.session.submit();
  expect(it.client.feedback.mock.calls[0]).toEqual(it.client.feedback.mock.calls[1]); // the same key
  expect(it.session.own).toBe('the image cannot tell');
});

test('the readings of a question are stepped through, each with its tokens, and back to the evidence', async () => {
  const all = { kept: 600, total: 600, regions: [{ ...answer.evidence[0]!, weight: 1, sop_uid: '7' }] };
  it.client.ask.mockImplementationOnce(async (_, listener) => {
    listener.kept?.({ kept: 60, total: 600, regions: answer.evidence });
    listener.token?.('none');
    listener.kept?.(all);
    listener.token?.('I see.');
    return answer;
  });
  await it.session.ask();
  expect(it.session.readings.map(one => [one.kept, one.reasoning])).toEqual([[60, 'none'], [600, 'I see.']]);
  const shown = () => [it.session.reading, it.picture.last?.regions.length, it.picture.last?.tokens === null];
  expect(shown()).toEqual([-1, 2, false]);
  it.session.stepReading(-1);
  expect(shown()).toEqual([1, 1, true]);
  expect(it.screen.jump).toHaveBeenLastCalledWith(all.regions[0], expect.anything());
  it.session.stepReading(-1);
  expect(shown()).toEqual([0, 2, true]);
  it.session.stepReading(-1);
  expect(shown()).toEqual([-1, 2, false]);
  it.session.stepReading(1);
  it.session.choose(1);
  expect(shown()).toEqual([-1, 2, false]);
  await it.session.show(answer);
  expect(it.session.readings).toEqual([]);
});

test('the queue is looked for when it is asked for, and a case of it opens with its question', async () => {
  expect(it.client.nextCase).not.toHaveBeenCalled();
  await it.session.cases.list();
  expect(it.client.nextCase).toHaveBeenCalledWith(['1.2.3'], 5);
  expect(it.session.cases.queue).toEqual([CASE]);
  expect(it.session.cases.go('4.5.6', CASE.question)).toBe(true);
  expect(it.open).toHaveBeenCalledWith(STUDIES[1]);
  expect(it.session.cases.go('9', 'gone?')).toBe(false);
});

test('learning is followed to its end, and a candidate is promoted under the pseudonym', async () => {
  const changed = vi.fn();
  const work = async (_: string, run: () => Promise<void>) => run().catch(() => undefined);
  const lessons = new Lessons(it.client as unknown as Client, work, () => 'reader-1', changed, () => true, 1);
  it.client.learning.mockResolvedValueOnce({ state: 'running', stats: { stage: 'step', done: 3, total: 9 } });
  await lessons.start();
  expect(it.client.learning).toHaveBeenCalledTimes(2);
  expect(words.learning(lessons.job)).toBe('learned: waits for a signature');
  expect(lessons.policies.map(policy => policy.id)).toEqual(['p0001-11111111', 'p0000-00000000']);
  await lessons.promote(lessons.policies[0]!);
  expect(it.client.promote).toHaveBeenCalledWith('p0001-11111111', 'reader-1');
  it.client.learning.mockRejectedValue(new Refused('away', 'x', 'y', 'z'));
  await lessons.start(); // ends though the server is away
  expect(words.learning({ state: 'failed', stats: { error: { given: 'a NaN' } } })).toBe('learning failed: a NaN');
});

test('who does not decide what is learned is not told how far that is, and is not refused it', async () => {
  for (const [role, asked] of [['reader', 0], ['reviewer', 0], ['trainer', 1], ['admin', 1], [null, 1]] as const) {
    it = setUp();
    it.client.me.mockResolvedValue({ reviewer: 'r-1', role });
    await it.session.follow();
    if (role === 'reader') it.client.given.mockRejectedValue(new Refused('forbidden', 'a reader', 'a reviewer', 'ask'));
    await it.session.ask();
    expect(it.session.answer).not.toBeNull();
    expect([it.session.review === null, it.session.trouble], String(role)).toEqual([role === 'reader', '']);
    await it.session.lessons.load();
    expect(it.client.learning, String(role)).toHaveBeenCalledTimes(asked);
    expect(it.session.lessons.policies).toHaveLength(2);
    expect(it.session.who.may('reviewer'), String(role)).toBe(role !== 'reader');
  }
});

test('results are stored in the PACS, and what was not says why', async () => {
  await it.session.ask();
  it.client.store.mockResolvedValueOnce({
    ...STORED,
    objects: [{ kind: 'report', sop_class_uid: '', sop_uid: '', series_uid: '', sha256: '', file: null }],
    left_out: [{ kind: 'corrections', why: 'no region that a reviewer marked' }],
  } as never);
  await it.session.storeResults();
  expect(it.session.stored).toBe('In the PACS: report (verified). No corrections: no region that a reviewer marked.');
});

test('who learned from a correction is said', () => {
  expect(words.given(given({ difficulty: 'hard', marks: [{}, {}] }))).toBe('anonymous: amended, no, 2 regions, hard');
  expect(words.given(given({ answer: null, cannot_tell: true }))).toBe('anonymous: amended, the image cannot tell');
  expect(words.fate(given({ learned_by: ['p1', 'p2'] }))).toBe('learned by p1, p2');
  expect(words.fate(given({ learned_by: ['p1'], state: 'withdrawn' }))).toBe('withdrawn, but learned by p1');
  expect(words.fate(given({ blinded: true }))).toMatch(/kept apart/);
});

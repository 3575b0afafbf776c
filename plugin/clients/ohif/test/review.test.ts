import { expect, test } from 'vitest';
import { Review } from '../src/review';
import { answer, keeper } from './answers';

const box: [[number, number, number], [number, number, number]] = [[0, 0, 0], [1, 1, 0]];

test('a draft outlives the page, until it is recorded', () => {
  const kept = keeper();
  const review = new Review('e1', kept);
  review.judge('amend');
  review.write('no');
  review.mark({ id: 'm1', kind: 'missed', box });
  const again = new Review('e1', kept);
  expect([again.verdict, again.answer, again.marks]).toEqual(['amend', 'no', [{ id: 'm1', kind: 'missed', box }]]);
  expect(new Review('e2', kept).empty).toBe(true);
  again.recorded();
  expect(new Review('e1', kept).empty).toBe(true);
});

test('every step is undone by itself, a text as a whole', () => {
  const review = new Review('e1', keeper());
  review.judge('accept');
  review.mark({ id: 'm1', kind: 'relevant', box });
  review.move('m1', { box: [[0, 0, 0], [2, 2, 0]] });
  for (const text of ['n', 'no', 'non', 'none']) review.write(text);
  expect(review.verdict).toBe('amend');
  expect(review.undo()).toEqual({ gone: [], back: [] });
  expect([review.answer, review.verdict]).toEqual(['', 'accept']);
  expect(review.undo()?.gone.map(mark => mark.id)).toEqual(['m1']);
  review.undo();
  expect(review.empty).toBe(true);
  expect(review.undo()).toBeNull();
});

test('discarding can be undone', () => {
  const review = new Review('e1', keeper());
  review.mark({ id: 'm1', kind: 'relevant', box });
  review.discard();
  expect(review.empty).toBe(true);
  expect(review.undo()?.back.map(mark => mark.id)).toEqual(['m1']);
});

test('what cannot be sent says why', () => {
  const review = new Review('e1', keeper());
  expect(review.missing(answer)).toMatch(/Accept, amend or reject/);
  review.judge('amend');
  expect(review.missing(answer)).toMatch(/right answer, or mark/);
  review.write('no');
  expect(review.missing(answer)).toBeNull();
  review.judge('accept');
  expect(review.missing(answer)).toMatch(/amendment/);
  review.judge('reject');
  review.write('Yes ');
  review.judge('reject');
  expect(review.missing(answer)).toMatch(/was given/);
});

test('the same content has the same key, other content another', () => {
  const kept = keeper();
  const review = new Review('e1', kept);
  let n = 0;
  const keys = () => `${++n}`;
  review.judge('reject');
  const first = review.request('r', {}, keys);
  expect(first).toMatchObject({ episode: 'e1', reviewer: 'r', verdict: 'reject', answer: null, marks: [] });
  expect(review.request('r', {}, keys).key).toBe(first.key);
  expect(new Review('e1', kept).request('r', {}, keys).key).toBe(first.key);
  review.remark('beside the heart');
  expect(review.request('r', {}, keys).key).not.toBe(first.key);
});

test('a browser without storage loses the draft and nothing else', () => {
  const refuse = () => {
    throw new DOMException('no', 'SecurityError');
  };
  const review = new Review('e1', { getItem: refuse, setItem: refuse, removeItem: refuse });
  review.judge('accept');
  expect(review.request('r').verdict).toBe('accept');
});

test('that the image cannot tell takes the place of an answer', () => {
  const review = new Review('e1', keeper());
  review.write('no');
  review.tellNothing();
  expect([review.verdict, review.answer, review.cannotTell]).toEqual(['amend', '', true]);
  expect(review.missing(answer)).toBeNull();
  review.judge('accept');
  expect(review.missing(answer)).toMatch(/cannot be told/);
  expect(review.missing({ ...answer, abstained: true })).toBeNull();
  review.judge('reject');
  expect(review.missing(answer)).toBeNull();
  expect(review.request('r')).toMatchObject({ verdict: 'reject', answer: null, cannot_tell: true, draft: false, blinded: false });
  review.write('yes, a ring');
  expect([review.verdict, review.cannotTell]).toEqual(['amend', false]);
  review.undo();
  expect(review.cannotTell).toBe(true);
});

test('how hard it is goes from easy to hard and back to not said', () => {
  const review = new Review('e1', keeper());
  const seen = [1, 2, 3, 4].map(() => (review.rateNext(), review.difficulty));
  expect(seen).toEqual(['easy', 'moderate', 'hard', null]);
  review.rate('hard');
  expect(review.empty).toBe(false);
  review.rate('hard');
  expect(review.empty).toBe(true);
});

test('strokes and points are sent as paths, in whatever draft they were kept', () => {
  const kept = keeper();
  const review = new Review('e1', kept);
  review.mark({ id: 's', kind: 'missed', path: [[0, 0, 0], [5, 5, 0]], radius: 2, frame: '1.2.9' });
  review.mark({ id: 'p', kind: 'relevant', path: [[1, 2, 3]], radius: 0, frame: '' });
  review.mark({ id: 'b', kind: 'irrelevant', box });
  review.mark({ id: 'c', kind: 'missed', box, frame: '1.2.9' });
  review.mark({ id: 'd', kind: 'missed', box, frame: 'made up by a viewer' });
  review.move('s', { path: [[0, 0, 0], [6, 6, 0]] });
  review.judge('amend');
  expect(new Review('e1', kept).request('r').marks).toEqual([
    { kind: 'missed', path_mm: [[0, 0, 0], [6, 6, 0]], radius_mm: 2, frame_of_reference: '1.2.9' },
    { kind: 'relevant', path_mm: [[1, 2, 3]], radius_mm: 0 },
    { kind: 'irrelevant', box_mm: box },
    { kind: 'missed', box_mm: box, frame_of_reference: '1.2.9' },
    { kind: 'missed', box_mm: box },
  ]);
});

test('a region that is there is marked without drawing, and undone as any other', () => {
  const review = new Review('e1', keeper());
  const kinds = ['relevant', 'irrelevant', undefined, 'relevant'].map(() => (review.markNext('region-0', box, '1.2.9'), review.marks[0]?.kind));
  expect(kinds).toEqual(['relevant', 'irrelevant', undefined, 'relevant']);
  review.undo();
  expect(review.marks).toEqual([]);
  review.undo();
  expect(review.marks).toEqual([{ id: 'region-0', kind: 'irrelevant', box, frame: '1.2.9' }]);
});

test('two tabs write one review, and send it once', () => {
  const kept = keeper();
  const [here, there] = [new Review('e1', kept), new Review('e1', kept)];
  there.write('no');
  expect(here.follow('sparsight:draft:e2')).toBe(false);
  expect([here.follow('sparsight:draft:e1'), here.answer]).toEqual([true, 'no']);
  const key = there.request('r').key;
  here.follow('sparsight:draft:e1');
  expect(here.request('r').key).toBe(key);
  there.recorded();
  here.follow(null);
  expect(here.empty).toBe(true);
});

test('a draft and what is submitted are two corrections; a blinded reading has no marks', () => {
  const review = new Review('e1', keeper());
  review.write('no');
  review.mark({ id: 'b', kind: 'irrelevant', box });
  const draft = review.request('r', { draft: true });
  expect(draft.draft).toBe(true);
  expect(review.request('r').key).not.toBe(draft.key);
  expect(review.request('r', { blinded: true })).toMatchObject({ blinded: true, verdict: 'amend', answer: 'no', marks: [] });
});

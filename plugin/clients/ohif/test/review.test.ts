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
  review.move('m1', [[0, 0, 0], [2, 2, 0]]);
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
  const first = review.request('r', keys);
  expect(first).toMatchObject({ episode: 'e1', reviewer: 'r', verdict: 'reject', answer: null, marks: [] });
  expect(review.request('r', keys).key).toBe(first.key);
  expect(new Review('e1', kept).request('r', keys).key).toBe(first.key);
  review.remark('beside the heart');
  expect(review.request('r', keys).key).not.toBe(first.key);
});

test('a browser without storage loses the draft and nothing else', () => {
  const refuse = () => {
    throw new DOMException('no', 'SecurityError');
  };
  const review = new Review('e1', { getItem: refuse, setItem: refuse, removeItem: refuse });
  review.judge('accept');
  expect(review.request('r').verdict).toBe('accept');
});

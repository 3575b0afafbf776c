/** What goes wrong around a session: other tabs, logins that end, answers without evidence, a PACS that refuses. */
import { beforeEach, expect, test, vi } from 'vitest';
import { Refused, type Answer } from '../src/client';
import { answer, given, recorded, tokens } from './answers';
import { STORED, setUp } from './sessions';

let it: ReturnType<typeof setUp>;
beforeEach(async () => {
  it = setUp();
  it.session.start();
  await vi.waitFor(() => expect(it.session.suggestions).not.toEqual([]));
});

test('one question at a time, and who asks another one is told', async () => {
  let answered = (_: Answer): void => {};
  it.client.ask.mockImplementationOnce(() => new Promise(resolve => (answered = resolve)));
  const asked = it.session.ask();
  await it.session.ask();
  expect(it.client.ask).toHaveBeenCalledTimes(1);
  expect(it.session.trouble).toMatch(/One question at a time/);
  answered(answer);
  await asked;
  expect([it.session.answer, it.session.trouble]).toEqual([answer, '']);
});

test('what another tab did to this review is taken over and said', async () => {
  await it.session.ask();
  it.session.write('no');
  const other = it.make();
  await other.follow();
  await other.show(answer);
  other.write('nothing');
  const heard = (key: string | null) => window.dispatchEvent(Object.assign(new Event('storage'), { key }));
  heard('another:key');
  expect(it.session.review?.answer).toBe('no');
  heard(`sparsight:draft:${answer.episode}`);
  expect([it.session.review?.answer, it.session.trouble]).toEqual(['nothing', '']);
  await other.submit();
  it.client.given.mockResolvedValueOnce([given()]);
  heard(`sparsight:draft:${answer.episode}`);
  expect(it.session.review?.empty).toBe(true);
  expect(it.session.trouble).toMatch(/another tab/);
  await vi.waitFor(() => expect(it.session.given.list).toHaveLength(1));
  await it.session.submit();
  expect(it.client.feedback).toHaveBeenCalledTimes(1);
  it.session.end();
  it.session.review?.write('yes');
  heard(null);
  expect(it.session.review?.answer).toBe('yes');
});

test('where the login has ended, the review stays and is sent once after it', async () => {
  await it.session.ask();
  it.session.write('no');
  it.client.feedback.mockRejectedValueOnce(new Refused('login', 'a login that has ended', 'one', 'log in'));
  await it.session.submit();
  expect(it.session.trouble).toMatch(/A login that has ended.*log in/);
  it.client.episodes.mockResolvedValue([answer]);
  const again = it.make(); // the page, loaded anew
  again.start();
  await vi.waitFor(() => expect(again.review?.answer).toBe('no'));
  await again.submit();
  const [first, second] = it.client.feedback.mock.calls.map(([sent]) => (sent as { key: string }).key);
  expect(second).toBe(first);
});

test('an answer without evidence is shown and reviewed as any other', async () => {
  it.client.ask.mockResolvedValueOnce({ ...answer, evidence: [] });
  it.client.tokens.mockResolvedValueOnce({ ...tokens, tokens: [] });
  await it.session.ask();
  it.session.step(1);
  it.session.choose(0);
  expect(it.screen.jump).not.toHaveBeenCalled();
  expect([it.session.chosen, it.picture.last?.regions]).toEqual([-1, []]);
  it.session.judge('accept');
  await it.session.submit();
  expect(it.session.recorded).toEqual(recorded);
});

test('what is done soon is not announced, so the reward is the first that is painted; what takes longer is', async () => {
  await it.session.ask();
  it.session.judge('accept');
  const seen: string[] = [];
  it.session.addEventListener('change', () => seen.push(it.session.busy || (it.session.recorded ? 'reward' : 'nothing')));
  await it.session.submit();
  expect(seen[0]).toBe('reward');
  it.client.store.mockImplementationOnce(() => new Promise(resolve => setTimeout(() => resolve(STORED), 400)));
  seen.length = 0;
  await it.session.storeResults();
  expect(seen).toEqual(['storing in the PACS', 'reward']);
});

test('a PACS that refuses is quoted', async () => {
  await it.session.ask();
  it.client.store.mockRejectedValueOnce(new Refused('not_stored', 'a PACS that refused report', 'all stored', 'see its log'));
  await it.session.storeResults();
  expect(it.session.trouble).toBe('A PACS that refused report. Expected: all stored. To do: see its log.');
  expect([it.session.stored, it.session.busy]).toEqual(['', '']);
});

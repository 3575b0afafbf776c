import { afterEach, expect, test, vi } from 'vitest';
import { Client, Refused } from '../src/client';
import { events } from '../src/sse';
import { answer, withheld } from './answers';

const event = (name: string, data: unknown) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
const QUESTION = { study: '1.2.3', question: 'Is there a nodule?' };

function body(parts: string[], fault = false): ReadableStream<Uint8Array> {
  const left = parts.map(part => new TextEncoder().encode(part));
  return new ReadableStream({
    async pull(controller) {
      await new Promise(resolve => setTimeout(resolve)); // what was sent before is read by now
      const next = left.shift();
      if (next) controller.enqueue(next);
      else if (fault) controller.error(new TypeError('network'));
      else controller.close();
    },
  });
}

function replies(...given: (Response | Error)[]) {
  const fetched = vi.fn(async (_url: string, _init?: RequestInit) => {
    const next = given.shift();
    if (!next || next instanceof Error) throw next ?? new TypeError('no more');
    return next;
  });
  vi.stubGlobal('fetch', fetched);
  return fetched;
}

const json = (value: unknown, status = 200) => new Response(JSON.stringify(value), { status });
const failed = (code: string, status: number) =>
  json({ error: { code, given: 'a study', expected: 'another', todo: 'look' } }, status);
const stream = (parts: string[], fault = false) => new Response(body(parts, fault), { headers: { 'Content-Type': 'text/event-stream; charset=utf-8' } });
const client = () => new Client('/sparsight', () => 'secret', 1);

afterEach(() => vi.unstubAllGlobals());

test('events are put together wherever the stream was cut', async () => {
  const text = `: ping\n\n${event('token', { text: 'é\n' })}${event('done', { a: 1 })}event: half`;
  const bytes = new TextEncoder().encode(text);
  for (const size of [1, 2, 7, bytes.length]) {
    const parts = Array.from({ length: Math.ceil(bytes.length / size) }, (_, n) => bytes.slice(n * size, (n + 1) * size));
    const whole = new ReadableStream<Uint8Array>({ start: c => (parts.forEach(part => c.enqueue(part)), c.close()) });
    const found = [];
    for await (const each of events(whole)) found.push([each.name, JSON.parse(each.data)]);
    expect(found).toEqual([['token', { text: 'é\n' }], ['done', { a: 1 }]]);
  }
});

test('an answer is heard as it comes', async () => {
  const parts = [
    event('start', { episode: 'e1' }), event('progress', { stage: 'reading' }), event('kept', { kept: 6, total: 60, regions: [] }),
    event('token', { text: 'I ' }), event('token', { text: 'see.' }), event('answer', { answer: 'yes' }), event('done', answer),
  ];
  const fetched = replies(stream(parts));
  const heard: unknown[] = [];
  const got = await client().ask(
    QUESTION,
    {
      start: episode => heard.push(episode), stage: stage => heard.push(stage), kept: kept => heard.push(kept.kept),
      token: text => heard.push(text), answer: text => heard.push(text),
    },
    new AbortController().signal,
  );
  expect(got).toEqual(answer);
  expect(heard).toEqual(['e1', 'reading', 6, 'I ', 'see.', 'yes']);
  const [url, init] = fetched.mock.calls[0]!;
  expect(url).toBe('/sparsight/ask');
  expect(init?.headers).toMatchObject({ Accept: 'text/event-stream', Authorization: 'Bearer secret' });
});

test('a stream that was cut is looked up by its episode', async () => {
  const fetched = replies(stream([event('start', { episode: 'e1' })], true), failed('not_found', 404), json(answer));
  expect(await client().ask(QUESTION, {}, new AbortController().signal)).toEqual(answer);
  expect(fetched.mock.calls.map(call => call[0])).toEqual(['/sparsight/ask', '/sparsight/episodes/e1', '/sparsight/episodes/e1']);
});

test('one that was cut too early says: ask again', async () => {
  replies(stream([event('start', { episode: 'e1' })]), ...Array.from({ length: 3 }, () => failed('not_found', 404)));
  await expect(client().ask(QUESTION, {}, new AbortController().signal)).rejects.toMatchObject({ code: 'cut' });
});

test('errors say what was given, expected and to do', async () => {
  replies(stream([event('start', { episode: 'e1' }), event('error', { error: { code: 'busy', given: 'a disk', expected: 'room', todo: 'wait' } })]));
  const error = await client().ask(QUESTION, {}, new AbortController().signal).catch((e: unknown) => e);
  expect(error).toBeInstanceOf(Refused);
  expect((error as Refused).message).toBe('A disk. Expected: room. To do: wait.');
  replies(failed('not_found', 404));
  await expect(client().ask(QUESTION, {}, new AbortController().signal)).rejects.toMatchObject({ code: 'not_found' });
  replies(new Response('<html>', { status: 502 }));
  await expect(client().studies()).rejects.toMatchObject({ code: 'odd' });
});

test('a login that has ended is said so, however the proxy in front says it', async () => {
  const away = new Response(null); // a redirect to the login, which is not followed
  Object.defineProperties(away, { type: { value: 'opaqueredirect' }, ok: { value: false }, status: { value: 0 } });
  const page = (init: ResponseInit) => new Response('<h1>Log in</h1>', { headers: { 'Content-Type': 'text/html' }, ...init });
  const ended = () => [away, page({ status: 401 }), page({})];
  const fetched = replies(...ended());
  for (const _ of ended()) await expect(client().studies()).rejects.toMatchObject({ code: 'login', message: expect.stringContaining('log in') });
  expect(fetched.mock.calls.every(([, init]) => init?.redirect === 'manual')).toBe(true);
  replies(...ended());
  for (const _ of ended()) await expect(client().ask(QUESTION, {}, new AbortController().signal)).rejects.toMatchObject({ code: 'login' });
  replies(failed('unauthorized', 401));
  await expect(client().studies()).rejects.toMatchObject({ code: 'unauthorized' }); // the server's own words
});

test('a token that was renewed is sent from then on', async () => {
  let token = 'old';
  const fetched = replies(failed('unauthorized', 401), json([]));
  const renewing = new Client('/sparsight', () => token, 1);
  await expect(renewing.studies()).rejects.toBeInstanceOf(Refused);
  token = 'new';
  await renewing.studies();
  expect(fetched.mock.calls.map(([, init]) => (init?.headers as Record<string, string>)['Authorization'])).toEqual(['Bearer old', 'Bearer new']);
});

test('a correction is sent again where the server is away, a refused one is not', async () => {
  const request = { episode: 'e1', reviewer: 'r', verdict: 'accept' as const, comment: '', key: 'k', marks: [] };
  const fetched = replies(new TypeError('away'), json({ key: 'k' }));
  expect(await client().feedback(request)).toEqual({ key: 'k' });
  expect(fetched).toHaveBeenCalledTimes(2);
  const refused = replies(failed('conflict', 409));
  await expect(client().feedback(request)).rejects.toMatchObject({ code: 'conflict' });
  expect(refused).toHaveBeenCalledTimes(1);
});

test('stopping is no error of the server', async () => {
  const stop = new AbortController();
  replies(stream([event('start', { episode: 'e1' })], true));
  stop.abort();
  const error = await client().ask(QUESTION, {}, stop.signal).catch((e: unknown) => e);
  expect(error).not.toBeInstanceOf(Refused);
});

test('an answer that is kept back comes as such, also where the stream was cut', async () => {
  replies(stream([event('start', { episode: 'e9' }), event('progress', { stage: 'reading' }), event('done', withheld)]));
  expect(await client().ask({ ...QUESTION, blinded: true }, {}, new AbortController().signal)).toEqual(withheld);
  replies(stream([event('start', { episode: 'e9' })], true), failed('blinded', 409));
  expect(await client().ask({ ...QUESTION, blinded: true }, {}, new AbortController().signal)).toEqual(withheld);
});

test('a change that nobody answered is sent again under the same key', async () => {
  const fetched = replies(new TypeError('away'), json({ key: 'a/b', state: 'withdrawn', learned_by: [] }));
  await client().change('a/b', 'withdraw', 'reader-1', 'c1');
  expect(fetched.mock.calls.map(call => call[0])).toEqual(Array(2).fill('/sparsight/feedback/a%2Fb/change'));
  expect(JSON.parse(String(fetched.mock.calls[1]![1]?.body))).toEqual({ change: 'withdraw', reviewer: 'reader-1', key: 'c1' });
});

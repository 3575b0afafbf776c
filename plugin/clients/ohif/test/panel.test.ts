import { beforeEach, expect, test, vi } from 'vitest';
import { Panel } from '../src/panel';
import { Review } from '../src/review';
import type { Session } from '../src/session';
import { answer, given, keeper, recorded, withheld } from './answers';

customElements.define('test-panel', Panel);

/** What the panel reads of a session. */
function session(more: object = {}): Session {
  const plain = {
    shown: { modality: 'CT', description: 'chest' }, question: '', suggestions: [], asking: null, answer: null, earlier: [], review: null,
    recorded: null, drawing: null, tool: 'box', pen: 0, chosen: -1, readings: [], reading: -1, withheld: null, own: null, stored: '',
    given: { list: [] }, lessons: { policies: [], job: null, running: false }, cases: { queue: null }, unread: { wanted: false }, busy: '',
    trouble: '', reviewer: 'anonymous', picture: { visible: true, opacity: 1 }, modality: () => 'DX', who: { known: false, may: () => true },
  };
  return Object.assign(new EventTarget(), plain, more) as unknown as Session;
}

let panel: Panel;
beforeEach(() => {
  document.body.replaceChildren((panel = document.createElement('test-panel') as Panel));
});

async function shown(more: object): Promise<ShadowRoot> {
  panel.session = session(more);
  await panel.updateComplete;
  return panel.shadowRoot!;
}

test('an answer that is kept back is nowhere on the panel', async () => {
  const root = await shown({ withheld, review: new Review('e9', keeper()), earlier: [answer] });
  expect(root.querySelector('#blinded')?.textContent).toContain(withheld.question);
  for (const id of ['#result', '#review', '#regions', '#earlier', '#given']) expect(root.querySelector(id), id).toBeNull();
  expect(root.textContent).not.toContain(answer.reasoning);
});

test('every reader\'s review is listed; only one\'s own can be changed', async () => {
  const list = [given({ state: 'draft', changes: [{ change: 'draft' }] }), given({ key: 'x', reviewer: 'other', learned_by: ['p1'] })];
  const root = await shown({ answer, review: new Review('e1', keeper()), given: { list } });
  const [own, other] = [...root.querySelectorAll('#given li')];
  expect([...own!.querySelectorAll('button')].map(button => button.dataset['change'])).toEqual(['submit', 'withdraw']);
  expect(other!.querySelector('button')).toBeNull();
  expect(other!.textContent).toContain('learned by p1');
});

test('a reader sees answers and policies, and nothing that only others may do', async () => {
  const policies = [{ id: 'p1', state: 'candidate', reasons: [], metrics: {} }];
  const seen = { answer, review: new Review('e1', keeper()), lessons: { policies, job: null, running: false } };
  const everything = await shown(seen);
  for (const id of ['#review', '#given', '#store', '#blind', '#learn', '#policies button']) expect(everything.querySelector(id), id).not.toBeNull();
  const judge = vi.fn();
  const root = await shown({ ...seen, review: null, judge, who: { known: true, may: (role: string) => role === 'reader' } });
  for (const id of ['#review', '#given', '#store', '#blind', '#learn', '#job', '#policies button']) expect(root.querySelector(id), id).toBeNull();
  window.dispatchEvent(new KeyboardEvent('keydown', { key: 'a' }));
  expect(judge).not.toHaveBeenCalled();
  expect(root.querySelector('#result')).not.toBeNull();
  expect(root.querySelector('#policies')!.textContent).toContain('p1');
});

test('Ctrl Enter in a field of the review submits it, and asks nothing again', async () => {
  const [ask, submit] = [vi.fn(), vi.fn()];
  const press = (field: Element) => field.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', ctrlKey: true, bubbles: true, composed: true }));
  const root = await shown({ answer, review: new Review('e1', keeper()), ask, submit });
  for (const id of ['#answer', '#comment']) press(root.querySelector(id)!);
  expect([ask.mock.calls.length, submit.mock.calls.length]).toEqual([0, 2]);
  press(root.querySelector('#reviewer')!);
  press(root.querySelector('#question')!);
  expect([ask.mock.calls.length, submit.mock.calls.length]).toEqual([1, 2]);
});

test('a pseudonym that the login gives cannot be typed over', async () => {
  for (const known of [false, true]) {
    const field = (await shown({ who: { known, may: () => true }, reviewer: 'reader-1' })).querySelector<HTMLInputElement>('#reviewer')!;
    expect([field.value, field.disabled]).toEqual(['reader-1', known]);
  }
});

test('a text is shown as it is, never as markup', async () => {
  const text = '<img src=x onerror=alert(1)>';
  const root = await shown({
    answer: { ...answer, question: text, answer: text }, own: text, review: new Review('e1', keeper()), given: { list: [given({ comment: text })] },
    cases: { queue: [{ study: '1', question: text, score: 1, reason: text }] }, lessons: { policies: [], job: { state: 'done', stats: { reasons: [text] } } },
  });
  expect(root.querySelector('img')).toBeNull();
  for (const id of ['#result', '#own', '#given', '#queue', '#job']) expect(root.querySelector(id)?.textContent, id).toContain(text);
});

test('readings are offered where there was more than one', async () => {
  const one = { kept: 60, total: 600, regions: [], reasoning: 'none' };
  expect((await shown({ answer, review: new Review('e1', keeper()), readings: [one] })).querySelector('#readings')).toBeNull();
  const root = await shown({ answer, review: new Review('e1', keeper()), readings: [one, { ...one, kept: 600, reasoning: 'I see.' }], reading: 1 });
  const buttons = [...root.querySelectorAll<HTMLElement>('#readings button')];
  expect(buttons.map(button => button.textContent?.trim())).toEqual(['Evidence', '1: 60 of 600 tokens', '2: 600 of 600 tokens']);
  expect(buttons.map(button => button.ariaPressed ?? button.getAttribute('aria-pressed'))).toEqual(['false', 'false', 'true']);
  expect(root.textContent).toContain('I see.');
});

test('an answer without regions says so', async () => {
  const root = await shown({ answer: { ...answer, evidence: [] }, review: new Review('e1', keeper()) });
  expect(root.querySelector('#regions')).toBeNull();
  expect(root.textContent).toContain('No region stands out.');
  expect(root.textContent).toContain('0 regions');
});

test('a draft is said to be one until it is submitted', async () => {
  const draft = { answer, review: new Review('e1', keeper()), recorded: { ...recorded, state: 'draft' } };
  expect((await shown(draft)).querySelector('#reward h2')?.textContent).toMatch(/draft/);
  const list = [given({ key: recorded.key, state: 'submitted' })];
  expect((await shown({ ...draft, given: { list } })).querySelector('#reward h2')?.textContent).toMatch(/^Recorded/);
});

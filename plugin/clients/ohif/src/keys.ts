/** Every key of the panel: what it does and how the list of them says so. */
import type { Session } from './session';

export interface Key {
  key: string; // as the event names it
  shown: string;
  says: string;
  ctrl?: boolean;
  reviews?: boolean; // only a reviewer's
  run(session: Session, focus: (what: 'question' | 'answer') => void): void;
}

export const KEYS: Key[] = [
  { key: '/', shown: '/', says: 'write a question', run: (_, focus) => focus('question') },
  { key: 'Enter', ctrl: true, shown: 'Ctrl Enter', says: 'ask; in a field of the review: submit', run: session => void session.ask() },
  { key: 'Escape', shown: 'Esc', says: 'stop the answer, or stop drawing', run: session => session.cancel() },
  { key: 'e', shown: 'E', says: 'evidence on or off', run: session => session.toggleEvidence() },
  { key: '[', shown: '[', says: 'fainter', run: session => session.fade(-0.15) },
  { key: ']', shown: ']', says: 'stronger', run: session => session.fade(0.15) },
  { key: ',', shown: ',', says: 'region before', run: session => session.step(-1) },
  { key: '.', shown: '.', says: 'next region', run: session => session.step(1) },
  { key: '<', shown: '<', says: 'tokens of the reading before', run: session => session.stepReading(-1) },
  { key: '>', shown: '>', says: 'tokens of the next reading', run: session => session.stepReading(1) },
  { key: 'b', reviews: true, shown: 'B', says: 'read blinded first, or not', run: session => session.toggleBlinded() },
  { key: 'a', reviews: true, shown: 'A', says: 'accept', run: session => session.judge('accept') },
  { key: 'x', reviews: true, shown: 'X', says: 'reject', run: session => session.judge('reject') },
  {
    key: 'c',
    reviews: true,
    shown: 'C',
    says: 'amend',
    run: (session, focus) => {
      if (session.review?.verdict !== 'amend') session.judge('amend');
      focus('answer');
    },
  },
  { key: 't', reviews: true, shown: 'T', says: 'this image cannot tell', run: session => session.edit(review => review.tellNothing()) },
  { key: 'f', reviews: true, shown: 'F', says: 'how hard it is: easy, moderate, hard', run: session => session.edit(review => review.rateNext()) },
  { key: '1', reviews: true, shown: '1', says: 'draw what is relevant', run: session => session.mark('relevant') },
  { key: '2', reviews: true, shown: '2', says: 'draw what was missed', run: session => session.mark('missed') },
  { key: '3', reviews: true, shown: '3', says: 'draw what is irrelevant', run: session => session.mark('irrelevant') },
  { key: 'm', reviews: true, shown: 'M', says: 'mark the region looked at: relevant, irrelevant, not', run: session => session.markRegion() },
  { key: '4', reviews: true, shown: '4', says: 'draw boxes, strokes or points', run: session => session.take() },
  { key: 'z', reviews: true, ctrl: true, shown: 'Ctrl Z', says: 'undo', run: session => session.undo() },
  { key: 's', reviews: true, shown: 'S', says: 'submit', run: session => void session.submit() },
  { key: 'd', reviews: true, shown: 'D', says: 'keep as a draft on the server', run: session => void session.submit(true) },
  {
    key: 'w',
    reviews: true,
    shown: 'W',
    says: 'withdraw your last review',
    run: session => void session.given.change(session.given.newest('withdraw'), 'withdraw'),
  },
  {
    key: 'u',
    reviews: true,
    shown: 'U',
    says: 'undo its last change',
    run: session => void session.given.change(session.given.newest('undo'), 'undo'),
  },
  { key: 'p', reviews: true, shown: 'P', says: 'store the result in the PACS', run: session => void session.storeResults() },
  { key: 'n', shown: 'N', says: 'next case', run: session => void session.nextCase() },
];

/** What a key press means here; in a text field only those with Ctrl, and Escape, do anything. */
export function keyOf(event: KeyboardEvent): Key | undefined {
  const at = event.composedPath()[0];
  const typing = at instanceof HTMLElement && (at.isContentEditable || ['INPUT', 'TEXTAREA', 'SELECT'].includes(at.tagName));
  const ctrl = event.ctrlKey || event.metaKey;
  if (event.altKey || event.repeat) return undefined;
  const found = KEYS.find(key => key.key.toLowerCase() === event.key.toLowerCase() && !!key.ctrl === ctrl);
  if (typing && found?.key === 'z') return undefined; // the field undoes its own letters
  if (typing && found?.key === 'Enter' && at.id !== 'question') return at.closest('#review, #blinded') ? KEYS.find(key => key.key === 's') : undefined;
  return typing && !ctrl && event.key !== 'Escape' ? undefined : found;
}

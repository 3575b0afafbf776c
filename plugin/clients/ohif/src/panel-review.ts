/** The parts of the panel where an answer is judged: the reader's own first, the review, what was recorded. */
import { html, nothing, type TemplateResult } from 'lit';
import { possible } from './given';
import { DIFFICULTIES, type Kind, type Verdict } from './review';
import type { Session } from './session';
import type { Tool } from './viewer';
import * as words from './words';

const VERDICTS: [Verdict, string, string][] = [['accept', 'Accept', 'A'], ['amend', 'Amend', 'C'], ['reject', 'Reject', 'X']];
const KINDS: [Kind, string, string][] = [['relevant', 'Relevant', '1'], ['missed', 'Missed', '2'], ['irrelevant', 'Irrelevant', '3']];
const TOOLS: [Tool, string][] = [['box', 'Box'], ['stroke', 'Stroke'], ['point', 'Point']];
const DRAW: Record<Tool, string> = {
  box: 'Drag a rectangle over the image; Esc: no.',
  stroke: 'Draw over the image with the button held; what the line runs through is marked. Esc: no.',
  point: 'Click on the image; Esc: no.',
};

const value = (event: Event) => (event.target as HTMLInputElement).value;

/** Before the answer is shown: what does the reader say? */
export function firstRead(s: Session): TemplateResult {
  const review = s.review!;
  return html`<section id="blinded">
    <h2>Your own reading first</h2>
    <p class="quiet">${s.withheld!.question}</p>
    <p>It was answered. The answer is kept back by the server until you have given yours, which is kept apart and never learned from.</p>
    ${answerField(s, 'Your own answer')}
    <div class="row">${cannotTell(s)} ${difficulty(s)}</div>
    ${remark(s)}
    <div class="row">
      <button id="forget" @click=${() => s.forget()}>Give up</button>
      <span class="grow"></span>
      <button id="read" class="main" ?disabled=${!!s.busy || review.empty} @click=${() => s.readFirst()}>Show the answer<kbd>S</kbd></button>
    </div>
  </section>`;
}

export function review(s: Session): TemplateResult {
  const review = s.review!;
  return html`<section id="review">
    <h2>Is it right?</h2>
    <div class="row">
      ${VERDICTS.map(
        ([verdict, text, key]) => html`<button
          data-verdict=${verdict} aria-pressed=${review.verdict === verdict} @click=${() => s.judge(verdict)}
        >${text}<kbd>${key}</kbd></button>`,
      )}
    </div>
    ${answerField(s, 'The right answer')}
    <div class="row">${cannotTell(s)} ${difficulty(s)}</div>
    ${marks(s)} ${remark(s)}
    <div class="row">
      <button @click=${() => s.undo()}>Undo<kbd>Ctrl Z</kbd></button>
      <button ?disabled=${review.empty} @click=${() => s.discard()}>Discard</button>
      <span class="grow"></span>
      <button id="draft" ?disabled=${!!s.busy} @click=${() => s.submit(true)}>Keep as draft<kbd>D</kbd></button>
      <button id="submit" class="main" ?disabled=${!!s.busy} @click=${() => s.submit()}>Submit<kbd>S</kbd></button>
    </div>
    <p class="quiet">What you type is kept in this browser until it is sent. A draft is kept by the server, and not learned from.</p>
  </section>`;
}

const WORTH = { draft: 'Kept as a draft. It would be worth', submitted: 'Recorded. Worth', withdrawn: 'Withdrawn. It was worth' };

/** What a review was worth, at once; and what became of it since. */
export function reward(s: Session): TemplateResult {
  const { key, state } = s.recorded!;
  const { total, parts } = words.reward(s.recorded!);
  return html`<section id="reward" aria-live="polite">
    <h2>${WORTH[s.given.list.find(one => one.key === key)?.state ?? state]} to the policy that answered</h2>
    <p class="reward">${total}</p>
    <dl>${parts.map(part => html`<dt>${part.name}</dt><dd>${part.text}</dd>`)}</dl>
    <div class="row">
      <button id="again" @click=${() => s.reviewAgain()}>Review again</button>
      <button class="main" @click=${() => s.nextCase()}>Next case<kbd>N</kbd></button>
    </div>
  </section>`;
}

/** The corrections of every reader, with what became of them, and what one may do with one's own. */
export function recorded(s: Session): TemplateResult {
  return html`<section>
    <h2>Reviews of this answer (${s.given.list.length})</h2>
    <ol id="given">
      ${s.given.list.map(
        one => html`<li data-state=${one.state}>
          <p>${words.given(one)}</p>
          <p class="quiet">${words.fate(one)}</p>
          ${one.reviewer === s.reviewer
            ? html`<div class="row">
                ${possible(one).map(
                  change => html`<button data-change=${change} ?disabled=${!!s.busy} @click=${() => s.given.change(one, change)}
                  >${words.CHANGES[change]}</button>`,
                )}
              </div>`
            : nothing}
        </li>`,
      )}
    </ol>
    <div class="row">
      <button id="store" ?disabled=${!!s.busy} @click=${() => s.storeResults()}>Store in the PACS<kbd>P</kbd></button>
    </div>
    ${s.stored ? html`<p id="stored" class="quiet">${s.stored}</p>` : nothing}
  </section>`;
}

function answerField(s: Session, label: string): TemplateResult {
  return html`<div class="row">
    <input
      id="answer" maxlength="2000" placeholder=${label} aria-label=${label} .value=${s.review!.answer}
      @input=${(event: Event) => s.write(value(event))}
    />
  </div>`;
}

function cannotTell(s: Session): TemplateResult {
  return html`<button id="cannot-tell" aria-pressed=${s.review!.cannotTell} @click=${() => s.edit(review => review.tellNothing())}
  >This image cannot tell<kbd>T</kbd></button>`;
}

function difficulty(s: Session): TemplateResult {
  return html`<span class="quiet">It is<kbd>F</kbd></span>
    ${DIFFICULTIES.map(
      one => html`<button data-difficulty=${one} aria-pressed=${s.review!.difficulty === one} @click=${() => s.edit(review => review.rate(one))}>${one}</button>`,
    )}`;
}

function remark(s: Session): TemplateResult {
  return html`<div class="row">
    <input
      id="comment" maxlength="2000" placeholder="Remark" aria-label="Remark" .value=${s.review!.comment}
      @input=${(event: Event) => s.edit(review => review.remark(value(event)))}
    />
  </div>`;
}

function marks(s: Session): TemplateResult {
  const review = s.review!;
  return html`<div class="row">
      <span class="quiet">Draw what is</span>
      ${KINDS.map(
        ([kind, text, key]) => html`<button
          class=${kind} data-kind=${kind} aria-pressed=${s.drawing === kind} @click=${() => s.mark(kind)}
        >${text}<kbd>${key}</kbd></button>`,
      )}
    </div>
    <div class="row">
      <span class="quiet">with a<kbd>4</kbd></span>
      ${TOOLS.map(
        ([tool, text]) => html`<button data-tool=${tool} aria-pressed=${s.tool === tool} @click=${() => s.take(tool)}>${text}</button>`,
      )}
      ${s.tool === 'box'
        ? nothing
        : html`<label for="pen">of</label>
            <input id="pen" class="short" type="number" min="0" max="40" step="1" .value=${String(s.pen)}
              @input=${(event: Event) => (s.pen = Math.min(40, Math.max(0, Number(value(event)) || 0)))} />
            <span class="quiet">mm</span>`}
    </div>
    ${s.drawing ? html`<p class="quiet">${DRAW[s.tool]}</p>` : nothing}
    <ol id="marks">
      ${review.marks.map(
        (mark, n) => html`<li class="row"><b class=${mark.kind}>${words.mark(mark)} ${n + 1}</b>
          <button aria-label="Remove" @click=${() => s.unmark(mark.id)}>Remove</button></li>`,
      )}
    </ol>`;
}

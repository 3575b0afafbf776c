/** The parts of the panel about what comes next: the queue of cases, learning, and which policy answers. */
import { html, nothing, type TemplateResult } from 'lit';
import type { Session } from './session';
import * as words from './words';

const opened = (event: Event) => (event.target as HTMLDetailsElement).open;

/** The cases where one more correction would teach most; looked for when it is opened. */
export function queue(s: Session): TemplateResult {
  const { queue } = s.cases;
  return html`<section>
    <details id="queue" @toggle=${(event: Event) => opened(event) && !queue && s.cases.list()}>
      <summary>Next cases</summary>
      ${queue?.length === 0 ? html`<p class="quiet">All cases were seen.</p>` : nothing}
      <ol>
        ${queue?.map(
          one => html`<li>
            <button title=${one.reason} @click=${() => s.cases.go(one.study, one.question)}>
              <span>${s.modality(one.study)}</span><span>${one.question}</span>
            </button>
          </li>`,
        )}
      </ol>
      <div class="row"><button ?disabled=${!!s.busy} @click=${() => s.cases.list()}>Look again</button></div>
    </details>
  </section>`;
}

/** Learn, and promote what has passed the gate: signed with the reviewer's pseudonym. */
export function learning(s: Session): TemplateResult {
  const { policies, job, running } = s.lessons;
  const trains = s.who.may('trainer');
  return html`<section>
    <details id="learning" @toggle=${(event: Event) => opened(event) && s.lessons.load()}>
      <summary>Learning</summary>
      ${trains
        ? html`<div class="row">
              <button id="learn" ?disabled=${running} @click=${() => s.lessons.start()}>Learn from the corrections</button>
            </div>
            <p id="job" class="quiet" role="status">${words.learning(job)}</p>`
        : nothing}
      <ol id="policies">
        ${policies.map(
          one => html`<li data-policy=${one.id} data-state=${one.state}>
            <p title=${one.reasons.join('; ')}>${words.policy(one)}</p>
            ${trains && (one.state === 'candidate' || one.state === 'retired')
              ? html`<button ?disabled=${!!s.busy} @click=${() => s.lessons.promote(one)}>Promote, signed ${s.reviewer}</button>`
              : nothing}
          </li>`,
        )}
      </ol>
    </details>
  </section>`;
}

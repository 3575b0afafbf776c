/** The panel beside the image. It shows a session and hands on what is done; texts are texts, never markup. */
import { html, LitElement, nothing, type TemplateResult } from 'lit';
import { KEYS, keyOf } from './keys';
import { learning, queue } from './panel-learning';
import { firstRead, recorded, review, reward } from './panel-review';
import type { Session } from './session';
import { style } from './style';
import * as words from './words';

const LIGHT = 'sparsight:light';

export class Panel extends LitElement {
  static override styles = style;
  static override properties = { session: { attribute: false }, light: { type: Boolean, reflect: true } };
  declare session: Session | undefined;
  declare light: boolean;
  private clock = 0;
  private listening: Session | undefined;
  private readonly heard = () => this.requestUpdate();
  private readonly pressed = (event: KeyboardEvent) => {
    const key = this.session && keyOf(event);
    if (!key || (key.reviews && !this.session!.who.may('reviewer'))) return;
    event.preventDefault();
    event.stopImmediatePropagation(); // the viewer has keys of its own
    key.run(this.session!, what => this.renderRoot.querySelector<HTMLElement>(`#${what}`)?.focus());
  };

  override connectedCallback(): void {
    super.connectedCallback();
    this.light = localStorage.getItem(LIGHT) === 'yes'; // dark as the viewer is, whatever the desktop prefers
    window.addEventListener('keydown', this.pressed, true);
    this.clock = window.setInterval(() => this.session?.asking && this.requestUpdate(), 500);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    window.removeEventListener('keydown', this.pressed, true);
    window.clearInterval(this.clock);
  }

  override willUpdate(): void {
    if (this.listening === this.session) return;
    this.listening?.removeEventListener('change', this.heard);
    this.session?.addEventListener('change', this.heard);
    this.listening = this.session;
  }

  override render(): TemplateResult {
    const s = this.session;
    if (!s) return html`<p>No viewer.</p>`;
    const reviews = s.who.may('reviewer');
    return html`
      <div class="banner" role="note">${words.RESEARCH}</div>
      ${this.asks(s)}
      <div aria-live="polite">${s.asking ? this.comes(s) : s.answer ? this.answers(s) : nothing}</div>
      ${s.withheld ? firstRead(s) : nothing}
      ${s.answer && !s.asking ? html`${this.shows(s)} ${s.recorded ? reward(s) : s.review ? review(s) : nothing} ${reviews ? recorded(s) : nothing}` : nothing}
      ${queue(s)} ${s.withheld ? nothing : this.history(s)} ${learning(s)} ${this.settings(s)}
      <div role="alert">${s.trouble ? html`<p class="bad" id="trouble">${s.trouble}</p>` : nothing}</div>
    `;
  }

  private shine(): void {
    this.light = !this.light;
    localStorage.setItem(LIGHT, this.light ? 'yes' : 'no');
  }

  private asks(s: Session): TemplateResult {
    return html`<section>
      <h2>${s.shown ? `${s.shown.modality} ${s.shown.description}`.trim() : 'No images on screen yet'}</h2>
      <textarea
        id="question"
        rows="2"
        maxlength="2000"
        placeholder="Ask about these images"
        aria-label="Question"
        .value=${s.question}
        @input=${(event: InputEvent) => (s.question = (event.target as HTMLTextAreaElement).value)}
      ></textarea>
      <div class="row chips" aria-label="Suggested questions">
        ${s.suggestions.map(
          text => html`<button @click=${() => { s.question = text; this.requestUpdate(); }}>${text}</button>`,
        )}
      </div>
      <div class="row">
        ${s.asking
          ? html`<button id="cancel" @click=${() => s.cancel()}>Stop<kbd>Esc</kbd></button>`
          : html`<button id="ask" class="main" ?disabled=${!s.shown} @click=${() => s.ask()}>Ask<kbd>Ctrl ⏎</kbd></button>`}
        ${s.who.may('reviewer')
          ? html`<button id="blind" aria-pressed=${s.unread.wanted} title="the answer is kept back until you have given yours" @click=${() => s.toggleBlinded()}
            >Blinded<kbd>B</kbd></button>`
          : nothing}
        <span class="grow"></span>
        <button id="next" ?disabled=${!!s.busy} @click=${() => s.nextCase()}>Next case<kbd>N</kbd></button>
      </div>
      ${s.busy ? html`<p class="quiet">${s.busy}…</p>` : nothing}
    </section>`;
  }

  private comes(s: Session): TemplateResult {
    const { stage, reasoning, answer, kept, since, question } = s.asking!;
    const seconds = Math.floor((performance.now() - since) / 1000);
    return html`<section id="stream">
      <p class="quiet">${question}</p>
      <p class="said">${answer || '…'}</p>
      <p class="reasoning">${reasoning}</p>
      <p class="quiet" aria-live="off">${words.stage(stage)}, ${seconds} s${kept?.total ? `: ${words.kept(kept.kept, kept.total)}` : ''}</p>
    </section>`;
  }

  private answers(s: Session): TemplateResult {
    const answer = s.answer!;
    return html`<section id="result">
      <p class="quiet">${answer.question}</p>
      <p class="said">${words.said(answer)}</p>
      ${answer.abstained && answer.answer ? html`<p class="quiet">It leaned towards: ${answer.answer}</p>` : nothing}
      ${answer.reasoning ? html`<p class="reasoning">${answer.reasoning}</p>` : nothing}
      ${s.own === null ? nothing : html`<p id="own">You said before you saw it: <b>${s.own}</b></p>`}
      <dl>
        ${words.facts(answer).map(
          fact => html`<dt>${fact.name}</dt><dd class=${fact.warn ? 'warn' : ''}>${fact.text}</dd>`,
        )}
      </dl>
    </section>`;
  }

  private shows(s: Session): TemplateResult {
    const { evidence } = s.answer!;
    const { visible, opacity } = s.picture;
    return html`<section>
      <h2>What it rests on</h2>
      <div class="row">
        <button id="toggle" aria-pressed=${visible} @click=${() => s.toggleEvidence()}>On the image<kbd>E</kbd></button>
        <span class="grow"></span>
        <button aria-label="Region before" @click=${() => s.step(-1)}>‹<kbd>,</kbd></button>
        <button aria-label="Next region" @click=${() => s.step(1)}>›<kbd>.</kbd></button>
      </div>
      <input
        type="range" min="10" max="100" step="5" aria-label="Opacity of the evidence" .value=${String(Math.round(100 * opacity))}
        @input=${(event: InputEvent) => s.fade(Number((event.target as HTMLInputElement).value) / 100 - opacity)}
      />
      ${evidence.length
        ? html`<ol id="regions">
            ${evidence.map(
              (region, n) => html`<li>
                <button
                  aria-pressed=${n === s.chosen} title="go to its slice" @click=${() => s.choose(n)}
                ><span>${n + 1}</span>${Math.round(100 * region.weight)} %</button>
              </li>`,
            )}
          </ol>
          <div class="row">
            <button id="mark-region" title="relevant, then irrelevant, then not" ?disabled=${s.chosen < 0} @click=${() => s.markRegion()}>Mark it<kbd>M</kbd></button>
          </div>`
        : html`<p class="warn">No region stands out.</p>`}
      ${s.readings.length > 1 ? this.readings(s) : nothing}
    </section>`;
  }

  /** A question may be read more than once: the tokens that each reading kept, and what was reasoned from them. */
  private readings(s: Session): TemplateResult {
    const step = (n: number, text: string) => html`<li>
      <button data-reading=${n} aria-pressed=${n === s.reading} @click=${() => s.showReading(n)}>${text}</button>
    </li>`;
    const read = s.readings[s.reading];
    return html`<h2>Read ${s.readings.length} times<kbd>&lt;</kbd><kbd>&gt;</kbd></h2>
      <ol id="readings">
        ${step(-1, 'Evidence')} ${s.readings.map((one, n) => step(n, `${n + 1}: ${one.kept} of ${one.total} tokens`))}
      </ol>
      ${read ? html`<p class="reasoning">${read.reasoning || 'nothing was said'}</p>` : nothing}`;
  }

  private history(s: Session): TemplateResult {
    return html`<section>
        <details>
          <summary>Earlier answers (${s.earlier.length})</summary>
          <ol id="earlier">
            ${s.earlier.map(
              answer => html`<li>
                <button aria-pressed=${answer.episode === s.answer?.episode} @click=${() => s.show(answer)}>
                  <span>${words.said(answer)}</span><span>${answer.question}</span>
                </button>
              </li>`,
            )}
          </ol>
        </details>
      </section>`;
  }

  private settings(s: Session): TemplateResult {
    return html`<section>
        <details>
          <summary>Keys and reviewer</summary>
          <div class="row">
            <label for="reviewer">Pseudonym that reviews are recorded under, ${s.who.known ? 'of your login' : 'never a name'}</label>
            <input id="reviewer" maxlength="64" pattern="[A-Za-z0-9._\\-]+" .value=${s.reviewer} ?disabled=${s.who.known}
              @change=${(event: Event) => (s.reviewer = (event.target as HTMLInputElement).value)} />
          </div>
          <div class="row"><button id="light" aria-pressed=${this.light} @click=${() => this.shine()}>Light panel</button></div>
          <dl>${KEYS.map(key => html`<dt><kbd>${key.shown}</kbd></dt><dd>${key.says}</dd>`)}</dl>
        </details>
      </section>`;
  }
}

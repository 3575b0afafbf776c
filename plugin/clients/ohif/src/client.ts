/** The routes of docs/api.md, with their types from docs/openapi.json. Knows nothing of OHIF. */
import type { components } from './api';
import { events } from './sse';

type Schemas = components['schemas'];
export type Answer = Schemas['AskReply'];
export type Region = Schemas['RegionReply'];
export type Tokens = Schemas['TokensReply'];
export type Geometry = Schemas['GeometryReply'];
export type Study = Schemas['StudyReply'];
type Sent<T, Defaults extends keyof T> = Omit<T, Defaults> & Partial<Pick<T, Defaults>>; // what has a default may be left out
export type FeedbackRequest = Sent<Omit<Schemas['FeedbackRequest'], 'marks'>, 'blinded' | 'cannot_tell' | 'draft'> & {
  marks?: Mark[];
};
export type Feedback = Schemas['FeedbackReply'];
export type Given = Schemas['GivenReply'];
export type Me = Schemas['MeReply'];
export type Change = Schemas['ChangeRequest']['change'];
export type NextCase = Schemas['NextCaseReply'];
export type Case = Schemas['CaseReply'];
export type Mark = Sent<Schemas['MarkRequest'], 'radius_mm'>;
export type Policy = Schemas['PolicyReply'];
export type Learning = Schemas['LearnReply'];
export type Results = Schemas['DicomReply'];
/** An answer that the server keeps back until a reader has given their own. */
export type Withheld = Pick<Schemas['WithheldReply'], 'episode' | 'study' | 'question' | 'withheld'>;

export interface Question {
  study: string;
  question: string;
  blinded?: boolean;
  budget?: number | 'auto';
}

export interface Kept {
  kept: number;
  total: number;
  regions: Region[];
}

/** What is heard while an answer is made. */
export interface Listener {
  start?(episode: string): void;
  stage?(stage: string): void;
  /** A reading begins: text that came before is of an earlier one. */
  kept?(kept: Kept): void;
  token?(text: string): void;
  answer?(answer: string): void;
}

/** What went wrong, in words for a person; `code` as in docs/errors.md, `away` where nobody answered, `login` where a login has ended. */
export class Refused extends Error {
  constructor(
    readonly code: string,
    given: string,
    expected: string,
    todo: string,
  ) {
    super(`${given.charAt(0).toUpperCase()}${given.slice(1)}. Expected: ${expected}. To do: ${todo}.`);
  }
}

export function isWithheld(reply: Answer | Withheld): reply is Withheld {
  return 'withheld' in reply;
}

const AWAY = () => new Refused('away', 'the server does not answer', 'a running server', 'try again; your draft is kept');
const LOGIN = () => new Refused('login', 'a login that has ended', 'one that stands', 'reload this page and log in; what you wrote is kept');
const TRIES = 3;
const EVENTS = 'text/event-stream';

export class Client {
  constructor(
    private readonly base: string,
    private readonly token: () => string | null = () => null,
    private readonly waitMs = 400,
  ) {}

  studies(): Promise<Study[]> {
    return this.get('/studies');
  }

  /** Who logged in: the pseudonym that this reader's corrections are recorded under; null where nobody does. */
  me(): Promise<Me> {
    return this.get('/me');
  }

  /** Earlier answers about a study, newest first. */
  episodes(study: string, limit = 20): Promise<Answer[]> {
    return this.get(`/episodes?study=${encodeURIComponent(study)}&limit=${limit}`);
  }

  tokens(episode: string): Promise<Tokens> {
    return this.get(`/episodes/${encodeURIComponent(episode)}/tokens`);
  }

  geometry(episode: string): Promise<Geometry> {
    return this.get(`/episodes/${encodeURIComponent(episode)}/geometry`);
  }

  answer(episode: string): Promise<Answer> {
    return this.patiently(() => this.get(`/episodes/${encodeURIComponent(episode)}`));
  }

  /** Sent again where nobody answered: its key makes it the same correction. */
  feedback(request: FeedbackRequest): Promise<Feedback> {
    return this.patiently(() => this.call('/feedback', request));
  }

  /** All corrections of an answer, of every reader, oldest first. */
  given(episode: string): Promise<Given[]> {
    return this.get(`/episodes/${encodeURIComponent(episode)}/feedback`);
  }

  /** Submit a draft, withdraw a correction or undo its last change; `changeKey` makes it the same change when sent again. */
  change(key: string, change: Change, reviewer: string, changeKey: string): Promise<unknown> {
    const body = { change, reviewer, key: changeKey };
    return this.patiently(() => this.call(`/feedback/${encodeURIComponent(key)}/change`, body));
  }

  /** The studies where one more correction would teach most: the first, and `count` in all as a queue. */
  nextCase(exclude: string[], count = 1): Promise<NextCase> {
    return this.call('/next_case', { exclude, count });
  }

  /** Write an answer and its corrections as DICOM into the PACS that the studies come from. */
  store(episode: string): Promise<Results> {
    return this.call(`/episodes/${encodeURIComponent(episode)}/dicom`, { store: true });
  }

  policies(): Promise<Policy[]> {
    return this.get('/policies');
  }

  learn(): Promise<Learning> {
    return this.call('/learn', {});
  }

  learning(): Promise<Learning> {
    return this.get('/learn');
  }

  promote(policy: string, signOff: string): Promise<Policy> {
    return this.call(`/policies/${encodeURIComponent(policy)}/promote`, { sign_off: signOff });
  }

  /**
   * Ask, hearing the answer as it comes. Aborting `signal` ends the work on the server, too.
   * A stream that is cut is looked up by its episode: the answer, where it was read by then.
   */
  async ask(question: Question, listener: Listener, signal: AbortSignal): Promise<Answer | Withheld> {
    const response = await this.fetch('/ask', {
      method: 'POST',
      body: JSON.stringify(question),
      headers: { 'Content-Type': 'application/json', Accept: EVENTS },
      signal,
    });
    if (!response.ok || !response.body) throw await refusal(response);
    if (!response.headers.get('Content-Type')?.startsWith(EVENTS)) throw LOGIN(); // a page in its place
    let episode = '';
    try {
      for await (const { name, data } of events(response.body)) {
        const body = JSON.parse(data);
        if (name === 'start') {
          episode = body.episode;
          listener.start?.(episode);
        } else if (name === 'progress') listener.stage?.(body.stage);
        else if (name === 'kept') listener.kept?.(body);
        else if (name === 'token') listener.token?.(body.text);
        else if (name === 'answer') listener.answer?.(body.answer);
        else if (name === 'done') return body as Answer | Withheld;
        else if (name === 'error') throw detailed(body);
      }
    } catch (error) {
      if (signal.aborted || error instanceof Refused) throw error;
    }
    if (!episode) throw AWAY();
    return this.patiently(() => this.get<Answer>(`/episodes/${episode}`), 'not_found').catch((error: unknown) => {
      const { study, question: text } = question;
      if (error instanceof Refused && error.code === 'blinded') return { withheld: true, episode, study, question: text };
      throw new Refused('cut', 'the connection was lost before the answer was read', 'an answer', 'ask again');
    });
  }

  private get<T>(path: string): Promise<T> {
    return this.call<T>(path);
  }

  private async call<T>(path: string, body?: unknown): Promise<T> {
    const headers: Record<string, string> = body === undefined ? {} : { 'Content-Type': 'application/json' };
    const init = body === undefined ? { headers } : { method: 'POST', headers, body: JSON.stringify(body) };
    const response = await this.fetch(path, init);
    if (!response.ok) throw await refusal(response);
    return (await response.json().catch(() => Promise.reject(LOGIN()))) as T; // a page in its place
  }

  private async fetch(path: string, init: RequestInit & { headers: Record<string, string> }): Promise<Response> {
    const token = this.token();
    if (token) init.headers['Authorization'] = `Bearer ${token}`;
    try {
      return await fetch(this.base + path, { ...init, credentials: 'same-origin', redirect: 'manual' }); // a redirect leads to a login
    } catch (error) {
      if (init.signal?.aborted) throw error;
      throw AWAY();
    }
  }

  /** Try a few times where the server is away, or `also` says that it may come. */
  private async patiently<T>(work: () => Promise<T>, also = ''): Promise<T> {
    for (let n = 1; ; n++) {
      try {
        return await work();
      } catch (error) {
        const again = error instanceof Refused && (error.code === 'away' || error.code === also);
        if (!again || n === TRIES) throw error;
        await new Promise(resolve => setTimeout(resolve, this.waitMs * 2 ** n));
      }
    }
  }
}

async function refusal(response: Response): Promise<Refused> {
  try {
    return detailed(await response.json());
  } catch {
    if (response.type === 'opaqueredirect' || response.status === 401) return LOGIN();
    return new Refused('odd', `a reply of status ${response.status}`, 'a sparsight server', 'see its log');
  }
}

function detailed(body: { error: { code: string; given: string; expected: string; todo: string } }): Refused {
  const { code, given, expected, todo } = body.error;
  return new Refused(code, given, expected, todo);
}

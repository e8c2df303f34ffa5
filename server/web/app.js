// The search page. Documents are untrusted: they enter the page as text nodes only, never as markup.

const DEBOUNCE_MS = 150;
const PAGE_SIZE = 10;
const FACET_SIZE = 10;
const KEY = 'sextant-api-key';
const FACET_TYPES = ['string', 'strings', 'bool'];
const STAGES = { cache: 'Cache', wait: 'Waiting', embed: 'Embedding', index: 'Index', documents: 'Documents' };
const CACHE_WORDS = {
  hit: 'The answer came from the cache',
  miss: 'The answer was computed and is now cached',
  coalesced: 'The answer was shared with an equal search that was already running',
  bypass: 'The cache was not asked',
};
const SAMPLE_QUERIES = ['something gentle for a stiff lower back', 'stronger legs without any equipment',
  'better balance on one foot', 'short workout for chest and arms'];
const COMMON = new Set('a an and are at for from in is it my of on or some the to with without'.split(' '));

const $ = (id) => document.getElementById(id);
const el = new Proxy({}, { get: (_, name) => $(name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)) });

/** Creates an element: functions become listeners, `data` the dataset, null leaves an attribute out. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (name === 'data') Object.assign(element.dataset, value);
    else if (value != null && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/* State. What the URL holds is in `state`; everything else belongs to the answer on screen. */

const state = { collection: '', query: '', mode: '', filters: {} };
let collections = [];
let answer = { cursor: null, shown: 0, best: 0 };
let values = {}; // facet field -> values seen for this query, so that a checked facet keeps its others
let expanded = new Set(); // facets that show all their values
let committed = true; // whether the next change of the query makes a new history entry
let pending = null; // AbortController of the search in flight: any other answer is stale
let pendingSuggest = null;
let debounce = 0;
let countdown = 0;

const collection = () => collections.find(({ name }) => name === state.collection);
const defaultMode = (chosen) => chosen?.schema?.default_mode;
const textFields = () => collection()?.schema?.text_fields ?? [];
const attributes = () => collection()?.schema?.attributes ?? {};
const facetFields = () => Object.keys(attributes()).filter((name) => FACET_TYPES.includes(attributes()[name]));
const isOn = (field, value) => state.filters[field]?.includes(value) ?? false;
const endpoint = (name) => `/v1/collections/${encodeURIComponent(state.collection)}/${name}`;

function readUrl() {
  const url = new URLSearchParams(location.search);
  state.collection = collections.find(({ name }) => name === url.get('c'))?.name ?? collections[0]?.name ?? '';
  state.query = url.get('q') ?? '';
  state.mode = ['dense', 'lexical', 'hybrid'].find((mode) => mode === url.get('mode')) ?? defaultMode(collection()) ?? 'dense';
  state.filters = {};
  for (const [field, value] of url.getAll('f').map((pair) => pair.split(/:(.*)/s))) {
    if (facetFields().includes(field) && value && !isOn(field, value)) (state.filters[field] ??= []).push(value);
  }
  values = {};
}

function writeUrl(push) {
  if (!collection()) return;
  const url = new URLSearchParams();
  if (collections.length > 1) url.set('c', state.collection);
  if (state.query.trim()) url.set('q', state.query);
  if (state.mode !== defaultMode(collection())) url.set('mode', state.mode);
  for (const [field, chosen] of Object.entries(state.filters)) chosen.forEach((value) => url.append('f', `${field}:${value}`));
  const target = `${location.pathname}${url.size ? `?${url}` : ''}`;
  document.title = state.query.trim() ? `${state.query.trim()} – Sextant` : 'Sextant';
  if (target !== location.pathname + location.search) history[push ? 'pushState' : 'replaceState'](null, '', target);
}

/** Values of one field are alternatives; the fields must all hold. */
function filter() {
  const must = Object.entries(state.filters).flatMap(([field, chosen]) => {
    if (attributes()[field] !== 'bool') return [{ field, in: chosen }];
    return chosen.length === 1 ? [{ field, eq: chosen[0] === 'true' }] : [];
  });
  return must.length ? { must } : undefined;
}

/* The API */

class Problem extends Error {
  constructor(problem) { super(problem.title); Object.assign(this, problem); }
}

async function api(path, { body, signal } = {}) {
  const headers = body ? { 'Content-Type': 'application/json' } : {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const method = body ? 'POST' : 'GET';
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal }).catch((error) => {
    if (error.name === 'AbortError') throw error;
    throw new Problem({ title: 'The server does not answer', detail: 'Check the connection, then try again.' });
  });
  const data = await response.json().catch((error) => {
    if (error.name === 'AbortError' || response.ok) throw error;
    return {}; // a proxy's error page
  });
  if (response.ok) return { data, timing: response.headers.get('Server-Timing') ?? '' };
  const { status, statusText } = response;
  const retryAfter = Number(response.headers.get('Retry-After')) || 0;
  throw new Problem({ title: statusText || `Error ${status}`, ...data, status, retryAfter });
}

async function search({ append = false } = {}) {
  clearTimeout(debounce);
  pending?.abort();
  const current = pending = new AbortController();
  if (!collection()) return;
  if (!state.query.trim()) { busy(false); return showEmpty(); }
  busy(true);
  const started = performance.now();
  const { query, mode } = state;
  const body = { query, mode, limit: PAGE_SIZE, snippet: true, filter: filter() };
  if (append) body.cursor = answer.cursor;
  if (facetFields().length) body.facets = facetFields(); // of every page: a cursor is for one search
  try {
    const { data, timing } = await api(endpoint('search'), { body, signal: current.signal });
    if (current === pending) showAnswer(data, timing, performance.now() - started, append);
  } catch (error) {
    if (current !== pending || error.name === 'AbortError') return;
    const again = append && !(error.status >= 400 && error.status < 429); // an old cursor starts over
    showProblem(error, () => search({ append: again }), append);
  } finally {
    if (current === pending) busy(false);
  }
}

async function suggest() {
  pendingSuggest?.abort();
  const typed = state.query.trim();
  if (!typed || !collection() || document.activeElement !== el.query) return closeSuggestions();
  const current = pendingSuggest = new AbortController();
  const path = `${endpoint('suggest')}?${new URLSearchParams({ q: typed, limit: 6 })}`;
  const { data } = await api(path, current).catch(() => ({ data: { suggestions: [] } })); // only a convenience
  if (current === pendingSuggest) showSuggestions(data.suggestions.filter(({ query }) => query !== typed), typed);
}

/** Takes a change of the state: control, URL, search. */
function change(update, push = true) {
  Object.assign(state, update);
  if (push) committed = true;
  if ('query' in update || 'collection' in update) values = {};
  writeUrl(push);
  showControls();
  search();
}

function toggle(field, value) {
  const chosen = state.filters[field] ?? [];
  const { [field]: _, ...others } = state.filters;
  const next = isOn(field, value) ? chosen.filter((other) => other !== value) : [...chosen, value];
  change({ filters: next.length ? { ...others, [field]: next } : others });
}

/* What is on screen */

const label = (field) => field.charAt(0).toUpperCase() + field.slice(1).replaceAll('_', ' ');
const valueLabel = (field, value) => (attributes()[field] !== 'bool' ? value : value === 'true' ? 'yes' : 'no');
const millis = (ms) => `${ms < 1 ? ms.toFixed(2) : ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
const fold = (text) => text.normalize('NFD').replace(/\p{M}/gu, '').toLowerCase();
const toText = (value) => (Array.isArray(value) ? value.map(toText).join(', ')
  : value !== null && typeof value === 'object' ? JSON.stringify(value)
    : typeof value === 'boolean' ? (value ? 'yes' : 'no') : String(value ?? ''));

/** Text as nodes, with the words of the query (and their near forms) marked. */
function marked(text) {
  const words = (fold(state.query).match(/[\p{L}\p{N}]+/gu) ?? []).filter((word) => !COMMON.has(word));
  const near = (a, b) => a === b || (Math.min(a.length, b.length) > 3 && Math.abs(a.length - b.length) < 4
    && (a.startsWith(b) || b.startsWith(a)));
  return text.split(/([\p{L}\p{N}\p{M}]+)/u).map((part, index) => (
    index % 2 && words.some((word) => near(word, fold(part))) ? h('mark', {}, part) : part));
}

/** Runs `render`, which replaces elements, and puts the focus back on the element with the same key. */
function keepFocus(container, render) {
  const focused = container.contains(document.activeElement) ? document.activeElement : null;
  render();
  if (!focused || focused.isConnected) return;
  const next = focused.dataset.key && container.querySelector(`[data-key="${CSS.escape(focused.dataset.key)}"]`);
  (next || el.results).focus({ preventScroll: true });
}

function busy(on) {
  document.body.classList.toggle('busy', on);
  el.results.setAttribute('aria-busy', on);
}

/** Shows one view: results, none, empty, error or auth. */
function show(view) {
  clearInterval(countdown);
  for (const name of ['empty', 'none', 'error', 'auth']) $(name).hidden = name !== view;
  const found = view === 'results' || view === 'none';
  el.form.hidden = view === 'auth';
  el.status.hidden = !found;
  el.filters.hidden = !found || !el.facets.childElementCount;
  if (view === 'results') return;
  el.results.replaceChildren();
  el.more.hidden = true;
}

function showControls() {
  if (el.query.value !== state.query) el.query.value = state.query;
  el.clear.hidden = !state.query;
  el.collection.value = state.collection;
  for (const input of el.mode.querySelectorAll('input')) input.checked = input.value === state.mode;
  const pairs = Object.entries(state.filters).flatMap(([field, chosen]) => chosen.map((value) => [field, value]));
  el.filterCount.textContent = pairs.length ? `(${pairs.length})` : '';
  el.active.hidden = !pairs.length;
  keepFocus(el.active, () => el.active.replaceChildren(
    ...pairs.map(([field, value]) => {
      const text = `${label(field)}: ${valueLabel(field, value)}`;
      return h('button', { class: 'chip on', type: 'button', 'aria-label': `Remove filter ${text}`,
        data: { key: `${field}:${value}` }, click: () => toggle(field, value) }, text, ' ×');
    }),
    h('button', { class: 'link', type: 'button', click: () => change({ filters: {} }) }, 'Clear filters'),
  ));
}

function showAnswer(data, timing, roundTrip, append) {
  if (!append) answer = { shown: 0, best: Math.max(...data.hits.map(({ score }) => score), 0) };
  const start = answer.shown;
  answer.shown += data.hits.length;
  answer.cursor = data.next_cursor;
  if (data.facets) showFacets(data.facets);
  show(answer.shown ? 'results' : 'none');
  const items = data.hits.map(hit);
  if (append) el.results.append(...items);
  else keepFocus(el.results, () => el.results.replaceChildren(...items));
  if (append) items[0]?.querySelector('.title').focus();
  el.more.hidden = !answer.cursor;

  const number = (value) => value.toLocaleString('en');
  const total = data.total ?? answer.shown;
  const count = `${total > answer.shown ? `${number(answer.shown)} of ` : ''}${number(total)} ${total === 1 ? 'result' : 'results'}`;
  el.count.textContent = count;
  el.announce.textContent = answer.shown ? `${append ? `${start + 1} to ` : ''}${count} for ${state.query.trim()}` : 'Nothing found';
  el.cacheStatus.textContent = `Cache: ${data.cache.status}${data.cache.tier ? ` (${data.cache.tier})` : ''}`;
  el.cacheStatus.dataset.status = data.cache.status;
  el.cacheStatus.title = CACHE_WORDS[data.cache.status] ?? '';
  el.totalTime.textContent = `${millis(data.processing_time_ms)} on the server, ${millis(roundTrip)} in all`;
  el.degraded.hidden = !data.degraded;
  showTiming(timing);
  if (answer.shown) return;
  const filtered = Object.keys(state.filters).length > 0;
  el.noneHint.textContent = filtered ? 'No document fits both the search and the filters.' : 'Try other or fewer words.';
  el.noneActions.replaceChildren(...[
    filtered && h('button', { class: 'chip', type: 'button', click: () => change({ filters: {} }) }, 'Clear filters'),
    state.mode === 'lexical' && h('button', { class: 'chip', type: 'button', click: () => change({ mode: 'dense' }) }, 'Search by meaning'),
  ].filter(Boolean));
}

/** Reads a `Server-Timing` header into a bar and its legend. */
function showTiming(header) {
  const stages = header.split(',').map((entry) => entry.trim().split(';')).map(([name, ...rest]) => (
    { name, ms: Number(rest.find((part) => part.trim().startsWith('dur='))?.trim().slice(4)) }
  )).filter(({ name, ms }) => name in STAGES && Number.isFinite(ms));
  const total = stages.reduce((sum, { ms }) => sum + ms, 0);
  const bar = h('div', { class: 'bar', 'aria-hidden': 'true' }, ...stages.map(({ name, ms }) => {
    const part = h('i', { data: { stage: name } });
    part.style.flexGrow = 100 * ms / (total || 1); // a sum below 1 would leave a gap
    return part;
  }));
  const legend = h('ul', { 'aria-label': 'Time of each stage' }, ...stages.map(({ name, ms }) => (
    h('li', { data: { stage: name } }, `${STAGES[name]} ${millis(ms)}`))));
  el.timing.replaceChildren(...(stages.length ? [bar, legend] : []));
}

function chip(id, field, value) {
  const isBool = attributes()[field] === 'bool';
  return h('button', { class: 'chip', type: 'button', 'aria-pressed': String(isOn(field, value)),
    title: isOn(field, value) ? 'Remove this filter' : 'Show only these', 'aria-label': isBool ? null : `${label(field)}: ${value}`,
    data: { key: `${id}/${field}:${value}` }, click: () => toggle(field, value) }, isBool ? label(field) : value);
}

function hit({ id, score, document: fields, snippet }) {
  const [nameField, ...otherFields] = textFields();
  const name = toText(fields[nameField]) || id;
  const excerpt = snippet ?? toText(fields[otherFields[0] ?? nameField]);
  const full = h('div', { class: 'full', hidden: true });
  const short = h('p', { class: 'snippet' }, ...marked(excerpt));
  const title = h('button', { class: 'title', type: 'button', 'aria-expanded': 'false', data: { key: id }, click: () => open(full.hidden) },
    ...marked(name.length > 120 ? `${name.slice(0, 119)}…` : name));
  const toggler = h('button', { class: 'link', type: 'button', tabindex: '-1', click: () => open(full.hidden) }, 'Show all');
  function open(on) {
    if (on && !full.firstChild) full.append(...details(id, fields, name.length > 120 ? textFields() : otherFields));
    full.hidden = !on;
    short.hidden = on;
    title.setAttribute('aria-expanded', on);
    toggler.textContent = on ? 'Show less' : 'Show all';
  }
  const bar = h('span', { class: 'score-bar', 'aria-hidden': 'true' }, h('i'));
  bar.firstChild.style.width = `${answer.best > 0 ? Math.max(0, Math.min(1, score / answer.best)) * 100 : 0}%`;
  const chips = facetFields().flatMap((field) => [fields[field] ?? []].flat().map(String)
    .filter((value) => attributes()[field] !== 'bool' || value === 'true').map((value) => chip(id, field, value)));
  const numbers = Object.keys(attributes()).filter((field) => attributes()[field] === 'number' && fields[field] != null)
    .map((field) => h('span', { class: 'fact' }, `${label(field)}: ${fields[field]}`));
  return h('li', { data: { hitId: id } },
    h('h2', {}, title),
    h('div', { class: 'score', title: 'Score; the bar is relative to the best hit' },
      h('span', { class: 'unseen' }, 'Score '), score.toFixed(score < 0.1 ? 4 : 3), bar),
    short, full, h('div', { class: 'chips' }, ...chips, ...numbers, toggler));
}

/** The whole document: the other text fields as paragraphs, then every other field by name. */
function details(id, fields, paragraphs) {
  const rest = Object.keys(fields).filter((field) => field !== 'id' && !textFields().includes(field));
  return [
    ...paragraphs.filter((field) => fields[field] != null).map((field) => h('p', {}, ...marked(toText(fields[field])))),
    h('dl', {}, ...[...rest.map((field) => [label(field), toText(fields[field])]), ['Id', id]]
      .flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])),
  ];
}

function showFacets(facets) {
  keepFocus(el.facets, () => el.facets.replaceChildren(...facetFields().map((field) => {
    const counts = new Map((facets[field] ?? []).map(({ value, count }) => [String(value), count]));
    const known = state.filters[field] ? [...values[field] ?? [], ...state.filters[field]] : [];
    const all = [...new Set([...counts.keys(), ...known])];
    values[field] = all;
    const visible = expanded.has(field) ? all : all.filter((value, index) => index < FACET_SIZE || isOn(field, value));
    const more = h('button', { class: 'link', type: 'button', data: { key: `more ${field}` }, 'aria-expanded': String(expanded.has(field)), click: () => {
      if (!expanded.delete(field)) expanded.add(field);
      showFacets(facets);
    } }, expanded.has(field) ? 'Fewer' : `${all.length - visible.length} more`);
    return all.length ? h('fieldset', {}, h('legend', {}, label(field)), ...visible.map((value) => {
      const input = h('input', { type: 'checkbox', data: { field, value, key: `${field}:${value}` }, change: () => toggle(field, value) });
      input.checked = isOn(field, value);
      return h('label', { class: 'option' }, input, h('span', {}, valueLabel(field, value)),
        h('span', { class: 'count' }, String(counts.get(value) ?? '')));
    }), all.length > visible.length || expanded.has(field) && all.length > FACET_SIZE ? more : null) : '';
  })));
}

async function showEmpty() {
  el.announce.textContent = '';
  show('empty');
  const { name, documents } = collection();
  el.emptyTitle.textContent = `Search ${documents?.toLocaleString('en') ?? 'the'} documents in ${name}`;
  el.examples.replaceChildren();
  const { data } = await api(`${endpoint('suggest')}?q=&limit=6`).catch(() => ({ data: { suggestions: [] } }));
  if (name !== state.collection) return;
  const popular = data.suggestions.map(({ query }) => query);
  const examples = popular.length || !('muscle_groups' in attributes()) ? popular : SAMPLE_QUERIES;
  el.examples.replaceChildren(...examples.map((query) => (
    h('button', { class: 'chip', type: 'button', click: () => { change({ query }); el.query.focus(); } }, query))));
}

function showProblem(problem, retry, keepResults = false) {
  if (problem.status === 401) return askForKey(problem.detail);
  if (keepResults) el.error.hidden = false;
  else show('error');
  el.announce.textContent = '';
  el.errorTitle.textContent = problem.title || problem.message || 'Something went wrong';
  el.errorDetail.textContent = problem.detail ?? '';
  const errors = problem.errors ?? [];
  el.errorList.hidden = !errors.length;
  el.errorList.replaceChildren(...errors.map(({ path, message }) => h('li', {}, path ? `${path}: ${message}` : message)));
  el.errorId.textContent = problem.request_id ? `Request ${problem.request_id}` : '';
  let wait = problem.retryAfter ?? 0;
  clearInterval(countdown);
  const tick = () => {
    el.retry.disabled = wait > 0;
    el.retry.textContent = wait > 0 ? `Try again in ${wait} s` : 'Try again';
    if (wait-- <= 0) clearInterval(countdown);
  };
  tick();
  if (wait >= 0) countdown = setInterval(tick, 1000);
  el.retry.onclick = retry;
}

function askForKey(detail) {
  show('auth');
  closeSuggestions();
  el.announce.textContent = '';
  el.authDetail.textContent = sessionStorage.getItem(KEY) ? (detail ?? 'The server did not accept the key.') : 'This server answers only to those who have one.';
  el.apiKey.value = '';
  el.apiKey.focus();
}

/* The suggestions: a combobox whose focus stays in the text field */

const options = () => [...el.suggestions.children];

function closeSuggestions() {
  pendingSuggest?.abort();
  pendingSuggest = null;
  showSuggestions([], '');
}

function showSuggestions(suggestions, typed) {
  el.suggestions.hidden = !suggestions.length;
  el.query.setAttribute('aria-expanded', suggestions.length > 0);
  el.query.removeAttribute('aria-activedescendant');
  el.suggestions.replaceChildren(...suggestions.map(({ query, searches }, index) => {
    const starts = fold(query).startsWith(fold(typed)) && fold(typed).length === typed.length;
    const text = starts ? [query.slice(0, typed.length), h('b', {}, query.slice(typed.length))] : [query];
    return h('li', { id: `suggestion-${index}`, role: 'option', 'aria-selected': 'false', data: { query }, click: () => choose(query) },
      h('span', {}, ...text), searches ? h('span', { class: 'count' }, `${searches} ${searches === 1 ? 'search' : 'searches'}`) : null);
  }));
}

function moveSuggestion(step) {
  const list = options();
  const places = list.length + 1; // the last place is the text field itself
  const at = list.findIndex((option) => option.ariaSelected === 'true');
  const next = ((at < 0 ? list.length : at) + step + places) % places;
  list.forEach((option, index) => option.setAttribute('aria-selected', index === next));
  if (list[next]) el.query.setAttribute('aria-activedescendant', list[next].id);
  else el.query.removeAttribute('aria-activedescendant');
  list[next]?.scrollIntoView({ block: 'nearest' });
}

function choose(query) {
  closeSuggestions();
  change({ query });
}

/* Events */

el.query.addEventListener('input', () => {
  state.query = el.query.value;
  pending?.abort(); // its answer would be for the text before this change
  pending = null;
  el.clear.hidden = !state.query;
  clearTimeout(debounce);
  if (!state.query.trim()) closeSuggestions();
  debounce = setTimeout(() => {
    const push = committed; // one entry for a burst of typing
    change({ query: state.query }, push);
    committed = false;
    suggest();
  }, DEBOUNCE_MS);
});
el.query.addEventListener('keydown', (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey) return;
  const open = !el.suggestions.hidden;
  const handled = {
    ArrowDown: () => (open ? moveSuggestion(1) : event.altKey ? suggest() : moveHit(1)),
    ArrowUp: () => open && moveSuggestion(-1),
    Escape: () => (open ? closeSuggestions() : state.query && clear()),
  }[event.key];
  if (handled) { event.preventDefault(); event.stopPropagation(); handled(); }
});
el.query.addEventListener('blur', () => { closeSuggestions(); committed = true; });
el.suggestions.addEventListener('pointerdown', (event) => event.preventDefault()); // keeps the focus
el.form.addEventListener('submit', (event) => {
  event.preventDefault();
  choose(options().find((option) => option.ariaSelected === 'true')?.dataset.query ?? el.query.value);
});
el.mode.addEventListener('change', (event) => change({ mode: event.target.value }));
el.collection.addEventListener('change', () => {
  expanded = new Set();
  const mode = defaultMode(collections.find(({ name }) => name === el.collection.value)) ?? state.mode;
  el.facets.replaceChildren();
  change({ collection: el.collection.value, mode, filters: {} });
});
el.clear.addEventListener('click', clear);
el.more.addEventListener('click', () => search({ append: true }));
el.helpOpen.addEventListener('click', openHelp);
el.authForm.addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, el.apiKey.value.trim());
  start();
});
el.forget.addEventListener('click', () => { sessionStorage.removeItem(KEY); pending?.abort(); start(); });
window.addEventListener('popstate', () => { readUrl(); closeSuggestions(); committed = true; writeUrl(false); showControls(); search(); });

// Not by `autofocus`: a browser looks for that when the page is loaded, too, and complains that something
// else has the focus.
function openHelp() {
  el.help.showModal();
  el.helpTitle.focus();
}

function clear() {
  closeSuggestions();
  change({ query: '' });
  el.query.focus();
}

function moveHit(step) {
  const titles = [...el.results.querySelectorAll('.title')];
  const at = titles.findIndex((title) => title.closest('li').contains(document.activeElement));
  if (at === 0 && step < 0) el.query.focus();
  else titles[Math.max(0, Math.min(titles.length - 1, at + step))]?.focus();
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || el.help.open) return;
  if (event.target.matches('input:not([type=checkbox], [type=radio]), select, textarea')) return;
  const hitItem = event.target.closest('[data-hit-id]');
  const onHit = hitItem !== null;
  const single = { '/': () => el.query.select(), j: () => moveHit(1), k: () => moveHit(-1), '?': openHelp };
  const arrows = { ArrowDown: () => moveHit(1), ArrowUp: () => moveHit(-1) };
  const escape = () => {
    const title = hitItem?.querySelector('[aria-expanded=true]');
    if (title) { title.click(); title.focus(); } else clear();
  };
  const action = event.key === 'Escape' ? escape : (onHit && arrows[event.key]) || (el.shortcuts.checked && single[event.key]);
  if (action) { event.preventDefault(); action(); }
});
el.shortcuts.checked = localStorage.getItem('sextant-shortcuts') !== 'off';
el.shortcuts.addEventListener('change', () => localStorage.setItem('sextant-shortcuts', el.shortcuts.checked ? 'on' : 'off'));

const wide = matchMedia('(min-width: 52rem)'); // the same width as in style.css
wide.addEventListener('change', () => { el.filters.open = wide.matches; });
el.filters.open = wide.matches;

async function start() {
  busy(true);
  try {
    el.forget.hidden = !sessionStorage.getItem(KEY);
    const { data: info } = await api('/v1/info');
    el.info.textContent = [`${info.name} ${info.version}`, info.model?.model, info.device].filter(Boolean).join(' · ');
    if (info.auth_required && !sessionStorage.getItem(KEY)) return askForKey();
    collections = (await api('/v1/collections')).data.collections;
  } catch (problem) {
    return showProblem(problem, start);
  } finally {
    busy(false);
  }
  if (!collections.length) return showProblem({ title: 'No collections yet', detail: 'Create a collection and add documents to it, then try again.' }, start);
  el.collection.replaceChildren(...collections.map(({ name }) => h('option', { value: name }, name)));
  el.collectionLabel.hidden = collections.length < 2;
  const typed = el.query.value; // while the page was loading
  readUrl();
  state.query = typed || state.query;
  writeUrl(false);
  showControls();
  search();
  if (wide.matches) el.query.focus();
}

start();

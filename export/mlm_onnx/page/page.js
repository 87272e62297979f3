// The page: a sentence, its words as buttons, and the answers. The model runs in worker.js.
import { UNSPACED } from './pieces.js';

const HIDDEN_AT_FIRST = 2;
const MOST_CHARACTERS = 20000;
const MOST_COUNT = 50;
const TYPING_PAUSE = 200;
const IN_UNSPACED = new RegExp(`[${UNSPACED}]`, 'u');
const CHARACTERS = new Intl.Segmenter(undefined, { granularity: 'grapheme' });
const find = (id) => document.getElementById(id);
const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });

let facts = null; // about the model, once it is loaded
const state = { text: '', hidden: new Set(), count: 3 };
let asked = 0; // questions are numbered: only the newest is shown
let busy = false;
let waiting = null;

/** Create an element with properties and children. */
function element(name, properties = {}, ...children) {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
}

const percent = (share) => (share >= 0.0001 ? `${(share * 100).toFixed(2)} %` : '< 0.01 %');

// ---- the sentence ---------------------------------------------------------------------------------

/** Return the words of a text: the position of each, and the part to hide (commas and the like stay). */
function wordsOf(text) {
  return [...text.matchAll(/\S+/g)].flatMap(partsOf).map(({ 0: whole, index }) => {
    const [, before, core] = /^([^\p{L}\p{N}\p{M}]*)(.*?)[^\p{L}\p{N}\p{M}]*$/su.exec(whole);
    const start = core && !facts.wholeWords ? index + before.length : index;
    const word = core && !facts.wholeWords ? core : whole;
    return { whole, word, start, end: start + word.length, masked: whole.includes(facts.mask) };
  });
}

/** Return what stands between two spaces; in a script that is written without spaces, its characters. */
function partsOf({ 0: text, index }) {
  if (facts.wholeWords || !IN_UNSPACED.test(text)) return [{ 0: text, index }];
  const parts = [];
  for (const { segment, index: at } of CHARACTERS.segment(text)) {
    const alone = IN_UNSPACED.test(segment);
    if (alone || !parts.length || parts.at(-1).alone) parts.push({ 0: segment, index: index + at, alone });
    else parts.at(-1)[0] += segment;
  }
  return parts;
}

/** Return the sentence with masks for the hidden words, and for each mask its word (undefined if the mask was typed). */
function question() {
  let text = '';
  let done = 0;
  const hidden = [];
  wordsOf(state.text).forEach(({ whole, word, start, end, masked }, index) => {
    if (masked) {
      hidden.push(...Array(whole.split(facts.mask).length - 1).fill(undefined));
    } else if (state.hidden.has(index)) {
      text += state.text.slice(done, start) + facts.mask;
      done = end;
      hidden.push(word);
    }
  });
  return { text: text + state.text.slice(done), hidden };
}

function setText(text) {
  const [old, now] = [wordsOf(state.text), wordsOf(text)];
  const stays = (index) => now[index] && old[index].whole === now[index].whole;
  state.hidden = new Set([...state.hidden].filter(stays));
  state.text = text;
  showWords();
}

function toggle(index) {
  if (!state.hidden.delete(index)) state.hidden.add(index);
  find('words').children[index].setAttribute('aria-pressed', state.hidden.has(index));
  ask();
}

function showWords() {
  const words = wordsOf(state.text);
  const chips = words.map(({ whole, masked }, index) => {
    const chip = element('button', { type: 'button', textContent: whole, tabIndex: index === 0 ? 0 : -1 });
    chip.setAttribute('aria-pressed', masked || state.hidden.has(index));
    if (masked) {
      chip.setAttribute('aria-disabled', 'true');
      chip.title = 'Typed as a mask: change it in the sentence';
    } else {
      chip.onclick = () => toggle(index);
    }
    return chip;
  });
  find('words').replaceChildren(...chips);
  find('examples').value = facts.examples.includes(state.text) ? state.text : '';
}

/** Arrow keys move from word to word, so that Tab passes a long sentence in one step. */
find('words').onkeydown = (event) => {
  const chips = [...event.currentTarget.children];
  const at = chips.indexOf(document.activeElement);
  const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: chips.length - 1 };
  const next = chips[steps[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
};
find('words').addEventListener('focusin', ({ target, currentTarget }) => {
  for (const chip of currentTarget.children) chip.tabIndex = chip === target ? 0 : -1;
});

// ---- asking ---------------------------------------------------------------------------------------

function ask() {
  writeHash();
  asked += 1;
  find('results').setAttribute('aria-busy', 'true');
  const { text, hidden } = question();
  if (text.length > MOST_CHARACTERS) {
    return showProblem(`The text has ${text.length} characters; this page takes up to ${MOST_CHARACTERS}.`);
  }
  const words = wordsOf(state.text).filter(({ masked }) => !masked);
  waiting = { number: asked, text, hidden, words: words.map(({ word }) => word), count: state.count };
  send();
}

/** Ask one question at a time; one that a newer question has overtaken is never asked. */
function send() {
  if (busy || !waiting) return;
  busy = true;
  worker.postMessage(waiting);
  find('masked').textContent = waiting.text;
  waiting = null;
}

worker.onmessage = ({ data }) => {
  if (data.kind === 'progress') return showProgress(data.fraction);
  if (data.kind === 'broken') return showBroken(data.message);
  if (data.kind === 'ready') return ready(data.facts);
  busy = false;
  if (data.number === asked && data.kind === 'answer') showAnswer(data);
  if (data.number === asked && data.kind === 'problem') showProblem(data.message);
  return send();
};
worker.onerror = () => showBroken('This browser cannot run the model: it needs WebAssembly with SIMD and module workers.');

// ---- answers --------------------------------------------------------------------------------------

function showAnswer({ answer, unknown, milliseconds }) {
  const { masks, filled, isLong } = answer;
  find('answers').hidden = find('sentences').hidden = false;
  find('results').setAttribute('aria-busy', 'false');
  find('filled').replaceChildren(
    ...filled.map((part) => (part.filled ? element('mark', { textContent: part.text }) : part.text)),
  );
  find('answers').replaceChildren(...masks.map((mask, index) => card(mask, index, masks.length)));
  const notes = [];
  if (unknown.length) {
    notes.push(`Not in this model's vocabulary, so read as unknown: ${unknown.slice(0, 12).join(', ')}${unknown.length > 12 ? ' …' : ''}`);
  }
  if (isLong) notes.push(`The text is longer than the ${facts.longest} tokens the model reads at once: each mask is answered from the words around it.`);
  if (masks.length > 1) notes.push('Each word is answered on its own, while all the others are hidden too.');
  find('notes').replaceChildren(...notes.map((note) => element('li', { textContent: note })));
  const firsts = masks.slice(0, 3).map(({ candidates: [{ token, probability }] }) => `${token} ${percent(probability)}`);
  const all = masks.length === 1 ? 'The model expects' : 'First answers';
  const time = `${Math.max(1, Math.round(milliseconds))} ms`;
  showStatus(`${all}: ${firsts.join(', ')}${masks.length > 3 ? ', …' : ''} (in ${time})`);
}

function card({ candidates, original }, index, total) {
  const items = candidates.map(({ id, token, probability }) => {
    const bar = element('i');
    bar.style.setProperty('--share', `${probability * 100}%`);
    const item = element(
      'li',
      { className: id === original?.id ? 'original' : '' },
      element('span', { className: 'token', textContent: token }),
      element('span', { className: 'share', textContent: percent(probability), title: String(probability) }),
      element('span', { className: 'bar' }, bar),
    );
    item.lastChild.setAttribute('aria-hidden', 'true');
    Object.assign(item.dataset, { id, probability });
    return item;
  });
  const title = `${total > 1 ? `${index + 1}. ` : ''}${original ? `Instead of “${original.word}”` : `At ${facts.mask}`}`;
  const list = element('ol', {}, ...items);
  list.setAttribute('aria-label', `Answers ${title}`);
  const cardElement = element('div', { className: 'card' }, element('h2', { textContent: title }), list);
  if (original) cardElement.append(element('p', { className: 'note', textContent: rankOf(original) }));
  return cardElement;
}

function rankOf({ word, rank, probability, pieces }) {
  if (rank === 1) return `“${word}” itself is the first answer.`;
  if (rank) return `“${word}” itself is number ${rank}, at ${percent(probability)}.`;
  if (pieces.length) return `“${word}” is not a single token here (${pieces.join(' ')}), so it cannot be one answer.`;
  return `“${word}” is not in this model's vocabulary, so it cannot be the answer.`;
}

function showStatus(text, problem = false) {
  find('status').textContent = text;
  find('status').classList.toggle('problem', problem);
}

function showProblem(message) {
  find('answers').hidden = find('sentences').hidden = true;
  find('results').setAttribute('aria-busy', 'false');
  find('notes').replaceChildren();
  showStatus(message);
}

function showProgress(fraction) {
  find('progress').value = fraction;
  find('loading-text').textContent = fraction < 1 ? `Loading the model: ${Math.floor(fraction * 100)} %` : 'Starting the model …';
}

function showBroken(message) {
  find('loading').hidden = true;
  showStatus(message, true);
}

// ---- the address: what the page shows can be shared ------------------------------------------------

function writeHash() {
  const hidden = [...state.hidden].sort((a, b) => a - b).join(',');
  history.replaceState(null, '', `#${new URLSearchParams({ text: state.text, hide: hidden, top: state.count })}`);
}

/** Return whether the address specifies what to show. */
function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has('text')) return false;
  state.text = given.get('text').slice(0, MOST_CHARACTERS);
  const count = wordsOf(state.text).length;
  const numbers = (given.get('hide') ?? '').split(',').filter((number) => /^\d+$/.test(number));
  state.hidden = new Set(numbers.map(Number).filter((number) => number < count));
  state.count = atMost(given.get('top') ?? state.count);
  return true;
}

const atMost = (count) => Math.min(MOST_COUNT, Math.max(1, Math.floor(Number(count)) || 3));

// ---- start ----------------------------------------------------------------------------------------

function show() {
  find('sentence').value = state.text;
  find('count').value = state.count;
  showWords();
  ask();
}

/** Show an example, whole or with a mask in it. */
function start(example) {
  state.text = example;
  const words = wordsOf(example);
  const whole = words.length > 1 && !words.some(({ masked }) => masked);
  state.hidden = new Set(whole ? [Math.min(HIDDEN_AT_FIRST, words.length - 1)] : []);
  show();
}

function ready(given) {
  facts = given;
  find('loading').hidden = true;
  find('controls').disabled = false;
  const { dtype, origin, bytes, longest, examples } = facts;
  const option = (value, textContent) => element('option', { value, textContent });
  find('examples').replaceChildren(option('', 'Choose one …'), ...examples.map((example) => option(example, example)));
  find('examples-row').hidden = examples.length < 2;
  find('about').textContent =
    `Model of run ${origin.run}, step ${origin.step}: ${dtype}, ${(bytes / 1e6).toFixed(bytes < 1e6 ? 2 : 0)} MB, ` +
    `reads ${longest} tokens at once. Confidence is the model's probability among all of its vocabulary, ` +
    'which is not how often it is right.';
  find('memorised').hidden = !origin.memorised;
  find('words-label').lastElementChild.textContent = `click the ones to hide, or write ${facts.mask}`;
  document.body.dataset.ready = 'true';
  if (readHash()) show();
  else start(find('sentence').value || (examples[0] ?? '')); // keep what was typed while the model loaded
}

let typing;
find('sentence').oninput = ({ target }) => {
  if (!facts) return;
  setText(target.value);
  find('results').setAttribute('aria-busy', 'true');
  clearTimeout(typing);
  typing = setTimeout(ask, TYPING_PAUSE);
};
find('examples').onchange = ({ target }) => target.value && start(target.value);
find('count').onchange = ({ target }) => {
  state.count = atMost(target.value);
  target.value = state.count;
  ask();
};
find('show-all').onclick = () => {
  state.hidden.clear();
  showWords();
  ask();
};
find('copy-link').onclick = async ({ target }) => {
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  target.textContent = copied ? 'Copied' : 'It is in the address bar';
  setTimeout(() => (target.textContent = 'Copy link'), 2000);
};
window.onhashchange = () => facts && readHash() && show();

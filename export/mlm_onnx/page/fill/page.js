// The page: a sentence, its words as buttons, and the answers. The model runs in model.js.
import { UNSPACED } from './pieces.js';
import {
  aboutModel, connect, element, find, line, MOST_CHARACTERS, offer, setBusy, showNotes, showStatus, tooLong, TYPING_PAUSE,
} from './shell.js';

const HIDDEN_AT_FIRST = 2;
const MOST_COUNT = 50;
const IN_UNSPACED = new RegExp(`[${UNSPACED}]`, 'u');
const CHARACTERS = new Intl.Segmenter(undefined, { granularity: 'grapheme' });

let facts = null; // about the model, once it is loaded
const state = { text: '', hidden: new Set(), count: 3 };

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

const send = connect({ ready, answered: showAnswer, refused: showProblem });

function ask() {
  writeHash();
  const { text, hidden } = question();
  if (text.length > MOST_CHARACTERS) {
    send(null);
    return showProblem(tooLong(text));
  }
  const words = wordsOf(state.text).filter(({ masked }) => !masked);
  find('masked').textContent = text;
  send({ text, hidden, words: words.map(({ word }) => word), count: state.count });
}

// ---- answers --------------------------------------------------------------------------------------

function showAnswer({ masks, filled, isLong, unknown }, milliseconds) {
  find('answers').hidden = find('sentences').hidden = false;
  setBusy(false);
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
  showNotes(notes);
  const firsts = masks.slice(0, 3).map(({ candidates: [{ token, probability }] }) => `${token} ${percent(probability)}`);
  const all = masks.length === 1 ? 'The model expects' : 'First answers';
  const time = `${Math.max(1, Math.round(milliseconds))} ms`;
  showStatus(`${all}: ${firsts.join(', ')}${masks.length > 3 ? ', …' : ''} (in ${time})`);
}

function card({ candidates, original }, index, total) {
  const items = candidates.map(({ id, token, probability }) => {
    const item = line(token, probability, percent(probability));
    if (id === original?.id) item.className = 'original';
    item.dataset.id = id;
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

function showProblem(message) {
  find('answers').hidden = find('sentences').hidden = true;
  setBusy(false);
  showNotes([]);
  showStatus(message);
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
  find('controls').disabled = false;
  const { origin, examples } = facts;
  offer(examples, start);
  find('examples-row').hidden = examples.length < 2;
  find('about').textContent =
    `${aboutModel(facts)} Confidence is the model's probability among all of its vocabulary, which is not how often it is right.`;
  find('memorised').hidden = !origin.memorised;
  find('words-label').lastElementChild.textContent = `click the ones to hide, or write ${facts.mask}`;
  if (readHash()) show();
  else start(find('sentence').value || (examples[0] ?? '')); // keep what was typed while the model loaded
}

let typing;
find('sentence').oninput = ({ target }) => {
  if (!facts) return;
  setText(target.value);
  setBusy(true);
  clearTimeout(typing);
  typing = setTimeout(ask, TYPING_PAUSE);
};
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
window.onhashchange = () => facts && readHash() && show();

// The page of a fine-tuned model: its texts, and its labels as bars, its entities as coloured spans or its answer marked,
// in the words of `mlm_onnx.demo.tasks`. The model runs in model.js.
import {
  aboutModel, connect, element, find, line, MOST_CHARACTERS, offer, setBusy, showNotes, showStatus, tooLong, TYPING_PAUSE,
} from './shell.js';

const SHOWN = 20; // most labels that have a bar
const HUES = 12; // different colours of entities; types that come after these share them
const TEXT = ['Text', 'Type a text'];

const PAGES = {
  'text-classification': {
    title: 'Classify a text',
    lead: ({ labels }) => `It knows ${named(labels)}.`,
    inputs: ({ pair }) => (pair ? [['First text', 'Type a text'], ['Second text', 'Type another']] : [TEXT]),
    show: showLabels,
    cut: 'first text',
  },
  'token-classification': {
    title: 'Find what is named',
    lead: ({ labels }) => `It knows ${named(typesOf(labels))}.`,
    inputs: () => [TEXT],
    show: showEntities,
  },
  'question-answering': {
    title: 'Ask a text',
    lead: () => 'The answer is a part of the text.',
    inputs: () => [['Context', 'A text in which the answer stands'], ['Question', 'What do you want to know?']],
    show: showAnswer,
    cut: 'question',
  },
};

let facts = null; // about the model, once its manifest is there
let page = null;
let isReady = false;

const typesOf = (labels) => [...new Set(labels.filter((label) => label !== 'O').map((label) => label.slice(2)))];
const named = (labels) => (labels.length ? labels.slice(0, SHOWN).join(', ') + (labels.length > SHOWN ? ', …' : '') : 'one number');
const fields = () => [...document.querySelectorAll('#texts textarea')];
const texts = () => fields().map(({ value }) => value);

/** Return a probability in words, never rounded to 100 % or 0 %. */
function percent(probability) {
  if (probability >= 0.99995) return 'over 99.99 %';
  if (probability < 0.0001) return 'under 0.01 %';
  const share = 100 * probability;
  return `${share.toFixed(share >= 99 || share < 1 ? 2 : 1)} %`;
}

// ---- answers ---------------------------------------------------------------------------------------
// Each shows an answer and returns it as a sentence.

function showLabels({ labels, predicted, value }) {
  if (value !== undefined) {
    const number = Number(value.toPrecision(4));
    const shown = element('p', { className: 'card filled', textContent: number });
    shown.dataset.value = value;
    find('answers').replaceChildren(shown);
    return `The model says ${number}.`;
  }
  const first = predicted.join(', ') || 'none of the labels';
  const bars = labels.slice(0, SHOWN).map(({ label, probability }) => line(label, probability, percent(probability)));
  const list = element('ol', {}, ...bars);
  list.setAttribute('aria-label', 'Labels');
  find('answers').replaceChildren(element('section', { className: 'card' }, element('h2', { textContent: first }), list));
  return `The model says ${first}.`;
}

function showEntities({ entities }, [text]) {
  const [characters, types] = [[...text], typesOf(facts.labels)];
  let done = 0;
  const parts = entities.flatMap(({ label, start, end, probability }) => {
    const kind = element('span', { className: 'kind', textContent: ` ${label} ${percent(probability)}` });
    const mark = element('mark', { className: 'entity' }, characters.slice(start, end).join(''), kind);
    mark.style.setProperty('--hue', (Math.max(0, types.indexOf(label)) % HUES) * (360 / HUES));
    Object.assign(mark.dataset, { label, start, end, probability });
    const between = characters.slice(done, start).join('');
    done = end;
    return [between, mark];
  });
  find('answers').replaceChildren(element('p', { className: 'card filled' }, ...parts, characters.slice(done).join('')));
  const count = entities.length;
  return `The model finds ${count > 1 ? `${count} entities` : count ? 'one entity' : 'nothing'}.`;
}

function showAnswer({ start, end, probability }, [context]) {
  const characters = [...context];
  const answer = start === null ? '' : characters.slice(start, end).join('');
  const shown = element('p', { className: 'card filled' });
  if (start === null) shown.append(context);
  else {
    const mark = element('mark', { textContent: answer });
    Object.assign(mark.dataset, { start, end });
    shown.append(characters.slice(0, start).join(''), mark, characters.slice(end).join(''));
  }
  shown.dataset.probability = probability;
  find('answers').replaceChildren(shown);
  return start === null ? 'The model finds no answer.' : `The answer is “${answer}”, with ${percent(probability)}.`;
}

function notesOf({ labels, windows, leftOut }) {
  const notes = [];
  if (labels?.length > SHOWN) notes.push(`The ${SHOWN} likeliest of ${labels.length} labels have a bar.`);
  if (windows > 1) notes.push(`The text is longer than the ${facts.longest} tokens the model reads at once: it is read in ${windows} windows.`);
  if (leftOut) notes.push(`Left out: the last ${leftOut} tokens of the ${page.cut}, for which no window has room.`);
  return notes;
}

// ---- asking ----------------------------------------------------------------------------------------

const send = connect({ known, ready, answered, refused });
let asked = [];

function ask() {
  history.replaceState(null, '', `#${new URLSearchParams(texts().map((text, index) => [`text${index + 1}`, text]))}`);
  find('examples').value = facts.examples.includes(texts()[0]) ? texts()[0] : '';
  asked = texts();
  const long = asked.find((text) => text.length > MOST_CHARACTERS);
  if (!long && asked.every((text) => text.trim())) return send(asked);
  send(null);
  return refused(long ? tooLong(long) : asked.length === 1 ? 'Type a text first.' : 'Fill in both texts.');
}

function answered(answer, milliseconds) {
  find('answers').hidden = false;
  const said = page.show(answer, asked);
  showNotes(notesOf(answer));
  showStatus(`${said} (in ${Math.max(1, Math.round(milliseconds))} ms)`);
  setBusy(false);
}

function refused(message) {
  find('answers').hidden = true;
  showNotes([]);
  showStatus(message);
  setBusy(false);
}

// ---- start -----------------------------------------------------------------------------------------

function known(given) {
  facts = given;
  page = PAGES[facts.task];
  document.title = find('title').textContent = page.title;
  find('lead').textContent = page.lead(facts);
  let typing;
  const oninput = () => {
    if (!isReady) return;
    setBusy(true);
    clearTimeout(typing);
    typing = setTimeout(ask, TYPING_PAUSE);
  };
  page.inputs(facts).forEach(([name, placeholder], index) => {
    const [id, rows] = [`text-${index + 1}`, 2];
    find('texts').append(
      element('label', { htmlFor: id, textContent: name }),
      element('textarea', { id, rows, placeholder, oninput, spellcheck: false, autocomplete: 'off' }),
    );
  });
  offer(facts.examples, start);
  find('examples-row').hidden = facts.examples.length < 2 || fields().length > 1;
  find('about').textContent = `${aboutModel(facts)} A probability is the model's own, which is not how often it is right.`;
  fill();
}

/** Fill the texts that the address names. */
function fill() {
  const given = new URLSearchParams(location.hash.slice(1));
  fields().forEach((field, index) => {
    const text = given.get(`text${index + 1}`);
    if (text !== null) field.value = text.slice(0, MOST_CHARACTERS);
  });
}

function start(example) {
  fields()[0].value = example;
  ask();
}

function ready() {
  isReady = true;
  const none = texts().every((text) => !text);
  if (none && fields().length === 1) start(facts.examples[0] ?? '');
  else ask();
}

window.onhashchange = () => {
  if (!isReady) return;
  fill();
  ask();
};

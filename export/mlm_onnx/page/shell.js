// What the pages have in common: elements, the worker that answers, and the parts of the page around the answers.
export const MOST_CHARACTERS = 20000;
export const TYPING_PAUSE = 200;
export const find = (id) => document.getElementById(id);

/** Create an element with properties and children. */
export function element(name, properties = {}, ...children) {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
}

/** Create one line of a list of answers: its name, its probability as given in words, and a bar for it. */
export function line(name, probability, share) {
  const bar = element('i');
  bar.style.setProperty('--share', `${probability * 100}%`);
  const item = element(
    'li',
    {},
    element('span', { className: 'token', textContent: name }),
    element('span', { className: 'share', textContent: share, title: String(probability) }),
    element('span', { className: 'bar' }, bar),
  );
  item.lastChild.setAttribute('aria-hidden', 'true');
  item.dataset.probability = probability;
  return item;
}

export const tooLong = (text) => `The text has ${text.length} characters; this page takes up to ${MOST_CHARACTERS}.`;

/** Show that the newest question is being answered, or that it has been. */
export const setBusy = (busy) => find('results').setAttribute('aria-busy', busy);

export function showStatus(text, problem = false) {
  find('status').textContent = text;
  find('status').classList.toggle('problem', problem);
}

export const showNotes = (notes) =>
  find('notes').replaceChildren(...notes.map((note) => element('li', { textContent: note })));

/** Offer examples; the first choice is none of them. */
export function offer(examples, choose) {
  const option = (value, textContent) => element('option', { value, textContent });
  find('examples').replaceChildren(option('', 'Choose one …'), ...examples.map((example) => option(example, example)));
  find('examples').onchange = ({ target }) => target.value && choose(target.value);
}

export const aboutModel = ({ dtype, origin, bytes, longest }) =>
  `Model of run ${origin.run}, step ${origin.step}: ${dtype}, ${(bytes / 1e6).toFixed(bytes < 1e6 ? 2 : 0)} MB, ` +
  `reads ${longest} tokens at once.`;

find('copy-link').onclick = async ({ target }) => {
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  target.textContent = copied ? 'Copied' : 'It is in the address bar';
  setTimeout(() => (target.textContent = 'Copy link'), 2000);
};

function showProgress(fraction) {
  find('progress').value = fraction;
  find('loading-text').textContent = fraction < 1 ? `Loading the model: ${Math.floor(fraction * 100)} %` : 'Starting the model …';
}

function showBroken(message) {
  find('loading').hidden = true;
  showStatus(message, true);
}

/**
 * Start the model in its worker; return a function that asks it.
 *
 * It is asked one question at a time, and one that a newer question has overtaken is never asked. Only the newest is
 * shown, by `answered(answer, milliseconds)` or `refused(message)`. A question that is null just overtakes the others.
 */
export function connect({ known, ready, answered, refused }) {
  const worker = new Worker(new URL('./model.js', import.meta.url), { type: 'module' });
  let asked = 0;
  let busy = false;
  let waiting = null;
  const send = () => {
    if (busy || !waiting) return;
    busy = true;
    worker.postMessage(waiting);
    waiting = null;
  };
  worker.onmessage = ({ data }) => {
    if (data.kind === 'progress') return showProgress(data.fraction);
    if (data.kind === 'broken') return showBroken(data.message);
    if (data.kind === 'known') return known(data.facts);
    if (data.kind === 'ready') {
      find('loading').hidden = true;
      ready(data.facts);
      document.body.dataset.ready = 'true';
      return;
    }
    busy = false;
    if (data.number === asked && data.kind === 'answer') answered(data.answer, data.milliseconds);
    if (data.number === asked && data.kind === 'problem') refused(data.message);
    send();
  };
  worker.onerror = () => showBroken('This browser cannot run the model: it needs WebAssembly with SIMD and module workers.');
  return (question) => {
    asked += 1;
    setBusy(true);
    waiting = question && { number: asked, question };
    send();
  };
}

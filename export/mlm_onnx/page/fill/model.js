// Answers masked queries from the bundle that contains this page, as `mlm_onnx.answer.predictor` does: with the same graph
// and tokenizer.
import { factsOf, load, readManifest, run } from './bundle.js';
import { Pieces } from './pieces.js';
import { Problem } from './problem.js';
import { tokenizerOf } from './tokenizer.js';
import { serve } from './worker.js';

const GRAPHS = ['fast/fill_mask_web.onnx', 'fast/fill_mask.onnx']; // the first is int8, which is faster in WASM
const OTHER_MASKS = /\[MASK\]|<mask>|<\|mask\|>|\[mask\]|<MASK>|<extra_id_0>|_{3,}/;
const MOST_MASKS = 32;

class Model {
  constructor(manifest, { tokenizer, config, session }) {
    const { tokens, limits } = manifest;
    this.manifest = manifest;
    this.session = session;
    this.tokenizer = tokenizerOf(tokenizer, config);
    this.pieces = new Pieces(this.tokenizer, tokenizer);
    this.mask = tokens.mask;
    this.unknown = tokens.unk?.id;
    this.excluded = new Set([...tokens.special, ...tokens.unused]);
    this.longest = limits.max_length;
    this.wholeWords = tokenizer.pre_tokenizer?.type === 'WhitespaceSplit';
    const framed = this.tokenizer.encode(this.mask.text).ids;
    this.ahead = framed.indexOf(this.mask.id);
    this.behind = framed.length - 1 - this.ahead;
  }

  /** Return what the page shows about the model; `wholeWords`: commas and the like belong to the words. */
  facts() {
    return { ...factsOf(this.manifest), mask: this.mask.text, wholeWords: this.wholeWords };
  }

  async reply({ text, hidden, words, count }) {
    return { ...(await this.answer(text, hidden, count)), unknown: this.unknownAmong(words) };
  }

  /**
   * Return the likeliest tokens at each mask of a text.
   *
   * `words` has the hidden word of each mask, if known; the mask's answer then tells how likely that word is.
   */
  async answer(text, words, count) {
    const { ids, at } = this.read(text);
    const isLong = ids.length > this.longest;
    const rows = isLong ? at.map((position) => this.window(ids, position)) : [{ ids, at }];
    const everyLogits = [];
    for (const row of rows) everyLogits.push(...(await this.logits(row)));
    const before = this.before(text);
    const masks = everyLogits.map((logits, index) => this.maskAnswer(logits, words[index], before[index], count));
    const filled = this.pieces.fill(text, this.mask.text, masks.map(({ candidates }) => candidates[0].id));
    return { masks, filled, isLong };
  }

  /** Return the token ids of a text with masks, and the positions of the masks. */
  read(text) {
    const mask = this.mask.text;
    if (!text.trim()) throw new Problem('Write a sentence first.');
    if (!text.includes(mask)) {
      const other = OTHER_MASKS.exec(text);
      throw new Problem(
        other
          ? `${other[0]} is not this model's mask: write ${mask}, or click a word to hide it.`
          : 'Click a word to hide it.',
      );
    }
    if (!text.replaceAll(mask, '').trim()) throw new Problem('Every word is hidden: leave the model some to go by.');
    const ids = this.pieces.idsOf(text, this.mask);
    const at = ids.flatMap((id, position) => (id === this.mask.id ? [position] : []));
    if (at.length !== text.split(mask).length - 1) {
      throw new Problem(`The tokenizer does not recognise each ${mask}: put spaces around it.`);
    }
    if (at.length > MOST_MASKS) throw new Problem(`${at.length} words are hidden; the limit is ${MOST_MASKS}.`);
    return { ids, at };
  }

  /** Return the white space before each mask, '' at the start of the text, and '(' for any other character. */
  before(text) {
    const parts = text.split(this.mask.text).slice(0, -1);
    return parts.map((part, index) => (/\s$/.test(part) ? part.slice(-1) : part || index ? '(' : ''));
  }

  /** Return the row that asks about one position of a long text, as `mlm_onnx.answer.reader` does. */
  window(ids, position) {
    const { ahead, behind } = this;
    const room = this.longest - ahead - behind;
    const end = ids.length - behind;
    const first = Math.min(Math.max(ahead, position - Math.floor(room / 2)), Math.max(ahead, end - room));
    const seen = ids.slice(first, Math.min(first + room, end));
    return { ids: [...ids.slice(0, ahead), ...seen, ...ids.slice(end)], at: [position - first + ahead] };
  }

  /** Return the logits at some positions of a row of tokens. */
  async logits({ ids, at }) {
    const logits = await run(this.session, { input_ids: ids, positions: at });
    const size = this.manifest.vocab_size;
    return at.map((_, index) => logits.subarray(index * size, (index + 1) * size));
  }

  maskAnswer(logits, word, before, count) {
    const largest = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0);
    const probability = (id) => Math.exp(logits[id] - largest) / total;
    const candidates = this.best(logits, count).map((id) => ({
      id,
      token: this.pieces.shown(id),
      probability: probability(id),
    }));
    if (word === undefined) return { candidates };
    const pieces = this.pieces.of(word, before);
    if (pieces.length !== 1 || this.excluded.has(pieces[0])) {
      const known = pieces.length > 1 && !pieces.some((id) => this.excluded.has(id));
      return { candidates, original: { word, pieces: known ? pieces.map((id) => this.pieces.shown(id)) : [] } };
    }
    const rank = this.rank(logits, pieces[0]);
    return { candidates, original: { word, id: pieces[0], rank, probability: probability(pieces[0]) } };
  }

  /** Return the ids of the likeliest tokens, the smaller id first among equals. */
  best(logits, count) {
    const best = [];
    for (let id = 0; id < logits.length; id++) {
      if (best.length === count && !(logits[id] > logits[best[count - 1]])) continue;
      if (this.excluded.has(id)) continue;
      let index = best.length;
      while (index > 0 && logits[id] > logits[best[index - 1]]) index--;
      best.splice(index, 0, id);
      if (best.length > count) best.pop();
    }
    return best;
  }

  /** Return a token's rank among all that may be answers, 1 being the likeliest. */
  rank(logits, id) {
    let ahead = 0;
    for (let other = 0; other < logits.length; other++) {
      if (logits[other] > logits[id] && !this.excluded.has(other)) ahead++;
    }
    return ahead + 1;
  }

  /** Return the words that the model reads as unknown. */
  unknownAmong(words) {
    return [...new Set(words)].filter((word) => this.pieces.of(word).includes(this.unknown));
  }
}

serve(async (progress) => {
  const manifest = await readManifest();
  const graph = GRAPHS.find((name) => name in manifest.files);
  return new Model(manifest, await load(manifest, graph, progress));
});

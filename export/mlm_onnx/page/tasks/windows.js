// Texts → the windows of tokens that a fine-tuned model reads, laid out as `mlm_onnx.answer.windows` does.
import { inside, strip, tokensOf } from './offsets.js';
import { Problem } from './problem.js';
import { tokenizerOf } from './tokenizer.js';

export class WindowReader {
  constructor({ limits, windows, tokens }, content, config, pair) {
    this.frame = frameOf(tokenizerOf(content, config), pair);
    this.tokenizer = tokenizerOf(asText(content, tokens.unk?.text), config);
    this.overlap = windows.overlap;
    this.room = limits.max_length - this.frame.before.length - this.frame.between.length - this.frame.after.length;
    if (this.room < 2 || this.overlap >= this.room / 2) throw new Problem('Its windows leave no room for text: convert again.');
    this.unknown = content.model.type === 'Unigram' ? undefined : content.model.unk_token;
    this.marks = Boolean(content.model.continuing_subword_prefix);
  }

  tokens(text) {
    return tokensOf(this.tokenizer, text);
  }

  ids(text) {
    return this.tokens(text).map(({ id }) => id);
  }

  /** Return the windows of a text to classify, or of a pair, each with its share of the text's tokens. */
  texts(text, pair) {
    const one = this.ids(strip(text));
    if (pair === undefined) return this.shared(spread(one.length, this.room, this.overlap), (a, b) => [one.slice(a, b), []], 0);
    const two = this.ids(strip(pair));
    const { kept, parts, leftOut } = this.beside(one, two.length);
    return this.shared(parts, (a, b) => [kept, two.slice(a, b)], leftOut);
  }

  shared(parts, piece, leftOut) {
    const total = parts.reduce((sum, [a, b]) => sum + b - a, 0);
    const rows = parts.map(([a, b]) => this.row(...piece(a, b)));
    return { rows, shares: parts.map(([a, b]) => (total ? (b - a) / total : 1)), leftOut };
  }

  /** Return what every window keeps of the first text, and the windows of the second. */
  beside(one, count) {
    const half = Math.floor(this.room / 2);
    const fits = one.length + count <= this.room || one.length <= half;
    const kept = fits ? one : one.slice(0, Math.max(half, this.room - count));
    const left = this.room - kept.length;
    const parts = spread(count, left, Math.min(this.overlap, Math.floor((left - 1) / 2)));
    return { kept, parts, leftOut: one.length - kept.length };
  }

  /** Return the windows of a text to tag; a word is asked about where it is farthest from an edge. */
  words(text) {
    const tokens = this.tokens(text);
    const words = this.wordsOf([...text], tokens);
    const parts = spread(tokens.length, this.room, this.overlap);
    const homes = atHome(words, parts);
    const rows = parts.flatMap(([a, b], i) => {
      const here = homes[i];
      if (!here.length) return [];
      const ids = tokens.slice(a, b).map(({ id }) => id);
      return [{ ...this.row(ids, [], here.map(({ at }) => at - a + this.frame.before.length)), words: here }];
    });
    return { rows, words, windows: parts.length };
  }

  /** Return the first token of each word and where the word stands; white space alone is not one. */
  wordsOf(characters, tokens) {
    const words = [];
    tokens.forEach(({ name, start, end }, at) => {
      const known = name !== this.unknown;
      const goesOn = this.marks
        ? [...name].length !== end - start && known
        : start > 0 && !characters.slice(start - 1, start + 1).includes(' ') && known;
      if (goesOn && words.length) words.at(-1).end = Math.max(words.at(-1).end, end);
      else words.push({ at, start, end });
    });
    return words
      .map(({ at, start, end }) => ({ at, span: inside(characters, start, end) }))
      .filter(({ span: [start, end] }) => start < end)
      .map(({ at, span: [start, end] }) => ({ at, start, end }));
  }

  /** Return the windows of a context, each after the question; `spans` are where tokens stand in the context, or null. */
  question(question, context) {
    const [one, tokens, characters] = [this.ids(strip(question)), this.tokens(context), [...context]];
    const { kept, parts, leftOut } = this.beside(one, tokens.length);
    const spans = tokens.map(({ start, end }) => inside(characters, start, end));
    const outside = (count) => Array(count).fill(null);
    const { before, between, after } = this.frame;
    const rows = parts.map(([a, b]) => ({
      ...this.row(kept, tokens.slice(a, b).map(({ id }) => id)),
      spans: [...outside(before.length + kept.length + between.length), ...spans.slice(a, b), ...outside(after.length)],
    }));
    return { rows, leftOut };
  }

  /** Return a framed row of one text, or of two: what the graph's inputs take. */
  row(one, two, positions = []) {
    const { before, between, after, types } = this.frame;
    const ids = [...before, ...one, ...between, ...two, ...after];
    const middle = before.length + one.length;
    const typeAt = (at) => (!between.length || at < middle ? types[0] : at < middle + between.length ? types[1] : types[2]);
    return { inputs: { input_ids: ids, positions, token_type_ids: ids.map((_, at) => typeAt(at)) } };
  }
}

/** Return begin and end of windows of `room` tokens over a text, which have at least `overlap` in common. */
function spread(tokens, room, overlap) {
  if (tokens <= room) return [[0, tokens]];
  const parts = [];
  for (let start = 0; start < tokens - room; start += room - overlap) parts.push([start, start + room]);
  return [...parts, [tokens - room, tokens]];
}

/** Return the words of each window: each is in the first of those in which it is farthest from an edge. */
function atHome(words, parts) {
  const here = parts.map(() => []);
  let first = 0; // of the windows that hold the word
  for (const word of words) {
    while (parts[first][1] <= word.at) first++;
    let home = first;
    for (let i = first + 1; i < parts.length && parts[i][0] <= word.at; i++) {
      if (distance(word.at, parts, i) > distance(word.at, parts, home)) home = i;
    }
    here[home].push(word);
  }
  return here;
}

/** Return how far a token of a window is from the nearest of its edges that are not those of the text. */
function distance(at, parts, i) {
  const [a, b] = parts[i];
  return Math.min(i ? at - a : Infinity, i < parts.length - 1 ? b - 1 - at : Infinity);
}

/** Return the special tokens that the tokenizer puts around a text, or around each of a pair, and the token types. */
function frameOf(tokenizer, pair) {
  for (const word of ['a', 'A', '1', '.']) {
    const inner = tokenizer.encode(word, { add_special_tokens: false }).ids;
    const found = tokenizer.encode(word, { text_pair: pair ? word : null, return_token_type_ids: true });
    const types = found.token_type_ids ?? found.ids.map(() => 0);
    const isHere = (_, at) => inner.every((id, k) => found.ids[at + k] === id);
    const [first, last] = [found.ids.findIndex(isHere), found.ids.findLastIndex(isHere)];
    if (!inner.length || first < 0 || (pair && first === last)) continue;
    const after = found.ids.slice(last + inner.length);
    const between = pair ? found.ids.slice(first + inner.length, last) : [];
    return { before: found.ids.slice(0, first), between, after, types: [types[0], types[last - 1] ?? 0, types[last]] };
  }
  throw new Problem('The tokenizer reads no plain text.');
}

/** Return a tokenizer.json that reads the names of special tokens in a text as text, except the unknown one. */
function asText(content, unknown) {
  const { model, added_tokens: added } = content;
  const listed = Array.isArray(model.vocab);
  const kept = [unknown, model.unk_token, listed ? model.vocab[model.unk_id]?.[0] : undefined];
  const special = new Set(added.flatMap(({ special, content: name }) => (special && !kept.includes(name) ? [name] : [])));
  const renamed = (name) => (special.has(name) ? `\uffff${name}` : name);
  const vocab = listed
    ? model.vocab.map(([piece, score]) => [renamed(piece), score])
    : Object.fromEntries(Object.entries(model.vocab).map(([piece, id]) => [renamed(piece), id]));
  const makes = (merge) => {
    const pair = Array.isArray(merge) ? merge : merge.split(' ');
    return [...pair, pair.join('')].some((name) => special.has(name));
  };
  const merges = model.merges?.filter((merge) => !makes(merge));
  return {
    ...content,
    added_tokens: added.map((token) => ({ ...token, content: renamed(token.content) })),
    model: { ...model, vocab, ...(merges && { merges }) },
  };
}

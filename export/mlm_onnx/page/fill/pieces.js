// Vocabulary pieces as people write them, as `mlm_onnx.answer.pieces` reads them: through the tokenizer's own decoder.
const ANCHOR = 'x'; // what a piece is decoded after, so that the space before it shows
const CLOSE = 64; // characters before a mask that decide whether a piece needs a space there
const LETTER = 'a';
// scripts written without spaces, as `mlm_onnx.answer.words` lists them
export const UNSPACED = String.raw`\u0E00-\u0FFF\u1000-\u109F\u1780-\u17FF\u2E80-\u2FDF\u3005-\u3007\u3040-\u30FF\u31F0-\u31FF\uFF66-\uFF9F\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\u{20000}-\u{3FFFF}`;
const WORD = new RegExp(`^(?![${UNSPACED}])[\\p{L}\\p{N}\\p{M}_\\u200C\\u200D]$`, 'u');

const first = (text) => [...text.slice(0, 2)][0] ?? '';
const last = (text) => [...text.slice(-2)].at(-1) ?? '';
const isWord = (character) => WORD.test(character);

export class Pieces {
  constructor(tokenizer, { decoder, model, added_tokens }) {
    this.tokenizer = tokenizer;
    if (decoder?.type === 'WordPiece') tokenizer.decoder.cleanup = false;
    this.suffix = model.end_of_word_suffix || (decoder?.type === 'BPEDecoder' && decoder.suffix) || '';
    this.added = new Map(added_tokens.map(({ id, content }) => [id, content]));
    this.apart = Boolean(this.suffix) || this.decode([ANCHOR, ANCHOR]) === `${ANCHOR} ${ANCHOR}`;
  }

  /** Return the text of pieces, with the decoder of the tokenizer. */
  decode(pieces) {
    return this.tokenizer.decoder ? this.tokenizer.decoder(pieces) : pieces.join(' ');
  }

  raw(id) {
    return this.tokenizer.id_to_token(id) ?? '';
  }

  /** Return what a piece adds to a text: its characters, and how they go with the words beside it. */
  read(id) {
    const added = this.added.get(id);
    if (added !== undefined) {
      return { surface: added.replace(/^ /, ''), spaced: added.startsWith(' '), joins: false, ends: true };
    }
    const raw = this.raw(id);
    const ends = raw.endsWith(this.suffix);
    const text = this.decode([ANCHOR, ends ? raw.slice(0, raw.length - this.suffix.length) : raw]).slice(ANCHOR.length);
    if (this.suffix) return { surface: text, spaced: false, joins: false, ends };
    const marked = text.startsWith(' ');
    return { surface: text.replace(/^ /, ''), spaced: marked && !this.apart, joins: !marked, ends: true };
  }

  /** Return the characters that a piece stands for, without the space before or after a word. */
  surface(id) {
    return this.read(id).surface;
  }

  /** Return a piece as answers show it: its surface, but WordPiece keeps its ##, which marks endings. */
  shown(id) {
    const kept = this.apart && !this.suffix && !this.added.has(id);
    const shown = kept ? this.raw(id) : this.surface(id) || ' ';
    return shown.replace(/\p{Cc}/gu, (character) => JSON.stringify(character).slice(1, -1));
  }

  ids(text) {
    return text ? this.tokenizer.encode(text, { add_special_tokens: false }).ids : [];
  }

  /** Return the pieces of a word in a sentence, one piece if there is any way to write it as one. */
  of(word, before = ' ') {
    let found = [];
    for (const ids of this.forms(word, before)) {
      if (ids.length === 1) return ids;
      if (!found.length) found = ids;
    }
    const id = this.tokenizer.token_to_id(word);
    const surface = id === undefined ? '' : this.surface(id);
    return surface && (word.endsWith(surface) || word.startsWith(surface)) ? [id] : found;
  }

  /** Return the ids of a word where it stands, after a space, after other characters, and at the start. */
  forms(word, before) {
    const bare = word.trim();
    if (!bare) return [];
    const places = word[0] === ' ' && !this.apart ? [' '] : [...new Set([before, ' ', '(', ''])];
    return places.flatMap((place) => {
      const lead = place && !place.trim() ? ANCHOR + place : place;
      const both = this.ids(lead + bare);
      // a space is part of the word after it; a line end is a token of its own, or as good as a space
      for (const ahead of [lead.replace(/ +$/, ''), lead.trim()]) {
        const alone = this.ids(ahead);
        const begins = alone.every((id, index) => id === both[index]);
        if (begins && this.isRead(ahead, alone)) return [both.slice(alone.length)];
      }
      return [];
    });
  }

  /** Return whether the tokens before a word end with what stands there; an unknown one may hold more. */
  isRead(ahead, ids) {
    return !ahead || ahead === ANCHOR || this.decode([ANCHOR, this.raw(ids.at(-1))]).endsWith(ahead.at(-1));
  }

  /** Return the framed ids of a text, those before its masks as `mlm_onnx.answer.reader` makes them. */
  idsOf(text, mask) {
    const layout = this.strips(mask.id) ? layoutBefore(text, mask.text) : [];
    const { ids } = this.tokenizer.encode(text);
    if (!layout.some(Boolean)) return ids;
    const parts = text.split(mask.text);
    const longer = parts.slice(1).reduce((all, part, index) => all + (layout[index] ? LETTER : '') + mask.text + part, parts[0]);
    const found = this.tokenizer.encode(longer).ids;
    const masks = found.flatMap((id, position) => (id === mask.id ? [position] : []));
    if (masks.length !== layout.length) return ids;
    const spaced = this.ids(`${LETTER} ${LETTER}`).slice(this.ids(LETTER).length);
    const dropped = new Set();
    masks.forEach((at, index) => {
      const before = found.slice(Math.max(0, at - spaced.length), at);
      const count = before.length === spaced.length && before.every((id, i) => id === spaced[i]) ? spaced.length : 1;
      for (let i = 1; layout[index] && i <= count; i++) dropped.add(at - i);
    });
    return found.filter((_, position) => !dropped.has(position));
  }

  /** Return whether a mask takes the white space before it. */
  strips(id) {
    return this.tokenizer.get_added_tokens_decoder().get(id)?.lstrip ?? false;
  }

  /** Return a text with pieces for its masks, as a list of { text, filled }; at most one space beside each changes. */
  fill(text, mask, ids) {
    const betweens = text.split(mask);
    const parts = [];
    betweens.forEach((between, index) => {
      if (index > 0) parts.push({ text: this.surface(ids[index - 1]), filled: true });
      const before = index > 0 ? this.read(ids[index - 1]) : null;
      const next = index < ids.length ? this.read(ids[index]) : null;
      let plain = between;
      if (before && before.ends && this.suffix && isWord(first(plain)) && isWord(last(before.surface))) plain = ` ${plain}`;
      if (before && !before.ends && (/^ \S/.test(plain) || (next && plain === ' '))) plain = plain.slice(1);
      const previous = plain ? null : before;
      if (next) plain = this.left(plain, parts.map((part) => part.text).join(''), previous, next, ids[index], mask);
      if (plain) parts.push({ text: plain, filled: false });
    });
    return parts;
  }

  /** Return what stands before a mask, as it is once the mask is filled. */
  left(plain, filled, previous, piece, id, mask) {
    const ahead = filled + plain;
    if (piece.joins) {
      const one = / $/.test(plain) && !/\s.$/.test(plain) && ahead.length > 1;
      return one && this.joinable(mask) ? plain.slice(0, -1) : plain;
    }
    if (piece.spaced) {
      const spaceIsToken = ahead.endsWith(' ') && !piece.surface && !this.joinable(mask);
      const stays = !ahead || ahead.endsWith(' ') || (/\s$/.test(ahead) && !/^\s/.test(piece.surface));
      return stays && !spaceIsToken ? plain : `${plain} `;
    }
    if (!isWord(last(ahead)) || !isWord(first(piece.surface))) return plain;
    const told = previous && this.suffix ? !previous.ends : this.reads(ahead, piece.surface, id);
    return !told ? `${plain} ` : plain;
  }

  /** Return whether the space before a mask is not a token of its own. */
  joinable(mask) {
    const [spaced, glued] = [this.ids(`${ANCHOR} ${mask}`), this.ids(`${ANCHOR}${mask}`)];
    return spaced.length === glued.length;
  }

  /** Return whether the tokenizer finds the piece directly after what stands before it. */
  reads(before, surface, id) {
    return this.ids(before.slice(-CLOSE).split(/\s+/).at(-1) + surface).at(-1) === id;
  }
}

/** Return for each mask whether line ends or indentation stand before it, not just a space. */
function layoutBefore(text, mask) {
  const parts = text.split(mask);
  return parts.slice(0, -1).map((part, index) => {
    const run = part.slice(part.trimEnd().length);
    return /[^ ]/.test(run) || (index === 0 && run.length === part.length && run.length > 1);
  });
}

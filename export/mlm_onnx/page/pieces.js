// Vocabulary pieces as people write them, as `mlm_onnx.answer.pieces` does.
const SPACE = { ByteLevel: 'Ġ', Metaspace: '▁' };

export class Pieces {
  constructor(tokenizer, { decoder, model }) {
    this.tokenizer = tokenizer;
    this.space = SPACE[decoder?.type] ?? '';
    this.continues = !this.space && model.type === 'WordPiece' ? model.continuing_subword_prefix : '';
  }

  raw(id) {
    return this.tokenizer.id_to_token(id) ?? '';
  }

  beginsWord(id) {
    const raw = this.raw(id);
    if (this.space) return raw.startsWith(this.space);
    return !(this.continues && raw.startsWith(this.continues));
  }

  /** Return the characters that a piece stands for, without the space before a word. */
  surface(id) {
    const raw = this.raw(id);
    if (this.space) return this.tokenizer.decode([id], { clean_up_tokenization_spaces: false }).trim() || raw;
    return this.beginsWord(id) ? raw : raw.slice(this.continues.length);
  }

  /** Return a piece as answers show it: its surface, but WordPiece keeps its ##, which marks endings. */
  shown(id) {
    return this.continues ? this.raw(id) : this.surface(id);
  }

  /** Return the pieces of a word inside a sentence. */
  of(word) {
    const spaced = this.space === SPACE.ByteLevel ? ` ${word}` : word;
    return this.tokenizer.encode(spaced, { add_special_tokens: false }).ids;
  }

  /** Return a text with pieces for its masks, as a list of { text, filled }; a continuation joins the previous word. */
  fill(text, mask, ids) {
    const parts = [];
    text.split(mask).forEach((between, index) => {
      if (index > 0) parts.push({ text: this.surface(ids[index - 1]), filled: true });
      let plain = between;
      if (index < ids.length && !this.beginsWord(ids[index])) plain = plain.trimEnd();
      else if (index < ids.length && this.space && (plain || index) && !/\s$/.test(plain)) plain += ' ';
      if (plain) parts.push({ text: plain, filled: false });
    });
    return parts;
  }
}

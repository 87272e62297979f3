// Hugging Face's tokenizer in JavaScript, made to read as the one in Rust does.
import { Tokenizer } from './tokenizers.js';

const WORDS = { type: 'Split', pattern: { Regex: String.raw`[\w\u200C\u200D]+|[^\w\s\u200C\u200D]+` }, behavior: 'Removed', invert: true };
const INSIDE = String.raw`[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]`;
const [ENDS_INSIDE, BEGINS_INSIDE] = [new RegExp(`${INSIDE}$`, 'u'), new RegExp(`^${INSIDE}`, 'u')];

/** Return the tokenizer of a tokenizer.json and a tokenizer_config.json. */
export function tokenizerOf(content, config) {
  const tokenizer = new Tokenizer(inItsTerms(content), config);
  findWholeWords(tokenizer);
  return tokenizer;
}

/**
 * Return a tokenizer.json in terms that the library knows: it cuts on both sides wherever a text is split, and its words
 * have only ASCII's letters.
 */
function inItsTerms(tokenizer) {
  const cut = (step) => {
    if (step?.type === 'Sequence') return { ...step, pretokenizers: step.pretokenizers.map(cut) };
    if (step?.type === 'Whitespace') return WORDS;
    const look = { MergedWithNext: '?=', MergedWithPrevious: '?<=' }[step?.behavior];
    if (step?.type !== 'Split' || !look || step.pattern.String === undefined) return step;
    const literal = step.pattern.String.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&');
    return { ...step, pattern: { Regex: `(${look}${literal})` }, behavior: 'Removed' };
  };
  return { ...tokenizer, pre_tokenizer: cut(tokenizer.pre_tokenizer) };
}

/** Let the library find words that were added whole only where they are whole, as the tokenizer itself does. */
function findWholeWords(tokenizer) {
  for (const name of ['splitter_unnormalized', 'splitter_normalized']) {
    const all = tokenizer[name];
    const split = (text) => {
      const parts = [];
      const found = all.split(text);
      found.forEach((part, index) => {
        const before = parts.at(-1)?.text ?? '';
        const token = tokenizer.added_tokens_map.get(part);
        const glued = ENDS_INSIDE.test(before) || BEGINS_INSIDE.test(found.slice(index + 1).find(Boolean) ?? '');
        const plain = !token || (token.single_word && glued);
        if (plain && parts.at(-1)?.plain) parts.at(-1).text += part;
        else parts.push({ text: part, plain });
      });
      return parts.map((part) => part.text);
    };
    tokenizer[name] = { split };
  }
}

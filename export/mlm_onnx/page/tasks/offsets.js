// Tokens with the part of the text that each stands for, which the library does not tell: a text is followed through the
// tokenizer's own steps, and offsets are those of Hugging Face's tokenizers in Rust.
//
// A followed text is { text, starts, ends }: for each UTF-16 unit, which code points of the original it stands for.
const GRAPHEMES = new Intl.Segmenter(undefined, { granularity: 'grapheme' });
const SPACE = /(?!\ufeff)[\s\x1c-\x1f\x85]/; // what Python takes for white space
const BYTE = /^<0x[0-9A-F]{2}>$/;
const UTF8 = new TextEncoder();
const FARTHEST = 64; // units that a step adds or removes in one place, at most

/** Return { id, name, start, end } of each token of a text, without the frame; offsets count code points. */
export function tokensOf(tokenizer, text) {
  const { added_tokens_map: added, normalizer, pre_tokenizer: cutter, model } = tokenizer;
  const found = [];
  const take = ({ token, text: name, starts, ends }) =>
    found.push({ id: added.get(token).id, name, start: starts[0], end: ends.at(-1) });
  for (const section of sections(added, tokenizer.splitter_unnormalized, whole(text))) {
    if (added.has(section.token)) {
      take(section);
      continue;
    }
    const normal = stepsOf(normalizer, 'normalizers').reduce(normalised, section);
    for (const part of sections(added, tokenizer.splitter_normalized, normal)) {
      if (added.has(part.token)) {
        take(part);
        continue;
      }
      const options = { section_index: part.starts[0] };
      const pieces = stepsOf(cutter, 'tokenizers').reduce((all, step) => all.flatMap((each) => cut(each, step, options)), [part]);
      for (const piece of pieces) for (const token of read(model, piece)) found.push(token);
    }
  }
  return found;
}

/** Return a text without white space at its ends, as Python has it. */
export function strip(text) {
  const [from, to] = inside([...text], 0, [...text].length);
  return [...text].slice(from, to).join('');
}

/** Return the ends of text[start:end] without the white space at its ends; `characters` are the code points. */
export function inside(characters, start, end) {
  let [from, to] = [start, end];
  while (from < end && SPACE.test(characters[from])) from++;
  while (to > from && SPACE.test(characters[to - 1])) to--;
  return [from, to];
}

// ---- following a text ------------------------------------------------------------------------------

function whole(text) {
  const [starts, ends] = [[], []];
  [...text].forEach((character, at) => {
    for (let unit = 0; unit < character.length; unit++) {
      starts.push(at);
      ends.push(at + 1);
    }
  });
  return { text, starts, ends };
}

const part = ({ text, starts, ends }, from, to) => ({
  text: text.slice(from, to), starts: starts.slice(from, to), ends: ends.slice(from, to),
});

/** Return the steps of a part of a tokenizer, however deep they are nested. */
const stepsOf = (step, inner) => (!step ? [] : step[inner] ? step[inner].flatMap((each) => stepsOf(each, inner)) : [step]);

/** Cut a text at added tokens, which have the white space beside them that they take. */
function sections(added, splitter, followed) {
  let at = 0;
  const parts = splitter.split(followed.text).map((token) => ({ token, from: at, to: (at += token.length) }));
  parts.forEach(({ token }, index) => {
    const [before, after] = [parts[index - 1], parts[index + 1]];
    const { lstrip, rstrip } = added.get(token) ?? {};
    if (lstrip && before) before.to = parts[index].from = before.from + followed.text.slice(before.from, before.to).trimEnd().length;
    if (rstrip && after) after.from = parts[index].to = after.to - followed.text.slice(after.from, after.to).trimStart().length;
  });
  return parts.filter(({ from, to }) => from < to).map(({ token, from, to }) => ({ ...part(followed, from, to), token }));
}

/** Return what a normalizer makes of a text, one character or grapheme at a time where that gives the same. */
function normalised(followed, step) {
  const after = step(followed.text);
  if (after === followed.text) return followed;
  if (step.pattern) return replaced(followed, step.pattern, step.config.content ?? '');
  const built = { text: '', starts: [], ends: [] };
  for (const { segment, index } of GRAPHEMES.segment(followed.text)) {
    const characters = [...segment];
    const together = step(segment);
    const each = characters.map((character) => step(character));
    const apart = each.join('') === together;
    let from = index;
    const origins = characters.map((character) => (from += character.length) - character.length);
    const made = apart ? each : [...together];
    let kept = 0; // characters at the end that stay as they are
    while (!apart && kept < Math.min(made.length, characters.length) && made.at(-1 - kept) === characters.at(-1 - kept)) kept++;
    made.forEach((text, k) => {
      const last = Math.max(0, characters.length - 1 - (k < made.length - kept ? kept : made.length - 1 - k));
      const origin = origins[k < made.length - kept ? Math.min(k, last) : last];
      for (let unit = 0; unit < text.length; unit++) {
        built.starts.push(followed.starts[origin]);
        built.ends.push(followed.ends[origin]);
      }
    });
    built.text += together;
  }
  // of the same length: the library looks at the letters around, as at the end of a Greek word, but Rust does not
  return built.text.length === after.length ? built : aligned(built, after);
}

/** Return a text with its matches replaced; what replaces one stands for its last character. */
function replaced(followed, pattern, content) {
  const built = { text: '', starts: [], ends: [] };
  const add = (text, { starts, ends }) => {
    built.text += text;
    starts.forEach((start, at) => {
      built.starts.push(start);
      built.ends.push(ends[at]);
    });
  };
  const last = (at) => ({ starts: Array(content.length).fill(followed.starts[at]), ends: Array(content.length).fill(followed.ends[at]) });
  let done = 0;
  for (const { 0: match, index } of followed.text.matchAll(pattern)) {
    const between = part(followed, done, index);
    add(between.text, between);
    done = index + match.length;
    add(content, last(Math.max(0, done - 1)));
  }
  const rest = part(followed, done);
  add(rest.text, rest);
  return built;
}

/** Cut a text as a step of the pre-tokenizer does. */
function cut(followed, step, options) {
  const texts = step.pre_tokenize_text(followed.text, options);
  const source = step.byte_encoder ? inBytes(followed, step.byte_encoder) : followed;
  const mark = step.str_rep?.length === 1 ? step.str_rep : ' ';
  const after = aligned({ ...source, text: source.text.replaceAll(' ', mark) }, texts.join(''));
  let at = 0;
  return texts.map((text) => part(after, at, (at += text.length)));
}

/** Return a text as one letter for each of its bytes. */
function inBytes({ text, starts, ends }, letters) {
  const made = { text: '', starts: [], ends: [] };
  let at = 0;
  for (const character of text) {
    for (const byte of UTF8.encode(character)) {
      made.text += letters[byte];
      made.starts.push(starts[at]);
      made.ends.push(ends[at]);
    }
    at += character.length;
  }
  return made;
}

/**
 * Return the followed text `before` as `after`, which differs by characters that were removed, added or replaced.
 *
 * They are compared from the end: what is added at the beginning stands for the first character.
 */
function aligned(before, after) {
  if (before.text === after) return before;
  const origins = [];
  let at = before.text.length - 1;
  for (let from = after.length - 1; from >= 0; ) {
    const [gone, come] = nearest(before.text, at, after, from);
    for (let k = 0; k < come; k++) origins.push(Math.max(0, at - Math.min(k, Math.max(0, gone - 1))));
    [at, from] = [at - gone, from - come];
    if (from >= 0) origins.push(at--);
    from--;
  }
  origins.reverse();
  return { text: after, starts: origins.map((at) => before.starts[at]), ends: origins.map((at) => before.ends[at]) };
}

/** Return how many units are passed in both texts, backwards, until they agree again; all that is left if they do not. */
function nearest(before, at, after, from) {
  for (let both = 0; both <= Math.min(FARTHEST, at + from + 1); both++) {
    for (let gone = both; gone >= 0; gone--) {
      const [here, there] = [at - gone, from - both + gone];
      if (here >= 0 && there >= 0 && before[here] === after[there]) return [gone, both - gone];
    }
  }
  return [at + 1, from + 1];
}

// ---- the model of the tokenizer ---------------------------------------------------------------------

/** Return the tokens of a piece that the pre-tokenizer has cut. */
function read(model, piece) {
  const { text } = piece;
  const names = model([text]);
  const ids = names.map((name) => model.tokens_to_ids.get(name) ?? model.unk_token_id);
  const surfaces = names.map((name, index) => surfaceOf(model, name, index, names.length));
  let at = 0;
  let left = 0; // bytes of a character whose tokens are still to come
  return names.map((name, index) => {
    const surface = surfaces[index];
    let [from, to] = [at, text.length];
    if (text.startsWith(surface, at)) to = at + surface.length;
    else if (BYTE.test(name)) {
      const character = String.fromCodePoint(text.codePointAt(at));
      left = (left || UTF8.encode(character).length) - 1;
      to = at + character.length;
    } else if (ids[index] !== model.unk_token_id) {
      from = Math.max(at, text.indexOf(surface, at)); // characters before it have no token
      to = from + surface.length;
    } else if (index < names.length - 1) {
      const next = model.fuse_unk ? text.indexOf(surfaces[index + 1], at + 1) : -1;
      to = next > at ? next : at + String.fromCodePoint(text.codePointAt(at)).length;
    }
    if (!left) at = to;
    const unknown = ids[index] === model.unk_token_id;
    return {
      id: ids[index],
      name: unknown && typeof model.config.unk_token === 'string' ? model.config.unk_token : name,
      start: piece.starts[from],
      end: piece.ends[to - 1],
    };
  });
}

/** Return the characters of a token, without the marks of its place in a word. */
function surfaceOf({ config, end_of_word_suffix: suffix }, name, index, count) {
  const prefix = index > 0 && config.continuing_subword_prefix;
  const bare = prefix && name.startsWith(prefix) ? name.slice(prefix.length) : name;
  return suffix && index === count - 1 && bare.endsWith(suffix) ? bare.slice(0, -suffix.length) : bare;
}

// Reads {kind: {tokenizer, manifest, texts}} and prints the windows that the page's windows.js lays out for them.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [, , folder, questions] = process.argv;
const { WindowReader } = await import(pathToFileURL(`${folder}/windows.js`));

const answers = {};
for (const [kind, { tokenizer, manifest, texts }] of Object.entries(JSON.parse(readFileSync(questions, 'utf8')))) {
  const config = { unk_token: tokenizer.model.unk_token };
  const [alone, paired] = [false, true].map((pair) => new WindowReader(manifest, tokenizer, config, pair));
  const pairs = texts.map((text, at) => [text, texts[(at + 1) % texts.length]]);
  answers[kind] = {
    frames: [alone.frame, paired.frame],
    texts: texts.map((text) => alone.texts(text)),
    pairs: pairs.map(([one, other]) => paired.texts(one, other)),
    words: texts.map((text) => alone.words(text)),
    questions: pairs.map(([question, context]) => paired.question(question, context)),
  };
}
const { tokenizer, manifest } = JSON.parse(readFileSync(questions, 'utf8')).wordpiece;
const reader = new WindowReader(manifest, tokenizer, { unk_token: tokenizer.model.unk_token }, false);
answers.long = reader.words('the '.repeat(150_000)).words.length;
console.log(JSON.stringify(answers));

// Answers with a fine-tuned model from the bundle that contains this page, as `Classify`, `Tag` and `Answer` do in Python.
import { bestAnswer, classified, entitiesOf } from './answers.js';
import { factsOf, load, readManifest, run } from './bundle.js';
import { WindowReader } from './windows.js';
import { serve } from './worker.js';

const GRAPHS = {
  'text-classification': 'fast/classify.onnx',
  'token-classification': 'fast/tag.onnx',
  'question-answering': 'fast/answer.onnx',
};

class Model {
  constructor(manifest, { tokenizer, config, session }) {
    this.manifest = manifest;
    this.session = session;
    this.inputs = manifest.graphs[GRAPHS[manifest.task]].inputs.map(({ name }) => name);
    this.pair = manifest.pair || manifest.task === 'question-answering';
    this.reader = new WindowReader(manifest, tokenizer, config, this.pair);
  }

  /** Return the answer, how many windows were read, and how many tokens of the first text were left out. */
  async reply(texts) {
    const { task, labels, problem, answers } = this.manifest;
    if (task === 'text-classification') {
      const { rows, shares, leftOut } = this.reader.texts(...texts);
      const logits = Array(labels.length || 1).fill(0);
      for (const [index, row] of rows.entries()) {
        (await this.logits(row)).forEach((logit, label) => (logits[label] += logit * shares[index]));
      }
      return { ...classified(logits, labels, problem), windows: rows.length, leftOut };
    }
    if (task === 'token-classification') {
      const { rows, words, windows } = this.reader.words(texts[0]);
      const byWord = new Map();
      for (const row of rows) {
        const logits = await this.logits(row);
        row.words.forEach((word, k) => byWord.set(word, logits.subarray(k * labels.length, (k + 1) * labels.length)));
      }
      return { entities: entitiesOf(words, words.map((word) => byWord.get(word)), labels), windows, leftOut: 0 };
    }
    const [context, question] = texts;
    const { rows, leftOut } = this.reader.question(question, context);
    for (const row of rows) row.logits = await this.logits(row);
    return { ...bestAnswer(rows, answers.max_tokens, answers.no_answer), windows: rows.length, leftOut };
  }

  /** Run the graph on a row. */
  logits({ inputs }) {
    return run(this.session, Object.fromEntries(this.inputs.map((name) => [name, inputs[name]])));
  }
}

serve(async (progress, known) => {
  const manifest = await readManifest();
  const { task, labels, pair } = manifest;
  known({ ...factsOf(manifest), task, labels, pair });
  return new Model(manifest, await load(manifest, GRAPHS[task], progress));
});

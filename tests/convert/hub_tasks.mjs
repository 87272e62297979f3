// Answers with npm's @huggingface/transformers from the bundle of a fine-tuned run, as it is; JSON on stdout.
// node hub_tasks.mjs NODE_MODULES TASK BUNDLE TEXTS   (JSON)
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [modules, task, bundle, texts] = process.argv.slice(2);
const require = createRequire(`${modules}/here.js`);
const { pipeline, env } = await import(pathToFileURL(require.resolve('@huggingface/transformers')));
env.allowRemoteModels = false;
env.localModelPath = '/';
const ask = await pipeline(task, bundle, { dtype: 'fp32' });
const found = [];
for (const text of JSON.parse(texts)) {
  if (task === 'question-answering') found.push(await ask(text[0], text[1]));
  else found.push(await ask(text, task === 'text-classification' ? { top_k: null } : {}));
}
process.stdout.write(JSON.stringify(found) + '\n', () => process.exit(0));

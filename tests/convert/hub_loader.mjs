// Answers with npm's @huggingface/transformers, and with onnxruntime-web's WASM, from a bundle as it is; JSON on stdout.
// node hub_loader.mjs NODE_MODULES BUNDLE TEXTS FEEDS   (the last two are JSON)
import { createRequire } from 'node:module';
import { readFile } from 'node:fs/promises';
import { pathToFileURL } from 'node:url';

const [modules, bundle, texts, feeds] = process.argv.slice(2);
const require = createRequire(`${modules}/here.js`);
const load = (name) => import(pathToFileURL(require.resolve(name)));

const { pipeline, env } = await load('@huggingface/transformers');
env.allowRemoteModels = false;
env.localModelPath = '/';
const answers = {};
for (const dtype of ['fp32', 'q8']) {
  const fill = await pipeline('fill-mask', bundle, { dtype });
  answers[dtype] = (await fill(JSON.parse(texts), { top_k: 5 })).map((candidates) =>
    candidates.map(({ token, score }) => [token, score]),
  );
}

const ort = await load('onnxruntime-web');
const web = ort.InferenceSession ? ort : ort.default;
web.env.wasm.numThreads = 1;
const wasm = {};
for (const name of ['model', 'model_quantized']) {
  const graph = new Uint8Array(await readFile(`${bundle}/onnx/${name}.onnx`));
  const session = await web.InferenceSession.create(graph, { executionProviders: ['wasm'] });
  const inputs = {};
  for (const [key, rows] of Object.entries(JSON.parse(feeds))) {
    const flat = BigInt64Array.from(rows.flat().map(BigInt));
    inputs[key] = new web.Tensor('int64', flat, [rows.length, rows[0].length]);
  }
  wasm[name] = Array.from((await session.run(inputs)).logits.data);
}
process.stdout.write(JSON.stringify({ answers, wasm }) + '\n', () => process.exit(0));

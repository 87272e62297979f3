// Downloads the bundle that contains this page and opens its graph. onnxruntime's WASM runs on one thread, which needs no
// special headers from the server.
import * as ort from './ort.js';
import { Problem } from './problem.js';

const ROOT = new URL('../', import.meta.url);
const RUNTIME = 'web/ort.wasm';
const TOKENIZER = 'tokenizer.json';
const TOKENIZER_CONFIG = 'tokenizer_config.json';

async function fetched(name, version, options) {
  const response = await fetch(new URL(name + version, ROOT), options).catch(() => null);
  if (!response) throw new Problem(`The server does not respond for ${name}: is it still running?`);
  if (!response.ok) throw new Problem(`The server has no ${name} (${response.status}): copy the whole folder.`);
  return response;
}

/** Download a file of the bundle; call `arrived` with the number of bytes in each part. */
async function download(manifest, name, arrived) {
  const { size, sha256 } = manifest.files[name] ?? {};
  if (size === undefined) throw new Problem(`The manifest does not list ${name}: convert again.`);
  const response = await fetched(name, `?${sha256.slice(0, 16)}`); // a cache may have the file of an older bundle
  const bytes = new Uint8Array(size);
  const reader = response.body.getReader();
  let at = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length <= size) bytes.set(part.value, at);
    at += part.value.length;
    arrived(part.value.length);
  }
  if (at !== size) throw new Problem(`${name} has ${at} bytes, not ${size}: it is damaged or cut short.`);
  return bytes;
}

export const readManifest = async () => (await fetched('manifest.json', '', { cache: 'no-cache' })).json();

/** Download what answers; call `progress(fraction)` on the way. Return the tokenizer's two files and the graph, opened. */
export async function load(manifest, graph, progress) {
  const weights = weightsOf(manifest);
  const names = [RUNTIME, TOKENIZER, TOKENIZER_CONFIG, graph, weights];
  const total = names.reduce((sum, name) => sum + (manifest.files[name]?.size ?? 0), 0);
  let loaded = 0;
  const arrived = (count) => progress((loaded += count) / total);
  const [wasm, ...rest] = await Promise.all(names.map((name) => download(manifest, name, arrived)));
  const [tokenizer, config] = rest.splice(0, 2).map((bytes) => JSON.parse(new TextDecoder().decode(bytes)));
  const [nodes, data] = rest;
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasm.buffer;
  const session = await ort.InferenceSession.create(nodes, {
    executionProviders: ['wasm'],
    externalData: [{ path: weights.split('/').pop(), data }],
  });
  return { tokenizer, config, session };
}

/** Return the file with the weights of all graphs in fast/. */
const weightsOf = ({ files }) => Object.keys(files).find((name) => name.endsWith('.onnx.data')) ?? 'fast/*.onnx.data';

/** Return what a page shows about its model. */
export const factsOf = (manifest) => ({
  dtype: manifest.dtype,
  origin: manifest.origin,
  bytes: manifest.files[weightsOf(manifest)]?.size ?? 0,
  longest: manifest.limits.max_length,
  examples: manifest.examples ?? [],
});

/** Run a graph on one row: integers by the name of the input. */
export async function run(session, row) {
  const tensor = (values) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
  const { logits } = await session.run(Object.fromEntries(Object.entries(row).map(([name, ids]) => [name, tensor(ids)])));
  return logits.data;
}

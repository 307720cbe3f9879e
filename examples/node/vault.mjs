// cardvault for Node.js: typed by the protos themselves, over mTLS, one client for each role's certificate.

import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTOS = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "protos");
const TIMEOUT = 5_000; // milliseconds, for each try
const TRIES = 4;

/** Nobody can know whether such a call took effect: it is repeated with the same idempotency key. */
const UNKNOWN = new Set([
  grpc.status.UNAVAILABLE,
  grpc.status.DEADLINE_EXCEEDED,
  grpc.status.CANCELLED,
  grpc.status.UNKNOWN,
  grpc.status.INTERNAL,
]);

const { vault } = grpc.loadPackageDefinition(
  protoLoader.loadSync(
    ["checkout", "account", "processor"].map((name) => `vault/v1/${name}.proto`),
    { includeDirs: [PROTOS], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true },
  ),
);

/** A client of one service, under the certificate `<name>.pem` with its key `<name>.key`, and `ca.pem` beside them. */
export function client(service, { address, pki, name }) {
  const read = (file) => readFileSync(join(pki, file));
  const credentials = grpc.credentials.createSsl(read("ca.pem"), read(`${name}.key`), read(`${name}.pem`));
  // One policy of repeating rules, the one below.
  return new vault.v1[service](address, credentials, { "grpc.enable_retries": 0 });
}

/** One call. What is unknown is repeated; pass a request whose `idempotency_key` is set where the RPC has one. */
export async function call(stub, method, request) {
  const once = promisify(stub[method]).bind(stub);
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await once(request, { deadline: Date.now() + TIMEOUT });
    } catch (error) {
      if (attempt === TRIES || !UNKNOWN.has(error.code)) throw error;
      await pause(Math.random() * 100 * 2 ** attempt);
    }
  }
}

export const newKey = () => randomUUID();

/** The customer's opt-in to a text that was shown, through a box that was not ticked beforehand. */
export const consentTo = (text, { version, locale }) => ({
  terms_version: version,
  terms_sha256: createHash("sha256").update(text, "utf8").digest(),
  uses: ["CARD_USE_CUSTOMER_INITIATED"],
  channel: "CONSENT_CHANNEL_WEB",
  locale,
});

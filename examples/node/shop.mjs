// Walks the main job against a running cardvault (`make dev`): store with consent, show, pay once, remove.
//
//   node shop.mjs [state folder of cardvault dev]
//
// The environment's CARD_NUMBER_FILE names a file with another number than the published test number.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";

import grpc from "@grpc/grpc-js";

import { call, client, consentTo, newKey } from "./vault.mjs";

const state = process.argv[2] ?? join("..", "..", ".cardvault");
const address = `localhost:${readFileSync(join(state, "port"), "utf8").trim()}`;
const at = (name) => ({ address, pki: join(state, "pki"), name });

const checkout = client("CheckoutService", at("checkout"));
const account = client("AccountService", at("account"));
const processor = client("ProcessorService", at("processor"));

const typed = process.env.CARD_NUMBER_FILE
  ? readFileSync(process.env.CARD_NUMBER_FILE, "utf8").trim()
  : "4242424242424242"; // a published test number
const customer_id = `node-${newKey()}`;
const order_id = `order-${newKey()}`.slice(0, 40);
const amount = { minor_units: 4900, currency: "EUR" };

// The checkout page: the customer ticked "keep my card".
const { card } = await call(checkout, "Tokenize", {
  idempotency_key: newKey(),
  customer_id,
  card: { pan: typed, expiry: { month: 12, year: new Date().getUTCFullYear() + 3 }, holder_name: "Ada Example" },
  consent: consentTo("Keep my card for my next purchase.", { version: "2026-01", locale: "en" }),
});
console.log(`stored: ${card.token.slice(0, 4)}… ${card.brand} ending in ${card.last4}`);

// The account page: last four digits, nothing else.
const { cards } = await call(account, "ListCards", { customer_id });
assert.deepEqual(cards.map((each) => each.token), [card.token]);
assert.ok(!JSON.stringify(cards).includes(typed));
console.log(`listed: ${cards.length} card`);

// The payment: checkout asks for a grant, the processor alone turns it into the number, once.
const { grant } = await call(checkout, "IssueGrant", {
  idempotency_key: newKey(),
  stored_card: { customer_id, token: card.token },
  order_id,
  amount,
  purpose: "CARD_USE_CUSTOMER_INITIATED",
  processor: "acquirer",
});
const released = await call(processor, "Detokenize", { grant, order_id, amount });
assert.ok(released.pan === typed); // not equal(): its message would show both
console.log(`released: a number that ends in ${released.pan.slice(-4)}`);

const refusal = await call(processor, "Detokenize", { grant, order_id, amount }).then(
  () => assert.fail("a grant was good twice"),
  (error) => error,
);
assert.equal(refusal.code, grpc.status.PERMISSION_DENIED);
console.log(`again: ${refusal.details}`);

// "Remove my card".
const { receipt } = await call(account, "DeleteCard", { idempotency_key: newKey(), customer_id, token: card.token });
assert.deepEqual((await call(account, "ListCards", { customer_id })).cards, []);
console.log(`removed: ${receipt.event_id.slice(0, 4)}…`);

for (const each of [checkout, account, processor]) each.close();

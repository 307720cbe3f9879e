"""A small web shop on cardvault: `make storefront`.

Three processes that trust each other with little:

- `examples.storefront.shop`: pages for shoppers, with the certificates of checkout and account. It sees a card number
  once, in the form that is posted to it, and hands it on; it can never ask for one.
- `examples.storefront.processor`: stands for the payment processor, with the processor's certificate. It alone turns
  a grant into a number. It charges nobody: it approves and declines by fixed rules.
- cardvault itself with an OpenBao, as `make dev` starts them.

Not for production: signing in asks for no password, and everything lies in one folder on one machine. What concerns
cards is meant to be copied.
"""

"""The shop: pages for shoppers. It holds a card number for the length of one request, and can never ask for one."""

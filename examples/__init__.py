"""What a user of cardvault would write; nothing here is part of the package."""

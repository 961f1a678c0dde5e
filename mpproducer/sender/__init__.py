"""The one process per host that talks to the brokers (Sender and NetworkClient in Java)."""

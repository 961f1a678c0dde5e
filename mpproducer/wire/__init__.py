"""The Kafka protocol as bytes: no sockets, no clocks. Every length is bounded before it is used."""

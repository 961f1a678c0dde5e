"""What workers and the sender share: segments, control messages, frames, rendezvous."""

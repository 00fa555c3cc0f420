//! The completion port itself: create, associate, dequeue, post, timers, close.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod associate;
mod backend;
mod close;
mod dequeue;
mod order;
mod timers;
mod wait;

/// Room for this many packets.
fn empty_slots(count: usize) -> Vec<Option<proactor::Completion>> {
    (0..count).map(|_| None).collect()
}

//! Following a stuck worker: its sockets wake the idle worker that takes over from it.
//!
//! Without this, what comes for a stuck worker's sockets waits for the next look around. The
//! follower's epoll set holds the set that tells which of them are ready, by edges; the entry goes
//! at the first look that finds the worker in another handler.

use super::driver::Driver;
use super::engine::Engine;
use super::worker::{Local, Worker};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;

/// Whom a worker follows, and in which turn that one is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Followed {
    index: usize,
    turn: u64,
}

impl<D: Driver> Engine<D> {
    /// Makes `me` the follower of `stuck`, unless another idle one of `workers` is.
    pub(super) fn follow(
        &self,
        workers: &[Option<Arc<Worker<D>>>],
        me: &Worker<D>,
        local: &mut Local<D>,
        stuck: &Arc<Worker<D>>,
        turn: u64,
    ) {
        let followed = Followed { index: stuck.slot.index, turn };
        if local.followed.contains(&followed) || has_idle_follower(workers, stuck, turn) {
            return;
        }
        // An entry of an earlier turn stands in the epoll set already.
        let entered = local.followed.iter().position(|other| other.index == followed.index);
        match entered {
            Some(position) => local.followed[position] = followed,
            // Refused, for example where two follow each other: then the looks have to do.
            None if me.poller.follow(&stuck.poller, followed.index).is_err() => return,
            None => local.followed.push(followed),
        }
        stuck.follower.store(mark(me.slot.index, turn), Ordering::SeqCst);
    }

    /// Takes over from those that `me` follows and that are still stuck; lets go of the others.
    pub(super) fn look_at_followed(&self, me: &Worker<D>, local: &mut Local<D>) {
        let mut position = 0;
        while let Some(&Followed { index, turn }) = local.followed.get(position) {
            let stuck = self.workers().get(index).cloned().flatten();
            let is_stuck = stuck.as_ref().is_some_and(|stuck| {
                stuck.slot.turn.load(Ordering::Acquire) == turn
                    && stuck.follower.load(Ordering::SeqCst) == mark(me.slot.index, turn)
            });
            match stuck {
                Some(stuck) if is_stuck => {
                    self.rescue(&stuck, turn);
                    position += 1;
                }
                Some(stuck) => {
                    me.poller.unfollow(&stuck.poller);
                    local.followed.swap_remove(position);
                }
                // The kernel took the entry out when the set was closed.
                None => drop(local.followed.swap_remove(position)),
            }
        }
    }
}

/// A follower and the turn in which it follows, in one word. No follower is 0: a stuck worker's turn
/// is not.
fn mark(follower: usize, turn: u64) -> u64 {
    debug_assert!(follower < 1 << 16 && turn > 0);
    turn << 16 | follower as u64
}

/// Whether somebody follows `stuck` in this turn who is not busy: one that is may be stuck as well.
fn has_idle_follower<D: Driver>(
    workers: &[Option<Arc<Worker<D>>>],
    stuck: &Worker<D>,
    turn: u64,
) -> bool {
    let marked = stuck.follower.load(Ordering::SeqCst);
    let follower = workers.get(marked as u16 as usize).and_then(Option::as_ref);
    marked >> 16 == turn && follower.is_some_and(|worker| worker.slot.parked.load(Ordering::SeqCst))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use crate::backend::epoll::EpollDriver;
    use crate::backend::linux::central::Central;
    use crate::backend::linux::poller::Poller;
    use crate::backend::linux::sink::Sink;
    use crate::backend::linux::syscall;

    #[test]
    fn what_comes_for_a_followed_worker_wakes_its_follower_until_that_ends() {
        let wake = syscall::eventfd().unwrap();
        let follower = Poller::<EpollDriver>::new().unwrap();
        let stuck = Poller::<EpollDriver>::new().unwrap();
        stuck.watch_wake(wake.as_raw_fd()).unwrap();
        let central = Central::new(1);
        let poll = |timeout| {
            let mut sink = Sink::new(&central, None);
            follower.poll(Some(timeout), None, None, &mut sink).unwrap()
        };
        follower.follow(&stuck, 7).unwrap();
        assert_eq!(poll(Duration::ZERO), 0);
        syscall::eventfd_signal(&wake);
        assert_eq!(poll(Duration::from_secs(20)), 1);
        assert!(follower.take_followed_ready());
        assert!(!follower.take_followed_ready());
        follower.unfollow(&stuck);
        syscall::eventfd_signal(&wake);
        assert_eq!(poll(Duration::ZERO), 0);
        assert!(!follower.has_followed_ready());
    }
}
